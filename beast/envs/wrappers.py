"""The standard wrappers for every environment: `Standard` holds their flags, `apply` puts them on.

Their order from the environment outwards: the user's own wrappers, the adapter (`beast/envs/adapter.py`), sticky actions,
action repeat, time limit, size and colours of pictures, frame stack. Wrappers that Gymnasium has are Gymnasium's.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.wrappers import FrameStackObservation, StickyAction, TimeLimit

from beast.core.data import Array
from beast.core.errors import EnvError
from beast.envs.adapter import Adapter
from beast.envs.families import codes_of, codes_space, import_member, split_wrappers
from beast.envs.old_style import as_gymnasium


@dataclass(frozen=True)
class Standard:
    """The settings of the standard wrappers, which are flags; None, False and "" add none."""

    action_repeat: int | None = None
    """Take each action for this many frames and add up their rewards (default: 4 on Atari, else 1)."""
    frame_stack: int | None = None
    """Stack this many of the newest frames as one observation (default: 4 on Atari, else 1)."""
    resize: str | None = None
    """Scale pictures to 84 (both sides) or to HEIGHTxWIDTH (default: 84 on Atari, else no scaling)."""
    grayscale: bool = False
    """Turn coloured pictures grey. (Atari's are always grey.)"""
    max_episode_steps: int | None = None
    """Truncate an episode after this many steps of the policy (default: the limit that the environment is registered with;
    27,000 on Atari)."""
    wrapper: str = ""
    """Wrap each environment in my_package.my_module:wrap, a function of yours that takes an environment and returns one;
    several are separated by commas, the innermost first. They are put on before the wrappers that flags ask for (on Atari
    after them)."""
    repeat_action_probability: float | None = None
    """Repeat the last action instead of taking the new one with this probability (sticky actions; default: 0, on Atari
    what the id says)."""

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width from `resize`: `84` or `84x84`.

        Raises:
            EnvError: if it is neither.
        """
        if self.resize is None:
            return None
        found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", self.resize)
        if not found:
            raise EnvError(f"--resize must be a size in pixels, 84 or HEIGHTxWIDTH (84x96), got {self.resize!r}")
        return int(found[1]), int(found[2] or found[1])


def apply(env: Any, standard: Standard, name: str) -> gymnasium.Env[Any, Any]:
    """Put the wrappers on an environment that `name` made.

    Raises:
        EnvError: if it is not an environment, or a wrapper cannot be found or has nothing to act on.
    """
    chosen = own(as_gymnasium(env, name), standard.wrapper)
    wrapped: gymnasium.Env[Any, Any] = as_gymnasium(chosen, f"--wrapper {standard.wrapper}")
    count = codes_of(wrapped)
    wrapped = Adapter(wrapped, lambda space: codes_space(space, count))
    if standard.repeat_action_probability:
        wrapped = StickyAction(wrapped, standard.repeat_action_probability)
    if (standard.action_repeat or 1) > 1:
        wrapped = ActionRepeat(wrapped, standard.action_repeat or 1)
    if standard.max_episode_steps:
        wrapped = TimeLimit(wrapped, standard.max_episode_steps)
    if standard.grayscale:
        wrapped = Pictures(wrapped, grey, "--grayscale")
    if (size := standard.size) is not None:
        wrapped = Pictures(wrapped, lambda picture: resized(picture, size), "--resize")
    if (standard.frame_stack or 1) > 1:
        if not isinstance(wrapped.observation_space, gymnasium.spaces.Box):
            raise EnvError(
                f"--frame_stack needs one Box as the observation, {name} has {wrapped.observation_space}: leave it out and "
                "give the model a memory (--use_lstm), or stack in a --wrapper of your own"
            )
        wrapped = FrameStackObservation(wrapped, standard.frame_stack or 1, padding_type="zero")
    return wrapped


def own(env: Any, wrappers: str) -> Any:
    """Put on the user's own wrappers, `my_pkg.my_module:wrap`: functions or classes that take an environment.

    Raises:
        EnvError: if one cannot be found.
    """
    for name in split_wrappers(wrappers):
        if ":" not in name:
            raise EnvError(f"--wrapper {name}: write it my_package.my_module:wrap")
        module, function_name = import_member(name, "--wrapper"), name.partition(":")[2]
        function = getattr(module, function_name, None)
        if not callable(function):
            raise EnvError(f"--wrapper {name}: {module.__name__} has no function {function_name!r}")
        env = function(env)
    return env


class ActionRepeat(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A wrapper that takes each action several times, until the episode ends at most, and adds up the rewards.

    Args:
        env: the environment.
        times: how often each action is taken.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], times: int) -> None:
        super().__init__(env)
        self._times = times

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take the action `times` times and return the last observation and the summed reward."""
        total, seen = 0.0, dict[str, Any]()
        for _ in range(self._times):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            seen |= info
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, seen


class Pictures(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A wrapper that changes every picture in the observation.

    Pictures are uint8: `[H, W]`, `[H, W, C]` or `[C, H, W]` with one, three or four colours.

    Args:
        env: the environment.
        change: maps `[H, W]` or `[H, W, C]` to another picture.
        flag: the flag that asked for it, for the error.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], change: Callable[[Array], Array], flag: str) -> None:
        super().__init__(env)
        self._change, self._found = change, False
        self.observation_space, self._function = self._plan(env.observation_space)
        if not self._found:
            raise EnvError(f"{flag}: there is no picture (uint8, [H, W] or [H, W, C]) in {env.observation_space}")
        # Each process has one core, for which more threads would compete.
        importlib.import_module("cv2").setNumThreads(1)

    def _plan(self, space: gymnasium.Space[Any]) -> tuple[gymnasium.Space[Any], Callable[[Any], Any]]:
        spaces = gymnasium.spaces
        if isinstance(space, spaces.Dict):
            parts = {key: self._plan(part) for key, part in space.spaces.items()}
            dict_space = spaces.Dict([(key, part) for key, (part, _) in parts.items()])
            return dict_space, lambda value: {key: function(value[key]) for key, (_, function) in parts.items()}
        if isinstance(space, spaces.Tuple):
            functions = [self._plan(part) for part in space.spaces]
            tuple_space = spaces.Tuple([part for part, _ in functions])
            return tuple_space, lambda value: tuple(f(v) for (_, f), v in zip(functions, value, strict=True))
        if not is_picture(space):
            return space, lambda value: value
        self._found = True
        shape = space.shape or ()
        first = len(shape) == 3 and shape[2] not in (1, 3, 4)

        def function(picture: Array) -> Array:
            changed = self._change(picture.transpose(1, 2, 0) if first else picture)
            return np.ascontiguousarray(changed.transpose(2, 0, 1)) if first and changed.ndim == 3 else changed

        return spaces.Box(0, 255, function(np.zeros(shape, np.uint8)).shape, np.uint8), function

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and return the changed observation."""
        observation, info = self.env.reset(**kwargs)
        return self._function(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take the action and return the changed observation."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._function(observation), reward, terminated, truncated, info


def is_picture(space: gymnasium.Space[Any]) -> bool:
    """Return whether a space holds pictures: bytes of brightness, neither codes nor bits."""
    if type(space) is not gymnasium.spaces.Box or space.dtype != np.uint8 or len(space.shape) not in (2, 3):
        return False
    colours = len(space.shape) == 2 or space.shape[2] in (1, 3, 4) or space.shape[0] in (1, 3, 4)
    return colours and int(space.high.max()) == 255


def grey(picture: Array) -> Array:
    """Convert `[H, W, 3]` or `[H, W, 4]` to grey `[H, W]` by ITU-R BT.601's weights; `[H, W]` and `[H, W, 1]` are grey."""
    if picture.ndim == 2:
        return picture
    if picture.shape[2] == 1:
        return picture[..., 0]
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    return np.rint(picture[..., :3] @ weights).astype(np.uint8)


def resized(picture: Array, size: tuple[int, int]) -> Array:
    """Resize `[H, W]` or `[H, W, C]` to another height and width; pixels of a smaller picture are means."""
    import cv2

    shape = (*size, *picture.shape[2:])
    result = cv2.resize(np.ascontiguousarray(picture), size[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(result).reshape(shape)  # OpenCV drops an axis of one colour
