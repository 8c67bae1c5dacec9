"""Environments of the old `gym`, and of anything else that has its methods, as Gymnasium's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv

from beast.core.errors import EnvError


class OldStyle(gymnasium.Env[Any, Any]):
    """An adapter for environments of the old `gym`, whose `reset()` takes no seed and whose spaces are of another library.

    Args:
        env: the environment.
        seed: function that seeds it; None calls its method `seed`, if it has one.
        cut: function of the last info that returns whether the episode was truncated; None reads `TimeLimit.truncated`.
    """

    def __init__(
        self, env: Any, seed: Callable[[int], Any] | None = None, cut: Callable[[dict[str, Any]], bool] | None = None
    ) -> None:
        self.inner = env
        self.observation_space, self.action_space = as_space(env.observation_space), as_space(env.action_space)
        self.metadata = getattr(env, "metadata", None) or {}
        self.metric_names = tuple(getattr(env, "metric_names", ()))
        self._seed, self._cut = seed or getattr(env, "seed", None), cut

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Seed the environment if a seed is given, reset it, and return the observation and the info."""
        super().reset(seed=seed)
        if seed is not None and self._seed is not None:
            self._seed(seed)
        return of_reset(self.inner.reset())

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take the action and return Gymnasium's five values."""
        observation, reward, terminated, truncated, info = of_step(self.inner.step(action))
        if terminated and self._cut is not None and self._cut(info):
            terminated, truncated = False, True
        return observation, reward, terminated, truncated, info

    def render(self) -> Any:
        """Return what the environment renders."""
        try:
            return self.inner.render(mode="rgb_array")
        except TypeError:
            return self.inner.render()

    def close(self) -> None:
        """Close the environment."""
        if hasattr(self.inner, "close"):
            self.inner.close()


def as_gymnasium(env: Any, name: str) -> gymnasium.Env[Any, Any]:
    """Return what a user's function made as a Gymnasium environment.

    Args:
        env: what it made.
        name: of the function, for the error.

    Raises:
        EnvError: if it is an environment neither of Gymnasium nor of the old `gym`.
    """
    if isinstance(env, gymnasium.Env):
        parameters = inspect.signature(env.unwrapped.reset).parameters.values()
        takes_seed = any(p.name == "seed" or p.kind is p.VAR_KEYWORD for p in parameters)
        return env if takes_seed else OldStyle(env)
    needed = ("reset", "step", "observation_space", "action_space")
    if isinstance(env, VectorEnv | type) or not all(hasattr(env, each) for each in needed):
        what = "a VectorEnv" if isinstance(env, VectorEnv) else f"{env!r:.80}"
        raise EnvError(f"{name} returned {what}: return one gymnasium.Env, actors make as many as they need")
    return OldStyle(env)


def as_space(space: Any) -> gymnasium.Space[Any]:
    """Return a space of the old `gym`, or any object with its fields, as a Gymnasium space.

    Raises:
        EnvError: if it is not a space.
    """
    if isinstance(space, gymnasium.Space):
        same: gymnasium.Space[Any] = space
        return same
    spaces = gymnasium.spaces
    kind = type(space).__name__.removesuffix("Space")
    try:
        if kind == "Discrete":
            return spaces.Discrete(int(space.n), start=int(getattr(space, "start", 0)))
        if kind == "Box":
            low, high = (
                np.broadcast_to(np.asarray(bound, space.dtype), space.shape) for bound in (space.low, space.high)
            )
            return spaces.Box(low, high, tuple(space.shape), space.dtype)
        if kind == "MultiDiscrete":
            return spaces.MultiDiscrete(space.nvec)
        if kind == "MultiBinary":
            return spaces.MultiBinary(space.n)
        if kind == "Dict":
            return spaces.Dict({key: as_space(part) for key, part in space.spaces.items()})
        if kind == "Tuple":
            return spaces.Tuple([as_space(part) for part in space.spaces])
    except (AttributeError, TypeError, ValueError) as error:
        raise EnvError(f"{space!r:.200} is no space that Gymnasium could have ({error})") from error
    raise EnvError(f"{space!r:.200} is no gymnasium.Space: mend the environment's observation_space or action_space")


def of_reset(answer: Any) -> tuple[Any, dict[str, Any]]:
    """Return observation and info; the old `gym` returned the observation alone."""
    if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], dict):
        return answer
    return answer, {}


def of_step(answer: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
    """Return Gymnasium's five values; the old `gym` returned four, with truncation in info."""
    if not isinstance(answer, tuple | list) or len(answer) not in (4, 5):
        raise EnvError(
            f"the environment's step() returned {answer!r:.80}: return observation, reward, terminated, truncated, info"
        )
    if len(answer) == 4:
        observation, reward, done, info = answer
        cut = bool(info.get("TimeLimit.truncated", False))
        return observation, reward, done and not cut, done and cut, info
    observation, reward, terminated, truncated, info = answer
    return observation, reward, terminated, truncated, info
