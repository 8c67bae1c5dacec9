"""Gymnasium spaces as plain data, so that a checkpoint holds its policy's spaces without any code of the environment."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch

from beast.envs.spaces import Codes, Words


def to_plain(space: gymnasium.Space[Any]) -> dict[str, Any]:
    """Return a space as dicts, lists, numbers, strings and tensors.

    Raises:
        ValueError: for a space that `from_plain` does not know.
    """
    spaces = gymnasium.spaces
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": {key: to_plain(part) for key, part in space.spaces.items()}}
    if isinstance(space, spaces.Tuple):
        return {"type": "Tuple", "spaces": [to_plain(part) for part in space.spaces]}
    if isinstance(space, Words):
        return {"type": "Words", "length": space.shape[0]}
    if isinstance(space, Codes):
        return {"type": "Codes", "shape": list(space.shape), "count": space.count}
    if isinstance(space, spaces.Box):
        bounds = {"low": _bound(space.low), "high": _bound(space.high)}
        return {"type": "Box", **bounds, "shape": list(space.shape), "dtype": np.dtype(space.dtype).name}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": space.n if isinstance(space.n, int) else list(space.shape)}
    if isinstance(space, spaces.Text):
        characters = "".join(sorted(space.character_set))
        return {"type": "Text", "min_length": space.min_length, "max_length": space.max_length, "charset": characters}
    raise ValueError(f"{type(space).__name__} has no plain form")


def from_plain(plain: dict[str, Any]) -> gymnasium.Space[Any]:
    """Return the space that `to_plain` described.

    Raises:
        ValueError, KeyError, TypeError: if it is not such a description.
    """
    spaces = gymnasium.spaces
    kind, settings = plain["type"], {name: value for name, value in plain.items() if name != "type"}
    if kind == "Dict":
        return spaces.Dict({key: from_plain(part) for key, part in settings["spaces"].items()})
    if kind == "Tuple":
        return spaces.Tuple([from_plain(part) for part in settings["spaces"]])
    if kind == "Box":
        shape, dtype = tuple(settings["shape"]), np.dtype(settings["dtype"])
        low, high = (_full(settings[name], shape, dtype) for name in ("low", "high"))
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(settings["n"], start=settings["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(np.array(settings["nvec"]), start=np.array(settings["start"]))
    if kind == "MultiBinary":
        return spaces.MultiBinary(settings["n"])
    if kind == "Text":
        return spaces.Text(settings["max_length"], min_length=settings["min_length"], charset=settings["charset"])
    if kind == "Words":
        return Words(settings["length"])
    if kind == "Codes":
        return Codes(tuple(settings["shape"]), settings["count"])
    raise ValueError(f"unknown space {kind!r}")


def _bound(bound: np.ndarray[Any, Any]) -> Any:
    """Return one number if all are the same, as for images."""
    if bound.size and (bound == bound.flat[0]).all():
        return bound.flat[0].item()
    return torch.from_numpy(bound.copy())


def _full(bound: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return np.broadcast_to(
        bound.numpy() if isinstance(bound, torch.Tensor) else np.asarray(bound, dtype), shape
    ).astype(dtype)
