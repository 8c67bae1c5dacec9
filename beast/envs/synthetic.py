"""An environment of a given cost, for benchmarks and for tests of slow or failing environments."""

from __future__ import annotations

import os
import time
from typing import Any

import gymnasium
import numpy as np


class Synthetic(gymnasium.Env[np.ndarray, np.int64]):
    """An environment with random observations at a set cost.

    Args:
        step_ms: CPU time of a step in milliseconds (wall time with `sleep`).
        reset_ms: CPU time of a reset in milliseconds (wall time with `sleep`).
        episode_steps: length of an episode.
        vary: step times and episode lengths are drawn log-uniformly from [1/vary, vary] times the above.
        shape: shape of the uint8 observation.
        actions: number of actions.
        sleep: whether to sleep instead of computing.
        truncate: whether episodes end by truncation instead of termination.
        fail_after: step of the process at which it fails; 0 never fails.
        fail: how it fails: raise (a RuntimeError), exit, hang, nan (a NaN reward), shape or dtype.
    """

    def __init__(  # noqa: PLR0913 - --env_kwargs
        self, step_ms: float = 0.0, reset_ms: float = 0.0, episode_steps: int = 100, vary: float = 1.0,
        shape: tuple[int, ...] = (4, 84, 84), actions: int = 6, sleep: bool = False, truncate: bool = False,
        fail_after: int = 0, fail: str = "raise",
    ) -> None:  # fmt: skip
        self.observation_space = gymnasium.spaces.Box(0, 255, tuple(shape), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(actions)
        self._step_s, self._reset_s, self._vary = step_ms / 1e3, reset_ms / 1e3, vary
        self._mean_steps, self._sleep, self._truncate = episode_steps, sleep, truncate
        self._fail_after, self._fail = fail_after, fail
        self._shape = tuple(shape)
        self._count = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Spend `reset_ms` and return a random observation."""
        super().reset(seed=seed)
        self._frames = self.np_random.integers(0, 256, (8, *self._shape), dtype=np.uint8)
        self._at = 0
        self._length = max(1, round(self._mean_steps * self._factor()))
        self._work(self._reset_s)
        return self._frames[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Spend `step_ms`, varied by `vary`, and return a random observation and a reward."""
        self._work(self._step_s * self._factor())
        self._at += 1
        self._count += 1
        observation, reward = self._frames[self._at % 8], float(self._at % 2)
        if self._fail_after and self._count >= self._fail_after:
            observation, reward = self._misbehave(observation, reward)
        over = self._at >= self._length
        return observation, reward, over and not self._truncate, over and self._truncate, {}

    def _factor(self) -> float:
        return 1.0 if self._vary == 1.0 else float(self._vary ** self.np_random.uniform(-1.0, 1.0))

    def _work(self, seconds: float) -> None:
        if self._sleep:
            time.sleep(seconds)
            return
        end = time.thread_time() + seconds  # the thread's own CPU time: the same work however busy the machine is
        while time.thread_time() < end:
            pass

    def _misbehave(self, observation: np.ndarray, reward: float) -> tuple[Any, float]:
        if self._fail == "exit":
            os._exit(3)
        while self._fail == "hang":
            time.sleep(1.0)
        if self._fail == "nan":
            return observation, float("nan")
        if self._fail == "shape":
            return observation[:1], reward
        if self._fail == "dtype":
            return observation.astype(np.float64), reward
        raise RuntimeError("the synthetic environment fails, as it was asked to")
