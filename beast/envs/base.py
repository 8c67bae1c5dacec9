"""From Gymnasium to EnvOutput: a group of environments that are stepped together.

Whatever makes environments gives back a `gymnasium.vector.VectorEnv` with next-step autoreset. `EnvGroup` wraps one and
adds what training needs: first rows, unclipped full-game returns, and the environment's own metrics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from beast.data import Array, ArraySpec, EnvOutput, Nested, map_nested
from beast.distributions import distribution_for


class EnvError(ValueError):
    """An environment cannot be made, or breaks its contract. The message is one line that says what to do."""


class EnvGroup:
    """E environments, one EnvOutput a step.

    Args:
        vector: next-step autoreset; rewards unclipped.
        seeds: one an environment, used on the first reset.
        stack: over 1 if the observation is one Box whose axis 0 holds that many successive frames, blank before an
            episode's first.
        lives_end_returns: a lost life (`info["lives"]` falls) sets `terminated`, without any reset.

    Raises:
        EnvError: if the vector environment resets on the same step, or not at all, or its spaces are not supported.
    """

    def __init__(
        self, vector: VectorEnv[Any, Any, Any], seeds: list[int], stack: int = 1, lives_end_returns: bool = False
    ) -> None:
        mode = vector.metadata.get("autoreset_mode")
        if mode != AutoresetMode.NEXT_STEP:
            raise EnvError(f"vector environments must use AutoresetMode.NEXT_STEP, this one has {mode}")
        self.vector = vector
        self.num_envs = vector.num_envs
        self.observation_space = vector.single_observation_space
        self.action_space = vector.single_action_space
        self.observation_spec = spec_of(self.observation_space, stack)
        self.metric_names = metric_names(vector)
        self._seeds = seeds
        self._lives_end_returns = lives_end_returns
        try:
            self._distribution = distribution_for(self.action_space)
        except ValueError as error:
            raise EnvError(str(error)) from error
        action = self._distribution.action_spec
        self._no_action = np.zeros((self.num_envs, *action.shape), action.dtype)
        self._over = np.zeros(self.num_envs, bool)
        self._lives = np.zeros(self.num_envs, np.int64)
        self._return = np.zeros(self.num_envs, np.float64)
        self._steps = np.zeros(self.num_envs, np.int64)
        self._nothing = np.full(self.num_envs, np.nan, np.float32)
        self._no_metrics = np.full((self.num_envs, len(self.metric_names)), np.nan, np.float32)

    def reset(self) -> EnvOutput:
        """Start every environment with its seed."""
        # AtariVectorEnv takes its seeds as an array, every other VectorEnv as a list; VectorEnv's hint knows neither.
        seeds: Any = np.array(self._seeds) if hasattr(self.vector, "ale") else self._seeds
        observation, infos = self.vector.reset(seed=seeds)
        self._return[:] = 0
        self._steps[:] = 0
        self._over[:] = False
        if self._lives_end_returns:
            self._lives = infos["lives"].astype(np.int64)
        never = np.zeros(self.num_envs, bool)
        reward = np.zeros(self.num_envs, np.float32)
        return EnvOutput(
            self._checked(observation), reward, never, never, ~never, self._no_action,
            self._nothing, self._nothing, self._no_metrics,
        )  # fmt: skip

    def step(self, actions: Array) -> EnvOutput:
        """Act, or reset where the last step ended an episode (the action is ignored there).

        Args:
            actions: `[E]` (+ `[N]`), as the distribution draws them and the store keeps them.

        NaN and infinity pass: the learner skips what they are in (`beast/finite.py`), and the return of their game is not
        known.

        Raises:
            EnvError: if an environment returns an observation of another shape or dtype than its space's, or a metric that
                is no number.
        """
        observation, reward, terminated, truncated, infos = self.vector.step(self._distribution.to_env(actions))
        first = self._over
        last_action = np.where(first.reshape(-1, *[1] * (actions.ndim - 1)), self._no_action, actions)
        with np.errstate(over="ignore", invalid="ignore"):
            reward = np.asarray(reward, np.float32)
            self._return += reward
        self._steps += ~first
        self._return[first] = 0
        self._over = over = terminated | truncated

        episode_return, episode_steps, metrics = self._nothing, self._nothing, self._no_metrics
        if over.any():
            episode_return = np.where(over & np.isfinite(self._return), self._return, np.nan).astype(np.float32)
            episode_steps = np.where(over, self._steps, np.nan).astype(np.float32)
            metrics = self._metrics(infos, over)
            self._steps[over] = 0
        if self._lives_end_returns:
            lives = infos["lives"].astype(np.int64)
            terminated = terminated | ((lives < self._lives) & ~first)
            self._lives = lives
        return EnvOutput(
            self._checked(observation), reward, terminated, truncated & ~terminated, first, last_action,
            episode_return, episode_steps, metrics,
        )  # fmt: skip

    def _metrics(self, infos: dict[str, Any], over: Array) -> Array:
        if not self.metric_names:
            return self._no_metrics
        # Where only some environments have a key, the others hold 0 there and `_key` says which ones have it.
        has = {name: over & infos.get(f"_{name}", True) for name in self.metric_names}
        columns = [np.where(has[name], infos.get(name, np.nan), np.nan) for name in self.metric_names]
        try:
            return np.stack(columns, axis=1).astype(np.float32)
        except (TypeError, ValueError) as error:
            raise EnvError(
                f"the environment's info holds no number for one of metric_names ({error}): mend it"
            ) from error

    def _checked(self, observation: Nested) -> Nested:
        def check(spec: ArraySpec, array: Array) -> Array:
            if array.shape != (self.num_envs, *spec.shape) or array.dtype != spec.dtype:
                raise EnvError(
                    f"the environment returned an observation of shape {array.shape[1:]} and dtype {array.dtype}, its "
                    f"observation_space says {spec.shape} and {spec.dtype}: mend one of them"
                )
            return array

        return map_nested(check, self.observation_spec, observation)

    def close(self) -> None:
        """Close the environments."""
        self.vector.close()


class Checked(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Looks at each observation before it is copied into a batch, where NumPy would cast or broadcast it silently."""

    def __init__(self, env: gymnasium.Env[Any, Any], alive: Callable[[], object] = lambda: None) -> None:
        super().__init__(env)
        self._alive = alive
        self._spec = spec_of(env.observation_space)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        self._alive()
        self._check("reset", observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._check("step", observation)
        return observation, reward, terminated, truncated, info

    def _check(self, method: str, observation: Any) -> None:
        def check(spec: ArraySpec, value: Any) -> None:
            shape, dtype = np.shape(value), getattr(value, "dtype", np.asarray(value).dtype)
            # Discrete observations are plain ints of any width; a Box must be what it says.
            if shape != spec.shape or (dtype != spec.dtype and (spec.shape or dtype.kind != spec.dtype.kind)):
                raise EnvError(
                    f"the environment's {method}() returned an observation of shape {shape} and dtype {dtype}, its "
                    f"observation_space says {spec.shape} and {spec.dtype}: mend one of them"
                )

        try:
            map_nested(check, self._spec, observation)
        except EnvError:
            raise
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise EnvError(
                f"the environment's {method}() returned an observation that its observation_space "
                f"{self.env.observation_space} does not describe ({error!r}): mend one of them"
            ) from error


def group_of(envs: list[Any], seeds: list[int], alive: Callable[[], object] = lambda: None) -> EnvGroup:
    """An EnvGroup over single Gymnasium environments, stepped one after the other.

    Args:
        envs: functions without arguments, one an environment, as SyncVectorEnv takes them.
        alive: called after each reset.
    """

    def checked(make: Any) -> Any:
        return lambda: Checked(make(), alive)

    return EnvGroup(SyncVectorEnv([checked(make) for make in envs], copy=False), seeds)


def spec_of(space: gymnasium.Space[Any], stack: int = 1) -> Nested:
    """The nested ArraySpec of an observation space.

    Raises:
        EnvError: for a space that is not built of Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple.
    """
    spaces = gymnasium.spaces
    if isinstance(space, spaces.Dict):
        return {key: spec_of(part) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(spec_of(part) for part in space.spaces)
    if isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        assert space.shape is not None
        assert space.dtype is not None
        return ArraySpec(tuple(space.shape), np.dtype(space.dtype), stack)
    raise EnvError(
        f"unsupported observation space {space}: use Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple of them"
    )


def metric_names(vector: VectorEnv[Any, Any, Any]) -> tuple[str, ...]:
    """The info keys that an environment wants logged at each episode's end: its attribute `metric_names`."""
    for env in getattr(vector, "envs", ()):
        with_names = env
        while with_names is not None:
            if names := getattr(with_names, "metric_names", None):
                return tuple(names)
            with_names = getattr(with_names, "env", None)
    return tuple(getattr(vector, "metric_names", ()))
