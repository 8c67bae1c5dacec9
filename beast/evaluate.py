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
from beast.config import Config
from beast.data import Array, EnvOutput, map_nested
from beast.envs import EnvError
from beast.policy import Policy, seed_for
from beast.system import keep_freed_memory, use_compute_threads
from beast.task import Task, settle
from beast.weights import Weights
from beast.workers import Context, Worker, Workers

GAMES_AT_ONCE = 16


def play(
    task: Task, policy: Policy, episodes: int, seed: int, deterministic: bool, alive: Callable[[], bool] = lambda: True
) -> tuple[list[float], list[int]]:
    """Unclipped returns and lengths (agent steps) of `episodes` full games, with the recurrent state carried along.

    Several games run at once, each environment plays a fixed share of the episodes: taking the first to finish would
    favour short ones. `alive` is asked at each step; False ends it early with what is there.
    """
    num_envs = min(episodes, GAMES_AT_ONCE)
    quota = np.array([len(share) for share in np.array_split(np.arange(episodes), num_envs)])
    group = task.env.make_group([seed_for(seed, "evaluation", i) for i in range(num_envs)], evaluation=True)
    generator = np.random.default_rng(seed_for(seed, "evaluation actions"))
    returns: list[float] = []
    lengths: list[int] = []
    try:
        env = group.reset()
        while quota.any() and alive():
            noise = None if deterministic else policy.distribution.noise(generator, num_envs)
            action, _ = policy.act(env, noise)
            env = group.step(action)
            for i in np.flatnonzero(~np.isnan(env.episode_steps) & (quota > 0)):
                quota[i] -= 1
                returns.append(float(env.episode_return[i]))
                lengths.append(int(env.episode_steps[i]))
    finally:
        group.close()
    return returns, lengths


def from_checkpoint(
    path: Path, state: dict[str, Any], episodes: int, seed: int | None, deterministic: bool, video: Path | None = None
) -> dict[str, Any]:
    """Evaluate a checkpoint, read from `path`; everything but the count of episodes comes from it.

    It runs what the checkpoint names: ask `checkpoint.settings_of` first whether it may.

    Returns:
        env, step, episodes, mean, median, std, min, max, returns, lengths, deterministic.

    Raises:
        CheckpointError, EnvError, ModelError: one line each.
    """
    config, task = settle(state["config"] | {"device": "cpu", "preset": "auto", "resume": None, "xpid": None})
    seed = config.run.seed + 1_000_003 if seed is None else seed
    keep_freed_memory()
    use_compute_threads(1)  # more help little with so few games, and fight whoever trains beside

    def policy(num_envs: int) -> Policy:
        made = Policy(task.model, task.dtype, None, num_envs)
        load_model(made, state["learner"]["model"], path)
        return made

    if video is not None:  # first, because what is wrong with rendering shows at once
        record(task, policy(1), seed, deterministic, video)
    returns, lengths = play(task, policy(min(episodes, GAMES_AT_ONCE)), episodes, seed, deterministic)
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


def load_model(policy: Policy, state: dict[str, torch.Tensor], path: Path) -> None:
    """Raises CheckpointError if the state is of another network."""
    try:
        policy.model.load_state_dict(state)
    except RuntimeError as error:
        line = " ".join(str(error).split())[:300]
        raise checkpoint.CheckpointError(f"{path} holds another model than its config names: {line}") from error


def record(task: Task, policy: Policy, seed: int, deterministic: bool, folder: Path) -> Path:
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
    generator = np.random.default_rng(seed_for(seed, "video"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "episode.mp4"
    writer = None
    observation, _ = env.reset(seed=seed_for(seed, "video env"))
    spec = policy.distribution.action_spec
    reward, first, over, action = 0.0, True, False, np.zeros((1, *spec.shape), spec.dtype)
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
            noise = None if deterministic else policy.distribution.noise(generator, 1)
            action, _ = policy.act(_one(observation, reward, action, first), noise)
            observation, reward, terminated, truncated, _ = env.step(policy.distribution.to_env(action)[0])  # type: ignore[assignment]
            first, over = False, terminated or truncated
    finally:
        if writer is not None:
            writer.release()
        env.close()
    return path


def _picture(env: Any, name: str) -> Array:
    """`[H, W, 3]` uint8."""
    try:
        image = env.render()
    except gymnasium.error.Error as error:  # pygame is missing, most likely
        raise EnvError(f"--video: {name} cannot render: {error}") from error
    if not isinstance(image, np.ndarray) or image.ndim != 3:
        raise EnvError(f"--video: render() of {name} returned no picture [H, W, 3]")
    return image


def _one(observation: Any, reward: float, last_action: Array, first: bool) -> EnvOutput:
    """A single environment's step as a group of one."""
    nothing = np.full(1, np.nan, np.float32)
    no = np.zeros(1, bool)
    batched = map_nested(lambda x: np.asarray(x)[None], observation)
    rewards, firsts = np.array([reward], np.float32), np.array([first])
    return EnvOutput(
        batched, rewards, no, no, firsts, last_action, nothing, nothing, np.zeros((1, 0), np.float32)
    )  # fmt: skip


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
                step, returns = self._answers.recv()
                found = {"eval_step": float(step), "eval_return_mean": float(np.mean(returns))}
        return found


def _evaluator(
    context: Context, task: Task, weights: Weights, episodes: int, seed: int, inbox: Any, outbox: Any
) -> None:
    use_compute_threads(1)
    keep_freed_memory()
    policy = Policy(task.model, task.dtype, weights, min(episodes, GAMES_AT_ONCE))
    context.beat(1)
    while not context.stopping:
        context.beat()
        if not inbox.poll(0.2):
            continue
        step = inbox.recv()
        policy.refresh()
        policy.forget()

        def alive() -> bool:
            context.beat()
            return not context.stopping

        returns, _ = play(task, policy, episodes, seed_for(seed, "evaluation", step), False, alive)
        if alive():
            outbox.send((step, returns))
