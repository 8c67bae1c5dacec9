"""Spaces: how observations are stored, which distribution actions have, and two spaces that say more than Gymnasium's.

Those are the words of a text and the codes of a grid; models choose their layers by them.
"""

from __future__ import annotations

import re
import zlib
from typing import Any

import gymnasium
import numpy as np

from beast.core.data import Array, ArraySpec, Nested
from beast.core.distributions import Distribution, distribution_for
from beast.core.errors import EnvError

BUCKETS = 1000
"""Number of buckets into which words are hashed (the paper's language channel)."""
MAX_WORDS = 64
"""Number of words that are kept of a text."""


class Words(gymnasium.spaces.Box):
    """The words of a text as numbers: `[length]` int16, 1 to 1000 for each word, 0 after the last word.

    Args:
        length: most words.
    """

    def __init__(self, length: int) -> None:
        super().__init__(0, BUCKETS, (length,), np.int16)

    def __repr__(self) -> str:
        return f"Words({self.shape[0]})"

    def encode(self, text: str) -> Array:
        """Encode a text in lower case and without punctuation; words beyond `length` are dropped."""
        numbers = np.zeros(self.shape, np.int16)
        words = re.findall(r"\w+", text.lower())[: len(numbers)]
        # CRC-32 is the same in every process and on every machine, unlike Python's own hash.
        numbers[: len(words)] = [zlib.crc32(word.encode()) % BUCKETS + 1 for word in words]
        return numbers


class Codes(gymnasium.spaces.Box):
    """A grid of codes, to be embedded: `[H, W, C]` uint8, each 0 to count - 1.

    Args:
        shape: `(H, W, C)`.
        count: number of different codes.
    """

    def __init__(self, shape: tuple[int, ...], count: int) -> None:
        super().__init__(0, count - 1, shape, np.uint8)
        self.count = count

    def __repr__(self) -> str:
        return f"Codes({self.shape}, {self.count})"


def leaves(space: gymnasium.Space, where: str = "") -> list[tuple[str, gymnasium.Space]]:  # type: ignore[type-arg]
    """Return (keys, part) for all parts of a nested space, in the order of `beast.core.data.flatten`."""
    if isinstance(space, gymnasium.spaces.Dict):
        return [leaf for key, part in space.spaces.items() for leaf in leaves(part, f"{where}[{key!r}]")]
    if isinstance(space, gymnasium.spaces.Tuple):
        return [leaf for i, part in enumerate(space.spaces) for leaf in leaves(part, f"{where}[{i}]")]
    return [(where, space)]


def is_text(space: gymnasium.Space) -> bool:  # type: ignore[type-arg]
    """Return whether a space holds texts: Gymnasium's Text, or any space of strings (MiniGrid's missions)."""
    return space.dtype is not None and np.dtype(space.dtype).kind == "U"


def words_of(space: gymnasium.Space) -> Words:  # type: ignore[type-arg]
    """Return the space in which a text is stored."""
    characters = int(getattr(space, "max_length", 2 * MAX_WORDS))
    return Words(max(1, min(MAX_WORDS, (characters + 1) // 2)))


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
        if dtype.kind in "buif" and 0 not in shape:
            return ArraySpec(tuple(shape), dtype, stack)
    at = f" at observation_space{where}" if where else ""
    raise EnvError(
        f"unsupported observation space {space}{at}: use Box, Discrete, MultiDiscrete, MultiBinary, Text, or a Dict or Tuple "
        "of them (--wrapper my_package.my_module:wrap can change it or leave it out)"
    )


def known_distribution(space: gymnasium.Space[Any]) -> Distribution:
    """Return the distribution of an action space's actions.

    Raises:
        EnvError: if there is none.
    """
    try:
        return distribution_for(space)
    except ValueError as error:
        raise EnvError(str(error)) from error
