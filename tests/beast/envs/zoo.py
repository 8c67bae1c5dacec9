"""Odd environments by name, for test_zoo.py: `--env zoo:make --env_kwargs '{"name": ...}'`."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, OneOf, Sequence, Text, Tuple

PICTURE = Box(0, 255, (16, 20, 3), np.uint8)
TWO = Discrete(2)

OBSERVATIONS = {
    "box": Box(-1, 1, (3,)),
    "box of float64 without bounds": Box(-np.inf, np.inf, (3,), np.float64),
    "box of float16": Box(-1, 1, (2, 2), np.float16),
    "scalar box": Box(-1, 1, ()),
    "box of int64": Box(-5, 300, (2, 3), np.int64),
    "box of int8": Box(-128, 127, (3,), np.int8),
    "box of booleans": Box(0, 1, (3,), bool),
    "discrete from minus three": Discrete(5, start=-3),
    "multi-discrete with starts": MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[0, -7], [9, 1]])),
    "multi-binary": MultiBinary((2, 3)),
    "text": Text(30),
    "text of one letter": Text(1),
    "planes first": Box(0, 1, (5, 10, 10), bool),
    "planes last": Box(0, 1, (10, 10, 12), bool),
    "picture": PICTURE,
    "grey picture": Box(0, 255, (40, 48), np.uint8),
    "picture of floats": Box(0, 1, (3, 40, 48), np.float32),
    "stack of pictures": Box(0, 255, (2, 40, 40, 3), np.uint8),
    "dict": Dict(b=PICTURE, a=Box(-1, 1, (2,)), text=Text(20), kind=Discrete(3)),
    "dict with odd keys": Dict({"a.b/c d": Discrete(3), "class": Box(-1, 1, (2,))}),
    "tuple": Tuple((Discrete(3), Dict(deep=Tuple((PICTURE, MultiBinary(2))), other=MultiDiscrete([2, 3])))),
}
ACTIONS = {
    "actions from minus one": Discrete(3, start=-1),
    "one action": Discrete(1),
    "multi-discrete actions": MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[0, -7], [9, 1]])),
    "buttons": MultiBinary((2, 2)),
    "bounded box": Box(np.float32([-2, 0]), np.float32([3, 100])),
    "box of float64 actions": Box(-2, 2, (2, 2), np.float64),
    "box without bounds": Box(-np.inf, np.inf, (2,)),
    "box with one bound": Box(np.float32([0, -np.inf]), np.float32([np.inf, 1])),
    "box of integers": Box(-2, 2, (2,), np.int32),
    "scalar action": Box(-1, 1, ()),
    "dict of actions": Dict(move=Box(-1, 1, (2,)), use=Discrete(4, start=1), keys=MultiBinary(3)),
    "tuple of choices": Tuple((Discrete(3), Dict(a=MultiDiscrete([2, 3])))),
}
REFUSED_OBSERVATIONS = {
    "graph": (Graph(Box(0, 1, (2,)), None), "Graph"),
    "sequence": (Dict(a=Tuple((TWO, Sequence(TWO)))), "observation_space['a'][1]"),
    "one of": (Dict(way=OneOf([TWO, PICTURE])), "observation_space['way']"),
    "nothing": (Dict(some=TWO, none=Box(0, 1, (0,))), "observation_space['none']"),
    "empty dict": (Dict(some=Dict()), "observation_space['some']"),
    "no space": (None, "no gymnasium.Space"),
    "large picture": (Dict(eye=Box(0, 255, (240, 320, 3), np.uint8), a=TWO), "observation_space['eye']"),
    "long vector": (Dict(eye=PICTURE, sound=Box(-1, 1, (20_000,))), "observation_space['sound']"),
    "too many choices": (Dict(eye=PICTURE, id=Discrete(10**9)), "observation_space['id']"),
}
REFUSED_ACTIONS = {
    "text action": (Text(3), "action space Text"),
    "sequence in a dict": (Dict(a=TWO, b=Sequence(TWO)), "action_space['b']"),
    "no numbers": (Dict(a=TWO, b=Box(0, 1, (0,))), "action_space['b']"),
    "too many integers": (Box(-(2**60), 2**60, (1,), np.int64), "MultiDiscrete"),
}


class Odd(gymnasium.Env[Any, Any]):
    """Random observations of any space; refuses actions that are not of its own. Episodes of seven steps."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(
        self, observation: Any, action: Any, say: Any = lambda value: value, render_mode: str | None = None
    ) -> None:
        self.observation_space, self.action_space, self.render_mode = observation, action, render_mode
        self._say, self._steps = say, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self._steps = 0
        return self._say(self.observation_space.sample()), {"misc": None}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        assert self.action_space.contains(action), (self.action_space, action)
        self._steps += 1
        over = self._steps == 7
        info = {"is_success": np.bool_(True), "episode": {"r": np.float32(3.5), "l": 7}} if over else {"misc": "text"}
        return self._say(self.observation_space.sample()), 1.0, over, False, info

    def render(self) -> Any:
        return np.zeros((32, 32, 3), np.uint8)


class Loose(Odd):
    """Says the same in other types."""

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        observation, reward, over, _, info = super().step(action)
        return observation, np.array([[reward]]), np.array([over]), 0, info


class OldSpace(NamedTuple):
    """As of the old `gym`: no class of Gymnasium's."""

    low: Any
    high: Any
    shape: Any
    dtype: Any


class DiscreteSpace(NamedTuple):
    n: int


class BoxSpace(OldSpace):
    pass


class OldClass:
    """Neither a gymnasium.Env nor its interface."""

    def __init__(self) -> None:
        self.observation_space = BoxSpace(-1.0, 1.0, (2,), np.float32)
        self.action_space = DiscreteSpace(3)
        self.generator = np.random.default_rng()

    def seed(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def reset(self) -> Any:
        self.steps = 0
        return self.generator.uniform(-1, 1, 2)

    def step(self, action: int) -> Any:
        self.steps += 1
        info = {"TimeLimit.truncated": True} if self.steps == 5 else {}
        return self.generator.uniform(-1, 1, 2), 1, self.steps == 5, info

    def render(self, mode: str = "human") -> Any:
        assert mode == "rgb_array"
        return np.zeros((32, 32, 3), np.uint8)


class HalfOld(gymnasium.Env[Any, Any]):
    """A class of Gymnasium's with the interface of the old one."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = Box(-1, 1, (2,)), TWO

    def reset(self) -> Any:  # type: ignore[override]
        self.steps = 0
        return [0.0, 0.5]

    def step(self, action: Any) -> Any:
        self.steps += 1
        return [0.0, 0.5], 1, self.steps == 5, {}


class Nameless(gymnasium.Env[Any, Any]):
    """Has no spaces."""


def lists(value: Any) -> Any:
    """Arrays as lists, whatever they are in."""
    if isinstance(value, dict):
        return {key: lists(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(lists(part) for part in value)
    return value.astype(np.float64).tolist() if isinstance(value, np.ndarray) and value.dtype.kind == "f" else (
        value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    )  # fmt: skip


OTHERS = {
    "lists and arrays of one element": lambda **k: Loose(OBSERVATIONS["dict"], TWO, lists, **k),
    "float64 for float32": lambda **k: Odd(OBSERVATIONS["box"], TWO, lambda value: value.astype(np.float64), **k),
    "python scalars": lambda **k: Odd(OBSERVATIONS["scalar box"], TWO, float, **k),
    "old class": OldClass,
    "half old class": HalfOld,
}


def make(name: str, **kwargs: Any) -> Any:
    """The environment of a name."""
    if name in OTHERS:
        return OTHERS[name](**kwargs)
    if name == "nameless":
        return Nameless()
    observations = OBSERVATIONS | {name: space for name, (space, _) in REFUSED_OBSERVATIONS.items()}
    actions = ACTIONS | {name: space for name, (space, _) in REFUSED_ACTIONS.items()}
    return Odd(observations.get(name, OBSERVATIONS["box"]) if name in observations or name in actions else None,
               actions.get(name, TWO), **kwargs)  # fmt: skip


_made: list[int] = []


def different(**kwargs: Any) -> Any:
    """Each one has one number more."""
    _made.append(0)
    return Odd(Box(-1, 1, (len(_made),)), TWO, **kwargs)
