"""Play full games with a policy: after training from a checkpoint, or beside it in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from beast import checkpoint
from beast.agent import Agent
from beast.config import Config
from beast.data import Array
from beast.envs import EnvError
from beast.policy import Policy, seed_for
from beast.spaces import from_plain
from beast.system import keep_freed_memory, use_compute_threads
from beast.task import Task, settle
from beast.weights import Weights
from beast.workers import Context, Worker, Workers

GAMES_AT_ONCE = 16


def play(
    task: Task, agent: Agent, episodes: int, seed: int, alive: Callable[[], bool] = lambda: True
) -> tuple[list[float], list[int]]:
    """Unclipped returns and lengths (agent steps) of `episodes` full games, with the recurrent state carried along.

    Several games run at once, each environment plays a fixed share of the episodes: taking the first to finish would
    favour short ones. `alive` is asked at each step; False ends it early with what is there.
    """
    num_envs = min(episodes, GAMES_AT_ONCE)
    quota = episodes // num_envs + (np.arange(num_envs) < episodes % num_envs)
    group = task.env.make_group(
        [seed_for(seed, "evaluation", i) for i in range(num_envs)], True, lambda: [alive(), None][1]
    )
    returns: list[float] = []
    lengths: list[int] = []
    try:
        env = group.reset()
        while quota.any() and alive():
            env = group.step(agent.choose(env.observation, env.reward, env.first, env.extra).action)
            for i in np.flatnonzero(~np.isnan(env.episode_steps) & (quota > 0)):
                quota[i] -= 1
                returns.append(float(env.episode_return[i]))
                lengths.append(int(env.episode_steps[i]))
    finally:
        group.close()
    return returns, lengths


def from_checkpoint(
    path: Path, state: dict[str, Any], episodes: int, seed: int | None, deterministic: bool, video: Path | None = None,
    other: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Evaluate a checkpoint, read from `path`; everything but the count of episodes comes from it.

    It runs what the checkpoint names: ask `checkpoint.settings_of` first whether it may.

    Args:
        other: flags of another environment of the same spaces.

    Returns:
        env, step, episodes, mean, median, std, min, max, returns, lengths, deterministic.

    Raises:
        CheckpointError, EnvError, ModelError: one line each.
    """
    config, task = settle(evaluated(state["config"]) | (other or {}))
    if other:
        _check_same_spaces(task, state)
    seed = config.run.seed + 1_000_003 if seed is None else seed
    keep_freed_memory()
    use_compute_threads(1)  # more help little with so few games, and fight whoever trains beside

    policy = Policy(task.model, task.dtype, None, 1)
    load_model(policy, state["learner"]["model"], path)
    if video is not None:  # first, because what is wrong with rendering shows at once
        record(task, Agent(policy, deterministic, seed_for(seed, "video")), seed, video)
    returns, lengths = play(task, Agent(policy, deterministic, seed_for(seed, "evaluation actions")), episodes, seed)
    return {
        "env": config.environment.env,
        "model": config.learner.model,
        "step": int(state["learner"]["steps"]),
        "deterministic": deterministic,
        "seed": seed,
        "episodes": len(returns),
        "mean": float(np.mean(returns)),
        "median": float(np.median(returns)),
        "std": float(np.std(returns)),
        "min": float(np.min(returns)),
        "max": float(np.max(returns)),
        "returns": returns,
        "lengths": lengths,
    }


def _check_same_spaces(task: Task, state: dict[str, Any]) -> None:
    """Raises EnvError if a task has other spaces than a checkpoint's model was made for."""
    if "spaces" not in state:
        raise EnvError("--env: this checkpoint is of an older version, which did not keep its spaces: leave --env out")
    trained_on = trained_spaces(state)
    for what, own in (("observation", task.model.observation_space), ("action", task.model.action_space)):
        if own != trained_on[what]:
            raise EnvError(
                f"--env {task.env.env}: its {what} space is {own}, the model was trained on {trained_on[what]}"
            )


def trained_spaces(state: dict[str, Any]) -> dict[str, gymnasium.Space[Any]]:
    """The spaces, observation and action, that a checkpoint's model was made for.

    Raises:
        CheckpointError: if they are damaged.
    """
    try:
        return {what: from_plain(state["spaces"][what]) for what in ("observation", "action")}
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError, RuntimeError) as error:
        raise checkpoint.CheckpointError(f"its spaces are damaged ({error!r:.200})") from error


def evaluated(flags: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run as they are for a look at its policy: on this machine's CPU, and no run."""
    return flags | {"device": "cpu", "preset": "auto", "resume": None, "xpid": None}


def load_model(policy: Policy, state: dict[str, torch.Tensor], path: Path) -> None:
    """Raises CheckpointError if the state is of another network."""
    try:
        policy.model.load_state_dict(state)
    except RuntimeError as error:
        line = " ".join(str(error).split())[:300]
        raise checkpoint.CheckpointError(f"{path} holds another model than its config names: {line}") from error


def record(task: Task, agent: Agent, seed: int, folder: Path) -> Path:
    """Play one episode and write it as `episode.mp4`; returns the file's path.

    Raises:
        EnvError: if the environment cannot show itself.
        OSError: if the file cannot be written.
    """
    import cv2

    try:
        env = task.env.make_single(render_mode="rgb_array")
    except (TypeError, gymnasium.error.Error) as error:
        raise EnvError(f"--video: {task.env.env} cannot be made with render_mode='rgb_array': {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "episode.mp4"
    writer = None
    observation, info = env.reset(seed=seed_for(seed, "video env"))
    reward, over = 0.0, False
    try:
        while not over:
            image = _picture(env, task.env.env)
            if writer is None:
                rate = 15.0 if task.env.is_atari else float(env.metadata.get("render_fps", 30))
                size = image.shape[1], image.shape[0]
                writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
                if not writer.isOpened():
                    raise OSError(f"OpenCV cannot write {path}")
            writer.write(image[..., ::-1])
            columns = task.unroll.extra.items()  # zero where this row's info has none, as in training
            extra = {name: np.asarray(info.get(name, np.zeros(s.shape)), s.dtype)[None] for name, s in columns}
            action = agent.act(observation, reward, extra=extra)
            observation, reward, terminated, truncated, info = env.step(action)  # type: ignore[assignment]
            over = terminated or truncated
    finally:
        if writer is not None:
            writer.release()
        env.close()
    return path


def _picture(env: Any, name: str) -> Array:
    """`[H, W, 3]` uint8."""
    try:
        image = env.render()
        if isinstance(image, list) and image:
            image = image[-1]  # render_mode rgb_array_list
    except gymnasium.error.Error as error:  # pygame is missing, most likely
        raise EnvError(f"--video: {name} cannot render: {error}") from error
    if not isinstance(image, np.ndarray) or image.ndim != 3:
        raise EnvError(f"--video: render() of {name} returned no picture [H, W, 3]")
    return image if image.dtype == np.uint8 else (image * 255).clip(0, 255).astype(np.uint8)  # MinAtar's are 0 .. 1


class Evaluator:
    """Evaluation beside training: every so many steps, in a process of its own, with the newest weights."""

    def __init__(self, task: Task, config: Config, weights: Weights, step: int) -> None:
        self._task, self._config, self._weights = task, config, weights
        self._every = config.run.eval_every
        self._next = (step // self._every + 1) * self._every
        self._requests: Any = None
        self._answers: Any = None

    def start(self, workers: Workers, index: int) -> None:
        """Start its process."""

        def make_arguments(restarts: int) -> tuple[Any, ...]:
            inbox, self._requests = multiprocessing.Pipe(duplex=False)
            self._answers, outbox = multiprocessing.Pipe(duplex=False)
            run = self._config.run
            return (self._task, self._weights, run.eval_episodes, run.seed, inbox, outbox)

        workers.add(Worker("evaluator", index, _evaluator, make_arguments, lambda: "its evaluation is lost"))

    def due(self, step: int) -> bool:
        return step >= self._next

    def request(self, step: int) -> None:
        """Ask for an evaluation of the weights as they are now."""
        self._next = (step // self._every + 1) * self._every
        with suppress(OSError):
            self._requests.send(step)

    def results(self) -> dict[str, float]:
        """The newest answer since the last call, if any."""
        found: dict[str, float] = {}
        with suppress(OSError, EOFError):
            while self._answers is not None and self._answers.poll():
                step, mean = self._answers.recv()
                found = {"eval_step": float(step), "eval_return_mean": mean}
        return found


def _evaluator(
    context: Context, task: Task, weights: Weights, episodes: int, seed: int, inbox: Any, outbox: Any
) -> None:
    use_compute_threads(1)
    keep_freed_memory()
    policy = Policy(task.model, task.dtype, weights, 1)
    context.beat(1)
    while not context.stopping:
        context.beat()
        if not inbox.poll(0.2):
            continue
        step = inbox.recv()
        policy.refresh()
        seed_now = seed_for(seed, "evaluation", step)
        agent = Agent(policy, seed=seed_for(seed_now, "evaluation actions"))

        def alive() -> bool:
            context.beat()
            return not context.stopping

        returns, _ = play(task, agent, episodes, seed_now, alive)
        if alive():
            # So short that it is in the pipe as a whole or not at all: an evaluator stopped in it would hold its reader.
            outbox.send((step, float(np.mean(returns))))
