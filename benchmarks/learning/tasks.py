"""Tasks of the suite that no package has, as wrappers: `--wrapper benchmarks.learning.tasks:without_velocities`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


def without_velocities(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """CartPole that shows position and angle alone, so that only a policy with a memory knows where it is going."""
    whole = env.observation_space
    assert isinstance(whole, gymnasium.spaces.Box)
    shown = gymnasium.spaces.Box(whole.low[[0, 2]], whole.high[[0, 2]], dtype=np.float32)
    return gymnasium.wrappers.TransformObservation(env, lambda observation: observation[[0, 2]], shown)


def hundredfold(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """A task with rewards of another size: each is a hundred times what it was, and so are the returns in the logs."""
    return gymnasium.wrappers.TransformReward(env, lambda reward: 100.0 * float(reward))
