"""Trees of arrays, and stacks rebuilt from frames that were stored once."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
import pytest
import torch

from beast.core.data import Batch, flatten, map_nested, restack


class Pair(NamedTuple):
    left: object
    right: object


def test_map_nested_keeps_dicts_tuples_and_named_tuples():
    tree = {"a": 1, "b": (2, {"c": 3}), "d": Pair(4, (5,)), "e": ()}
    mapped = map_nested(lambda x: 10 * x, tree)
    assert mapped == {"a": 10, "b": (20, {"c": 30}), "d": Pair(40, (50,)), "e": ()}
    assert isinstance(mapped["d"], Pair)


def test_map_nested_of_a_leaf_applies_the_function():
    assert map_nested(lambda x, y: x - y, 5, 3) == 2
    assert map_nested(len, [1, 2, 3]) == 3  # a list is a leaf


def test_map_nested_walks_several_trees_together_by_key_and_by_place():
    one = {"a": 1, "b": (2, Pair(3, 4))}
    other = {"b": (20, Pair(30, 40)), "a": 10}  # another order of keys
    assert map_nested(lambda *xs: sum(xs), one, other, other) == {"a": 21, "b": (42, Pair(63, 84))}


@pytest.mark.parametrize(
    ("other", "error"), [((1,), ValueError), ((1, 2, 3), ValueError), ({}, (KeyError, ValueError))]
)
def test_map_nested_refuses_a_tree_of_another_structure(other, error):
    with pytest.raises(error):
        map_nested(lambda x, y: None, (1, 2), other)


def test_map_nested_refuses_a_missing_key():
    with pytest.raises(KeyError, match="b"):
        map_nested(lambda x, y: None, {"a": 1, "b": 2}, {"a": 1})


def test_flatten_gives_the_leaves_in_order():
    assert flatten({"z": 1, "a": (2, Pair(3, {"k": 4})), "e": ()}) == [1, 2, 3, 4]
    assert flatten(7) == [7]
    assert flatten(()) == []


def test_model_input_hands_on_all_rows():
    fields = {name: torch.full((3, 2), float(i)) for i, name in enumerate(Batch._fields)}
    batch = Batch(**fields)
    inputs = batch.model_input()
    assert inputs.observation is batch.observation
    assert inputs.reward is batch.reward
    assert inputs.last_action is batch.last_action
    assert inputs.first is batch.first


def test_some_unrolls_of_a_batch_keep_their_fields_in_place():
    unrolls = torch.arange(5)
    rows = unrolls + 10 * torch.arange(3)[:, None]  # [T+1, B]
    fields = dict.fromkeys(Batch._fields, rows)
    nested = {
        "observation": {"a": rows, "b": (rows,)},
        "core_state": (unrolls, {"h": unrolls[:, None]}),
        "actor": unrolls,
    }
    part = Batch(**fields | nested | {"extra": {"mask": rows[:, :, None]}, "agent_extra": {}}).unrolls(slice(1, 3))
    expected = [[1, 2], [11, 12], [21, 22]]
    assert part.observation["a"].tolist() == part.observation["b"][0].tolist() == part.reward.tolist() == expected
    assert part.core_state[0].tolist() == part.core_state[1]["h"].flatten().tolist() == part.actor.tolist() == [1, 2]
    assert part.extra["mask"].shape == (3, 2, 1)
    assert part.agent_extra == {}
    assert part._replace(actor=()).unrolls(slice(0, 1)).actor == ()


def play(rng, stack, rows, frame_shape, reset_probability):
    """A frame-stacking environment over `rows` rows: (stacks [rows, stack, ...], first [rows])."""
    blank = np.zeros(frame_shape, np.uint8)
    history = deque([blank] * stack, maxlen=stack)
    stacks, first = [], []
    for row in range(rows):
        first.append(row == 0 or bool(rng.random() < reset_probability))
        if first[-1]:
            history.extend([blank] * stack)
        history.append(rng.integers(1, 256, frame_shape, dtype=np.uint8))  # never blank
        stacks.append(np.stack(history))
    return np.stack(stacks), np.array(first)


def store(stacks):
    """What the store keeps of one unroll: a blank frame, the history before row 0, a frame a row."""
    blank = np.zeros_like(stacks[:1, 0])
    return np.concatenate([blank, stacks[0, :-1], stacks[:, -1]])


@pytest.mark.parametrize("stack", [1, 2, 4])
@pytest.mark.parametrize("reset_probability", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("frame_shape", [(), (3, 2)])
def test_restack_rebuilds_what_the_environments_showed(stack, reset_probability, frame_shape):
    rng = np.random.default_rng([stack, int(10 * reset_probability)])
    rows, batch, before = 9, 5, 6
    # Each unroll begins in the middle of a longer play, so that stacks reach back before row 0.
    plays = [play(rng, stack, before + rows, frame_shape, reset_probability) for _ in range(batch)]
    shown = np.stack([stacks[before:] for stacks, _ in plays], axis=1)  # [T+1, B, stack, ...]
    first = np.stack([f[before:] for _, f in plays], axis=1)  # [T+1, B]
    frames = np.stack([store(stacks[before:]) for stacks, _ in plays])  # [B, stack + T + 1, ...]
    rebuilt = restack(torch.from_numpy(frames), torch.from_numpy(first), stack)
    assert rebuilt.dtype == torch.uint8
    assert rebuilt.shape == (rows, batch, stack, *frame_shape)
    assert np.array_equal(rebuilt.numpy(), shown)


def test_restack_of_the_first_rows_of_a_play_is_blank_before_them():
    stacks, first = play(np.random.default_rng(0), 4, 6, (2,), 0.0)
    frames = torch.from_numpy(store(stacks)).unsqueeze(0)
    rebuilt = restack(frames, torch.from_numpy(first).unsqueeze(1), 4)
    assert rebuilt[0, 0, :3].count_nonzero() == 0
    assert rebuilt[2, 0, :1].count_nonzero() == 0
    assert np.array_equal(rebuilt[:, 0].numpy(), stacks)


def test_restack_shows_no_history_across_a_reset_even_where_the_store_holds_one():
    frames = torch.arange(1, 9).view(1, 8)  # stack 4, T = 3; entry 0 is the blank one
    frames[0, 0] = 0
    first = torch.tensor([[True], [False], [True], [False]])
    assert restack(frames, first, 4)[:, 0].tolist() == [[0, 0, 0, 5], [0, 0, 5, 6], [0, 0, 0, 7], [0, 0, 7, 8]]


def test_restack_treats_each_unroll_of_a_batch_by_its_own_resets():
    frames = torch.tensor([[0, 1, 2, 3, 4], [0, 11, 12, 13, 14]])  # stack 2, T = 2
    first = torch.tensor([[False, False], [True, False], [False, True]])
    rebuilt = restack(frames, first, 2)
    assert rebuilt[:, 0].tolist() == [[1, 2], [0, 3], [3, 4]]
    assert rebuilt[:, 1].tolist() == [[11, 12], [12, 13], [0, 14]]
