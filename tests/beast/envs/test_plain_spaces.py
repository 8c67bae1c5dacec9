"""Spaces as plain data, and back."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from gymnasium import spaces

from beast.envs.plain_spaces import from_plain, to_plain


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 255, (84, 84, 4), np.uint8),
        spaces.Box(-np.inf, np.inf, (3,), np.float32),
        spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, np.inf]), dtype=np.float64),
        spaces.Box(-2, 3, (), np.int16),
        spaces.Discrete(5, start=-2),
        spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [2, 3]]),
        spaces.MultiBinary([2, 3]),
        spaces.Text(12, min_length=0, charset="abc "),
        spaces.Dict(picture=spaces.Box(0, 1, (2, 2)), pair=spaces.Tuple([spaces.Discrete(2), spaces.MultiBinary(3)])),
    ],
    ids=str,
)
def test_a_space_comes_back_as_it_was_through_a_checkpoint(space):
    file = io.BytesIO()
    torch.save(to_plain(space), file)
    file.seek(0)
    assert from_plain(torch.load(file, weights_only=True)) == space


def test_a_space_without_a_plain_form_is_named():
    with pytest.raises(ValueError, match="Sequence"):
        to_plain(spaces.Sequence(spaces.Discrete(2)))
    with pytest.raises(ValueError, match="'Sphere'"):
        from_plain({"type": "Sphere"})
