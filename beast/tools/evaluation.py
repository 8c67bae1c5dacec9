"""The evaluation of a checkpoint: play full games with its policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from beast.acting.agent import Agent
from beast.acting.play import play
from beast.acting.policy import Policy
from beast.acting.task import Task
from beast.core.errors import CheckpointError, EnvError
from beast.core.seeds import seed_for
from beast.envs.plain_spaces import from_plain
from beast.processes.machine import keep_freed_memory, use_compute_threads
from beast.run.resolve import resolve_config
from beast.tools.video import record


def from_checkpoint(
    path: Path, state: dict[str, Any], episodes: int, seed: int | None, deterministic: bool, video: Path | None = None,
    other: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Evaluate a checkpoint that was read from `path`.

    This runs code that the checkpoint names: call `trust.settings_of` first, which checks whether it may.

    Args:
        path: the checkpoint's file, for messages.
        state: the checkpoint's content.
        episodes: number of games.
        seed: of environments and actions; None derives it from the run's seed.
        deterministic: take the most probable action instead of sampling.
        video: folder for a video of one episode; None records none.
        other: flags of another environment with the same spaces, and another `max_episode_steps`.

    Returns:
        env, step, episodes, mean, median, std, min, max, returns, lengths, deterministic.

    Raises:
        CheckpointError, EnvError, ModelError: each with a message of one line.
    """
    config, task = resolve_config(evaluated(state["config"]) | (other or {}), complete=True)
    if other and not {"env", "env_kwargs"}.isdisjoint(other):
        _check_same_spaces(task, state)
    seed = config.run.seed + 1_000_003 if seed is None else seed
    keep_freed_memory()
    use_compute_threads(1)  # more hardly help with so few games, and compete with a training run on this machine

    policy = Policy(task.model, task.dtype, None, 1)
    load_model(policy, state["learner"]["model"], path)
    if video is not None:  # first, because errors in rendering show at once
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
    """Raise EnvError if a task's spaces differ from those that the checkpoint's model was made for."""
    if "spaces" not in state:
        raise EnvError("--env: this checkpoint is of an older version, which did not keep its spaces: leave --env out")
    trained_on = trained_spaces(state)
    for what, own in (("observation", task.model.observation_space), ("action", task.model.action_space)):
        if own != trained_on[what]:
            raise EnvError(
                f"--env {task.env.env}: its {what} space is {own}, the model was trained on {trained_on[what]}"
            )


def trained_spaces(state: dict[str, Any]) -> dict[str, gymnasium.Space[Any]]:
    """Return the observation space and the action space that a checkpoint's model was made for.

    Raises:
        CheckpointError: if they are damaged.
    """
    try:
        return {what: from_plain(state["spaces"][what]) for what in ("observation", "action")}
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError, RuntimeError) as error:
        raise CheckpointError(f"its spaces are damaged ({error!r:.200})") from error


def evaluated(flags: dict[str, Any]) -> dict[str, Any]:
    """Return a run's settings adapted to evaluation: on this machine's CPU, without a run folder."""
    return flags | {"device": "cpu", "preset": "auto", "resume": None, "xpid": None}


def load_model(policy: Policy, state: dict[str, torch.Tensor], path: Path) -> None:
    """Load a model's state into a policy; raise CheckpointError if it belongs to another network."""
    try:
        policy.model.load_state_dict(state)
    except RuntimeError as error:
        line = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} holds another model than its config names: {line}") from error
