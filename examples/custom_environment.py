"""An environment of your own: `python run.py --env examples.custom_environment:make_env --env_kwargs '{"length": 8}'`.

Any function that returns a gymnasium.Env can be named. Values listed in `metric_names` are read from `info` at the end of
each episode and logged as `env/<name>`.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class Corridor(gymnasium.Env[dict[str, Any], np.int64]):
    """A corridor to walk to the end of, whose direction is shown only at the start. Observations are a Dict."""

    metric_names = ("reached",)

    def __init__(self, length: int = 6) -> None:
        self.length = length
        self.observation_space = gymnasium.spaces.Dict(
            {
                "position": gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32),
                "sign": gymnasium.spaces.Discrete(3),
            }
        )
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draw a direction and show it."""
        super().reset(seed=seed)
        self.position, self.steps = 0, 0
        self.goal = int(self.np_random.choice([-1, 1]))
        return self._observe(sign=1 + self.goal), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Move left (0) or right (1)."""
        self.position += 2 * int(action) - 1
        self.steps += 1
        over, late = abs(self.position) == self.length, self.steps >= 4 * self.length
        reached = over and self.position == self.goal * self.length
        reward = 1.0 if reached else -1.0 if over else 0.0
        return self._observe(sign=1), reward, over, late and not over, {"reached": float(reached)}

    def _observe(self, sign: int) -> dict[str, Any]:
        return {"position": np.array([self.position / self.length], np.float32), "sign": np.int64(sign)}


def make_env(length: int = 6) -> gymnasium.Env[dict[str, Any], np.int64]:
    """Make the environment that `--env` names; `--env_kwargs` become the arguments."""
    return Corridor(length)
