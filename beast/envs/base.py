"""From Gymnasium to EnvOutput: environments that are stepped together.

Every way of making environments returns a `gymnasium.vector.VectorEnv` with next-step autoreset. `VectorEnvs` wraps one
and adds what training needs: first rows, unclipped returns of full games, and the environment's own metrics.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from beast.core.data import ACTION_MASK, DISCOUNTED_RETURN, Array, ArraySpec, EnvOutput, Nested, map_nested
from beast.core.distributions import Distribution, distribution_for
from beast.core.errors import EnvError
from beast.envs.spaces import Codes, is_text, words_of


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
        self._distribution = _distribution_of(self.action_space)
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
        return _of_reset(self.inner.reset())

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take the action and return Gymnasium's five values."""
        observation, reward, terminated, truncated, info = _of_step(self.inner.step(action))
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


def _of_reset(answer: Any) -> tuple[Any, dict[str, Any]]:
    """Return observation and info; the old `gym` returned the observation alone."""
    if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], dict):
        return answer
    return answer, {}


def _of_step(answer: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
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


METRICS: dict[str, tuple[str, ...]] = {
    "is_success": ("is_success",), "episode_r": ("episode", "r"), "episode_l": ("episode", "l")
}  # fmt: skip
"""Metrics that many environments and wrappers put into info, by their keys there; they are always logged."""


class Adapter(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A wrapper that holds an environment to its spaces: it converts values where nothing is lost and otherwise refuses them.

    Floats may be rounded to the space's dtype; integers may become floats or integers of a dtype that holds them; lists and
    Python scalars become arrays; rewards may be arrays of one element. A text becomes the numbers of its words. Of info,
    only the numbers in `metric_names` and `METRICS` and the keys in `keep` remain.

    Args:
        env: the environment.
        grid: maps a grid's space to the space that is stored; None keeps it.
        keep: keys of info to keep.

    Raises:
        EnvError: for spaces that cannot be stored, and at each step for other observations, rewards and metrics.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], grid: Callable[[gymnasium.Space[Any]], gymnasium.Space[Any]] | None = None,
        keep: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__(env)
        self._said = as_space(getattr(env, "observation_space", None))
        self.action_space = as_space(getattr(env, "action_space", None))
        self._distribution = _distribution_of(self.action_space)
        shown, masks = self._said, gymnasium.spaces.MultiBinary(max(1, self._distribution.mask_size))
        self._mask_shown = isinstance(shown, gymnasium.spaces.Dict) and ACTION_MASK in shown.spaces
        self.info_columns = dict(_own(env, "info_columns", {}))
        if isinstance(shown, gymnasium.spaces.Dict) and self._mask_shown and self._distribution.mask_size:
            # The action mask is not part of what the model sees.
            shown = gymnasium.spaces.Dict({key: part for key, part in shown.spaces.items() if key != ACTION_MASK})
            self.info_columns[ACTION_MASK] = masks
        self.observation_space, self._convert = _adapted(shown, grid or (lambda space: space), "")
        own = tuple(_own(env, "metric_names", ()))
        self._metrics = {name: (name,) for name in own} | {n: p for n, p in METRICS.items() if n not in own}
        self.metric_names = tuple(self._metrics)
        self.keep = (*keep, *self.info_columns)
        self.alive: Callable[[], object] = lambda: None
        """Function called after each reset, as a sign of life of the process."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and return the converted observation and the kept part of its info."""
        observation, info = _of_reset(self.env.reset(**kwargs))
        self.alive()
        return self._converted("reset", observation), self._kept(observation, info)

    def _kept(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        """Return the columns in info, and the action mask, whether it came in info or in the observation."""
        kept = {key: info[key] for key in self.keep if key in info}
        mask = observation[ACTION_MASK] if self._mask_shown else info.get(ACTION_MASK)
        if mask is not None and self._distribution.mask_size:
            try:
                kept[ACTION_MASK] = self._distribution.flat_mask(mask)
            except ValueError as error:
                raise EnvError(f"the environment says {error}: mend its {ACTION_MASK}") from error
        return kept

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take the action and return the five values, converted, with the kept part of info."""
        observation, reward, terminated, truncated, info = _of_step(self.env.step(action))
        kept = self._kept(observation, info)
        for name, (key, *rest) in self._metrics.items():
            if key in info:
                value = info[key]
                if rest:
                    value = value.get(rest[0]) if isinstance(value, dict) else None
                    if value is None:
                        continue
                kept[name] = self._number(value)
        return (
            self._converted("step", observation), _one(reward, "reward"), bool(_one(terminated, "terminated")),
            bool(_one(truncated, "truncated")), kept,
        )  # fmt: skip

    def _converted(self, method: str, observation: Any) -> Any:
        try:
            return self._convert(observation)
        except _Mismatch as error:
            raise EnvError(f"the environment's {method}() returned an observation{error}: mend one of them") from error
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise EnvError(
                f"the environment's {method}() returned an observation that its observation_space "
                f"{self._said} does not describe ({error!r}): mend one of them"
            ) from error

    @staticmethod
    def _number(value: Any) -> float:
        try:
            return float(np.asarray(value).reshape(()))
        except (TypeError, ValueError) as error:
            raise EnvError(
                f"the environment's info holds no number for one of metric_names ({error}): mend it"
            ) from error


class _Mismatch(Exception):
    """An observation does not fit its space; the message says how."""


def _one(value: Any, what: str) -> float:
    """Return a number, or an array of one element, as a float."""
    if type(value) in (float, int, bool):
        return float(value)
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "buif":
        raise EnvError(
            f"the environment's step() returned {value!r:.80} as {what}: it must be one number "
            "(--wrapper my_package.my_module:wrap can make one of it)"
        )
    return float(array.reshape(()))


def _adapted(
    space: gymnasium.Space[Any], grid: Callable[[gymnasium.Space[Any]], gymnasium.Space[Any]], where: str
) -> tuple[gymnasium.Space[Any], Callable[[Any], Any]]:
    """Return the space that is stored and a function that converts an observation to it; `where` names its keys for errors."""
    spaces = gymnasium.spaces
    if isinstance(space, spaces.Dict) and space.spaces:
        parts = {key: _adapted(part, grid, f"{where}[{key!r}]") for key, part in space.spaces.items()}
        stored: gymnasium.Space[Any] = spaces.Dict([(key, part[0]) for key, part in parts.items()])
        return stored, lambda value: {key: convert(value[key]) for key, (_, convert) in parts.items()}
    if isinstance(space, spaces.Tuple) and space.spaces:
        converters = [_adapted(part, grid, f"{where}[{i}]") for i, part in enumerate(space.spaces)]
        stored = spaces.Tuple([part for part, _ in converters])
        return stored, lambda value: tuple(c(v) for (_, c), v in zip(converters, value, strict=True))
    if is_text(space):
        words = words_of(space)

        def encode(value: Any) -> Array:
            if not isinstance(value, str):
                raise _Mismatch(f"{where} {value!r:.80}, its observation_space says {space}")
            return words.encode(value)

        return words, encode
    space = grid(space)
    spec = spec_of(space, where=where)
    least, most = _range(space)

    def cast(value: Any) -> Any:
        array = value if isinstance(value, np.ndarray) else np.asarray(value)
        if array.dtype != spec.dtype or array.shape != spec.shape:
            array = _cast(array, spec, where)
        if least is not None and not ((least <= array) & (array <= most)).all():
            raise _Mismatch(f"{where} of {array.tolist()!r:.80}, its observation_space says {space}")
        return array

    return space, cast


_RANK = {"b": 0, "u": 1, "i": 1, "f": 2}  # by the kind of dtype: a lower kind converts to a higher one


def _cast(array: Array, spec: ArraySpec, where: str) -> Array:
    """Convert to the spec's dtype, and shape if there is one element; raise _Mismatch if that loses information."""
    shaped = array.reshape(spec.shape) if array.size == 1 == int(np.prod(spec.shape)) else array
    fits = shaped.shape == spec.shape and _RANK.get(array.dtype.kind, 9) <= _RANK[spec.dtype.kind]
    if not fits and shaped.shape == spec.shape and {array.dtype.kind, spec.dtype.kind} <= {"b", "u", "i"}:
        fits = True  # integers as booleans: the comparison below decides
    if fits:
        with np.errstate(over="ignore", invalid="ignore"):
            result = shaped.astype(spec.dtype)
        if spec.dtype.kind == "f" or (result == shaped).all():
            return result
    raise _Mismatch(
        f"{where} of shape {array.shape} and dtype {array.dtype}, its observation_space says {spec.shape} and {spec.dtype}"
    )


def _range(space: gymnasium.Space[Any]) -> tuple[Any, Any]:
    """Return the least and greatest value of numbers that stand for things (codes, actions); None if any number is allowed."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return int(space.start), int(space.start) + int(space.n) - 1
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    if isinstance(space, Codes):
        return 0, space.count - 1
    return None, None


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
    made = [env if _adapter_in(env) else Adapter(env) for env in (make() for make in envs)]
    for env in made:
        if (adapter := _adapter_in(env)) is not None:
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


def _distribution_of(space: gymnasium.Space[Any]) -> Distribution:
    try:
        return distribution_for(space)
    except ValueError as error:
        raise EnvError(str(error)) from error


def _adapter_in(env: Any) -> Adapter | None:
    while env is not None and not isinstance(env, Adapter):
        env = getattr(env, "env", None)
    return env


def spec_of(space: gymnasium.Space[Any], stack: int = 1, where: str = "") -> Nested:
    """Return the nested ArraySpec of an observation space.

    Args:
        space: built of Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple.
        stack: successive frames in a Box's axis 0.
        where: the keys that lead to the space, for the error.

    Raises:
        EnvError: for any other space, and for an empty one.
    """
    spaces = gymnasium.spaces
    if isinstance(space, spaces.Dict) and space.spaces:
        return {key: spec_of(part, where=f"{where}[{key!r}]") for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple) and space.spaces:
        return tuple(spec_of(part, where=f"{where}[{i}]") for i, part in enumerate(space.spaces))
    if isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        dtype, shape = np.dtype(space.dtype), space.shape
        assert shape is not None
        if dtype.kind in _RANK and 0 not in shape:
            return ArraySpec(tuple(shape), dtype, stack)
    at = f" at observation_space{where}" if where else ""
    raise EnvError(
        f"unsupported observation space {space}{at}: use Box, Discrete, MultiDiscrete, MultiBinary, Text, or a Dict or Tuple "
        "of them (--wrapper my_package.my_module:wrap can change it or leave it out)"
    )


def _declared(vector: VectorEnv[Any, Any, Any], name: str, default: Any) -> Any:
    """Return an attribute of the vector's first environment, or of the vector itself."""
    for env in getattr(vector, "envs", ()):
        return _own(env, name, default)
    return getattr(vector, name, default)


def _own(env: Any, name: str, default: Any) -> Any:
    """Return an environment's attribute (`metric_names`, `info_columns`), searched for below its wrappers."""
    while env is not None:
        if found := getattr(env, name, None):
            return found
        env = getattr(env, "env", None)
    return default


def _columns(declared: Mapping[str, gymnasium.Space[Any]]) -> dict[str, ArraySpec]:
    """Return the specs of the columns that an environment declares by their spaces."""
    specs = {name: spec_of(space) for name, space in declared.items()}
    for name, spec in specs.items():
        if not isinstance(spec, ArraySpec):
            raise EnvError(f"the environment's info_columns[{name!r}] must be one array, got {declared[name]}")
    return specs
