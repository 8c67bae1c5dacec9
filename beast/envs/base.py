"""From Gymnasium to EnvOutput: environments that are stepped together.

Every way of making environments returns a `gymnasium.vector.VectorEnv` with next-step autoreset. `VectorEnvs` wraps one
and adds what training needs: first rows, unclipped returns of full games, and the environment's own metrics.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from beast.core.data import ACTION_MASK, DISCOUNTED_RETURN, Array, ArraySpec, EnvOutput, Nested, map_nested
from beast.core.errors import EnvError
from beast.envs.adapter import Adapter, adapter_in, own_attribute
from beast.envs.spaces import known_distribution, spec_of


class VectorEnvs:
    """E environments that are stepped together, with one EnvOutput for each step.

    Args:
        vector: Gymnasium's vector environment, with next-step autoreset and unclipped rewards.
        seeds: one for each environment, used at the first reset.
        stack: more than 1 if the observation is one Box whose axis 0 holds so many successive frames, blank before an
            episode's first frame.
        lives_end_returns: whether a lost life (`info["lives"]` falls) sets `terminated`, without a reset.
        fire: action that replaces the chosen one after a lost life; None replaces nothing.
        columns: keys of `info` to store with each row, in addition to those that the environment declares.

    Raises:
        EnvError: if the vector environment resets within the same step, or not at all, or its spaces are not supported.
    """

    def __init__(
        self, vector: VectorEnv[Any, Any, Any], seeds: list[int], stack: int = 1, lives_end_returns: bool = False,
        fire: int | None = None,
        columns: Mapping[str, ArraySpec] | None = None,
    ) -> None:  # fmt: skip
        mode = vector.metadata.get("autoreset_mode")
        if mode != AutoresetMode.NEXT_STEP:
            raise EnvError(f"vector environments must use AutoresetMode.NEXT_STEP, this one has {mode}")
        self.vector = vector
        self.num_envs = vector.num_envs
        self.observation_space = vector.single_observation_space
        self.action_space = vector.single_action_space
        self.observation_spec = spec_of(self.observation_space, stack)
        self.metric_names = tuple(_declared(vector, "metric_names", ()))
        self.columns = _columns(_declared(vector, "info_columns", {})) | dict(columns or {})
        if ACTION_MASK in self.columns:
            self.columns[ACTION_MASK] = dataclasses.replace(self.columns[ACTION_MASK], dtype=np.dtype(bool))
        self.says_mask = False
        """Whether `info` held an action mask at the last reset."""
        self._seeds = seeds
        self._lives_end_returns, self._fire = lives_end_returns, fire
        self._watches_lives = lives_end_returns or fire is not None
        self._distribution = known_distribution(self.action_space)
        action = self._distribution.action_spec
        self._no_action = np.zeros((self.num_envs, *action.shape), action.dtype)
        self._over = np.zeros(self.num_envs, bool)
        self._lives = np.zeros(self.num_envs, np.int64)
        self._lost = np.zeros(self.num_envs, bool)
        self._return = np.zeros(self.num_envs, np.float64)
        self.return_discount = 1.0
        """How much a reward counts one step later in the column DISCOUNTED_RETURN, if that is among the columns."""
        self._discounted = np.zeros(self.num_envs, np.float32)
        self._steps = np.zeros(self.num_envs, np.int64)
        self._nothing = np.full(self.num_envs, np.nan, np.float32)
        self._no_metrics = np.full((self.num_envs, len(self.metric_names)), np.nan, np.float32)

    def reset(self) -> EnvOutput:
        """Reset every environment with its seed and return the first rows."""
        # AtariVectorEnv takes seeds as an array, every other VectorEnv as a list; VectorEnv's type hint has neither.
        seeds: Any = np.array(self._seeds) if hasattr(self.vector, "ale") else self._seeds
        observation, infos = self.vector.reset(seed=seeds)
        self.says_mask = ACTION_MASK in infos
        self._return[:] = self._discounted[:] = 0
        self._steps[:] = 0
        self._over[:] = self._lost[:] = False
        if self._watches_lives:
            self._lives = infos["lives"].astype(np.int64)
        never = np.zeros(self.num_envs, bool)
        reward = np.zeros(self.num_envs, np.float32)
        return EnvOutput(
            self._checked(observation), reward, never, never, ~never, self._no_action,
            self._nothing, self._nothing, self._no_metrics, self._extra(infos),
        )  # fmt: skip

    def step(self, actions: Array) -> EnvOutput:
        """Take the actions and return the next rows; where the last step ended an episode, reset and ignore the action.

        NaN and infinity pass: the learner skips an update that contains them (`beast/core/finite.py`), and the return of that
        game is unknown.

        Args:
            actions: `[E]` (+ `[N]`), as the distribution samples them and the store keeps them.

        Raises:
            EnvError: if an observation has another shape or dtype than its space, or a metric is not a number.
        """
        # After a lost life every action has the effect of FIRE; the row keeps the action that the policy chose.
        taken = actions if self._fire is None else np.where(self._lost, self._fire, actions)
        observation, reward, terminated, truncated, infos = self.vector.step(self._distribution.to_env(taken))
        first = self._over
        last_action = np.where(first.reshape(-1, *[1] * (actions.ndim - 1)), self._no_action, actions)
        with np.errstate(over="ignore", invalid="ignore"):
            reward = np.asarray(reward, np.float32)
            self._return += reward
        if DISCOUNTED_RETURN in self.columns:
            self._discount(reward, first)
        self._steps += ~first
        self._return[first] = 0
        self._over = over = terminated | truncated

        episode_return, episode_steps, metrics = self._nothing, self._nothing, self._no_metrics
        if over.any():
            episode_return = np.where(over & np.isfinite(self._return), self._return, np.nan).astype(np.float32)
            episode_steps = np.where(over, self._steps, np.nan).astype(np.float32)
            metrics = self._metrics(infos, over)
            self._steps[over] = 0
        if self._watches_lives:
            lives = infos["lives"].astype(np.int64)
            self._lost = (lives < self._lives) & ~first
            self._lives = lives
            if self._lives_end_returns:
                terminated = terminated | self._lost
        return EnvOutput(
            self._checked(observation), reward, terminated, truncated & ~terminated, first, last_action,
            episode_return, episode_steps, metrics, self._extra(infos),
        )  # fmt: skip

    def _discount(self, reward: Array, first: Array) -> None:
        """Add a step's rewards to the discounted returns. What is not finite is left out, or it would stay for ever."""
        known = np.nan_to_num(reward, nan=0.0, posinf=0.0, neginf=0.0)
        self._discounted = np.where(first, 0, self.return_discount * self._discounted + known).astype(np.float32)

    def _extra(self, infos: dict[str, Any]) -> dict[str, Array]:
        """Return the columns of this row, `[E, ...]`; zero where an environment's info lacks the key."""
        extra = {name: self._column(name, spec, infos) for name, spec in self.columns.items()}
        if DISCOUNTED_RETURN in extra:
            extra[DISCOUNTED_RETURN] = self._discounted
        return extra

    def _column(self, name: str, spec: ArraySpec, infos: dict[str, Any]) -> Array:
        column = np.zeros((self.num_envs, *spec.shape), spec.dtype)
        if name not in infos:
            return column
        has = infos.get(f"_{name}", np.ones(self.num_envs, bool))
        for i in np.flatnonzero(has):
            value = np.asarray(infos[name][i])
            if value.shape != spec.shape or not np.can_cast(value.dtype, spec.dtype, "same_kind"):
                raise EnvError(
                    f"the environment's info[{name!r}] has shape {value.shape} and dtype {value.dtype}, its column is "
                    f"declared with {spec.shape} and {spec.dtype}: mend one of them"
                )
            column[i] = value
        return column

    def _metrics(self, infos: dict[str, Any], over: Array) -> Array:
        if not self.metric_names:
            return self._no_metrics
        # Where only some environments report a key, the others hold 0 and `_key` says which ones report it.
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


def vector_of(
    envs: list[Any], seeds: list[int], alive: Callable[[], object] = lambda: None, **settings: Any
) -> VectorEnvs:
    """Make VectorEnvs over single Gymnasium environments, which are stepped one after the other.

    Args:
        envs: functions without arguments that each make one environment, as for SyncVectorEnv.
        seeds: one for each environment.
        alive: called after each reset.
        settings: further arguments of VectorEnvs.

    Raises:
        EnvError: if their spaces differ.
    """
    made = [env if adapter_in(env) else Adapter(env) for env in (make() for make in envs)]
    for env in made:
        if (adapter := adapter_in(env)) is not None:
            adapter.keep += tuple(settings.get("columns") or ())
            adapter.alive = alive
    for env in made[1:]:
        for name in ("observation_space", "action_space"):
            if getattr(env, name) != getattr(made[0], name):
                raise EnvError(
                    f"environments made alike have different spaces, as {getattr(made[0], name)} and {getattr(env, name)}: let "
                    f"{name} be the same each time"
                )
    ready = iter(made)
    return VectorEnvs(SyncVectorEnv([lambda: next(ready)] * len(made), copy=False), seeds, **settings)


def _declared(vector: VectorEnv[Any, Any, Any], name: str, default: Any) -> Any:
    """Return an attribute of the vector's first environment, or of the vector itself."""
    for env in getattr(vector, "envs", ()):
        return own_attribute(env, name, default)
    return getattr(vector, name, default)


def _columns(declared: Mapping[str, gymnasium.Space[Any]]) -> dict[str, ArraySpec]:
    """Return the specs of the columns that an environment declares by their spaces."""
    specs = {name: spec_of(space) for name, space in declared.items()}
    for name, spec in specs.items():
        if not isinstance(spec, ArraySpec):
            raise EnvError(f"the environment's info_columns[{name!r}] must be one array, got {declared[name]}")
    return specs
