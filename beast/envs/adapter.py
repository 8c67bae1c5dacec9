"""Holding an environment to what its spaces say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from beast.core.data import ACTION_MASK, Array, ArraySpec
from beast.core.errors import EnvError
from beast.envs.old_style import as_space, of_reset, of_step
from beast.envs.spaces import Codes, is_text, known_distribution, spec_of, words_of

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
        self._distribution = known_distribution(self.action_space)
        shown, masks = self._said, gymnasium.spaces.MultiBinary(max(1, self._distribution.mask_size))
        self._mask_shown = isinstance(shown, gymnasium.spaces.Dict) and ACTION_MASK in shown.spaces
        self.info_columns = dict(own_attribute(env, "info_columns", {}))
        if isinstance(shown, gymnasium.spaces.Dict) and self._mask_shown and self._distribution.mask_size:
            # The action mask is not part of what the model sees.
            shown = gymnasium.spaces.Dict({key: part for key, part in shown.spaces.items() if key != ACTION_MASK})
            self.info_columns[ACTION_MASK] = masks
        self.observation_space, self._convert = _adapted(shown, grid or (lambda space: space), "")
        own = tuple(own_attribute(env, "metric_names", ()))
        self._metrics = {name: (name,) for name in own} | {n: p for n, p in METRICS.items() if n not in own}
        self.metric_names = tuple(self._metrics)
        self.keep = (*keep, *self.info_columns)
        self.alive: Callable[[], object] = lambda: None
        """Function called after each reset, as a sign of life of the process."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and return the converted observation and the kept part of its info."""
        observation, info = of_reset(self.env.reset(**kwargs))
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
        observation, reward, terminated, truncated, info = of_step(self.env.step(action))
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


def adapter_in(env: Any) -> Adapter | None:
    """Return the adapter among an environment's wrappers; None if it has none."""
    while env is not None and not isinstance(env, Adapter):
        env = getattr(env, "env", None)
    return env


def own_attribute(env: Any, name: str, default: Any) -> Any:
    """Return an environment's attribute (`metric_names`, `info_columns`), searched for below its wrappers."""
    while env is not None:
        if found := getattr(env, name, None):
            return found
        env = getattr(env, "env", None)
    return default
