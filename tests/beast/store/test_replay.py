"""The replay: what is kept, what is drawn, and what of a batch counts."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from beast.core.data import ArraySpec, Batch, flatten, map_nested
from beast.processes.status import Clock
from beast.store.batches import BatchLayout
from beast.store.replay import Replay, ReplayConfig, ReplaySource, replay_specs
from beast.store.sources import Work
from beast.store.unrolls import Episode, UnrollSpec

FLOAT32, INT64 = np.dtype(np.float32), np.dtype(np.int64)
T = 4
SPEC = UnrollSpec(
    observation={"frames": ArraySpec((3, 2, 2), np.dtype(np.uint8), stack=3), "rest": (ArraySpec((5,), FLOAT32),)},
    action=ArraySpec((2,), INT64),
    num_params=3,
    core_state=(ArraySpec((6,), FLOAT32), {"clock": ArraySpec((), np.dtype(np.float64))}),
    extra={"cost": ArraySpec((2,), FLOAT32)},
    agent_extra={"goal": ArraySpec((), FLOAT32)},
)
SMALL = UnrollSpec(ArraySpec((1,), FLOAT32), ArraySpec((), INT64), 1, ())


def unrolls(numbers, spec=SPEC):
    """A batch of unrolls that hold their own number everywhere (modulo 250, where bytes hold it); `actor` is exact."""
    numbers = torch.as_tensor(numbers)
    specs = replay_specs(spec, len(numbers), T)

    def fill(s):
        values = (numbers % 250).view(-1, *[1] * (len(s.shape) - 1)).expand(s.shape)
        return values.to(torch.from_numpy(np.zeros(0, s.dtype)).dtype).clone()

    tensors = map_nested(fill, specs) | {"actor": numbers.to(torch.int32)}
    return BatchLayout(spec).gather(tensors, torch.arange(len(numbers)))


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(flatten(tuple(left)), flatten(tuple(right)), strict=True))


def kept(replay):
    """The numbers of the unrolls that it holds, slot by slot."""
    return replay.tensors["actor"][: len(replay)].tolist()


def drawn(replay, number):
    batch, versions = replay.draw(number)
    return batch.actor.tolist(), versions


# -- between layouts --------------------------------------------------------------------------------------------------


def test_unrolls_that_are_put_into_slots_come_out_as_they_were():
    layout, batch = BatchLayout(SPEC), unrolls(range(7))
    tensors = map_nested(lambda s: torch.from_numpy(np.zeros(s.shape, s.dtype)), replay_specs(SPEC, 9, T))
    slots = torch.tensor([8, 1, 3, 0, 2, 7, 5])
    layout.scatter(tensors, slots, batch)
    assert tensors["observation"]["frames"].shape == (9, 3 + T + 1, 2, 2)  # every frame once
    assert same(layout.gather(tensors, slots), batch)
    assert same(layout.join(layout.part(batch, 0, 3), layout.part(batch, 3, 4)), batch)
    again = layout.gather(tensors, torch.tensor([3, 3]))
    assert again.actor.tolist() == [2, 2]
    assert again.observation["rest"][0].shape == (T + 1, 2, 5)
    assert again.core_state[0].shape == (2, 6)


# -- first in, first out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [1, 4, 7, 10])
@pytest.mark.parametrize("sizes", [(1,), (3,), (10,), (2, 5, 1, 23)], ids=str)
def test_the_oldest_unrolls_go_first(capacity, sizes):
    replay, number = Replay(SMALL, T, capacity, seed=1), 0
    for turn in range(9):
        size = sizes[turn % len(sizes)]
        replay.add(unrolls(range(number, number + size), SMALL))
        number += size
        assert sorted(kept(replay)) == list(range(max(0, number - capacity), number))


def test_demonstrations_never_go():
    replay = Replay(SMALL, T, capacity=4, seed=1, demonstrations=3)
    replay.tensors["actor"][:3] = torch.tensor([-1, -2, -3])
    assert len(replay) == 3
    for number in range(20):
        replay.add(unrolls([number], SMALL))
    assert kept(replay)[:3] == [-1, -2, -3]
    assert sorted(kept(replay)[3:]) == [16, 17, 18, 19]
    seen = set()
    for _ in range(50):
        batch, versions = replay.draw(5)
        seen |= set(batch.actor.tolist())
        assert versions.shape == (T, (batch.actor >= 0).sum())  # demonstrations have no age
    assert seen == {-1, -2, -3, 16, 17, 18, 19}
    only = Replay(SMALL, T, capacity=0, seed=1, demonstrations=3)
    only.add(unrolls(range(5), SMALL))
    assert len(only) == 3
    assert only.draw(2)[1].numel() == 0


# -- uniform ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("added", "demonstrations"), [(30, 0), (40, 0), (173, 0), (90, 10)])
def test_every_unroll_is_drawn_as_often_as_any_other(added, demonstrations):
    """Pearson's chi-square of 40 kinds: 39 degrees of freedom, of which 99.9 % lie between 14.9 and 73.4 (two-sided)."""
    replay = Replay(SMALL, T, 40 - demonstrations, seed=7, demonstrations=demonstrations)
    replay.tensors["actor"][:demonstrations] = torch.arange(1000, 1000 + demonstrations, dtype=torch.int32)
    for number in range(0, added, 10):
        replay.add(unrolls(range(number, min(number + 10, added)), SMALL))
    held = kept(replay)
    counts, draws = dict.fromkeys(held, 0), 0
    while draws < 400 * len(held):
        for number in drawn(replay, 16)[0]:
            counts[number] += 1
            draws += 1
    expected = draws / len(held)
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    low, high = (14.9, 73.4) if len(held) == 40 else (9.2, 60.6)  # of 29 degrees
    assert low < chi_square < high
    # Successive draws go together as often as any others do.
    assert len({tuple(drawn(replay, 2)[0]) for _ in range(2000)}) > 0.5 * min(2000, len(held) ** 2)


def test_a_seed_draws_the_same_again_and_another_one_others():
    found = []
    for seed in (3, 3, 4):
        replay = Replay(SMALL, T, 50, seed)
        replay.add(unrolls(range(50), SMALL))
        found.append([drawn(replay, 8)[0] for _ in range(5)])
    assert found[0] == found[1] != found[2]


# -- nothing is shared ------------------------------------------------------------------------------------------------


def test_what_was_drawn_stays_what_it_was():
    replay, added = Replay(SPEC, T, 4, seed=1), unrolls([1, 2, 3, 4])
    replay.add(added)
    for tensor in flatten(tuple(added)):
        tensor.zero_()  # whoever gave it may do with it what he likes
    batch, _ = replay.draw(3)
    before = Batch(*map_nested(torch.clone, tuple(batch)))
    assert set(before.actor.tolist()) <= {1, 2, 3, 4}
    for number in range(5, 20):
        replay.add(unrolls([number]))
    assert same(batch, before)


def test_threads_draw_whole_unrolls_while_others_come():
    replay, over, failures, draws = Replay(SPEC, T, 8, seed=1), threading.Event(), [], [0, 0, 0]
    replay.add(unrolls(range(8)))

    def draw(thread):
        try:
            while not over.is_set():
                batch, _ = replay.draw(5)
                assert same(batch, unrolls(batch.actor))  # all of each from one unroll
                draws[thread] += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=draw, args=(thread,)) for thread in range(3)]
    for thread in threads:
        thread.start()
    number, end = 8, time.monotonic() + 60
    while min(draws) < 50 and not failures and time.monotonic() < end:
        replay.add(unrolls(range(number, number + 3)))
        number += 3
    over.set()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert min(draws) >= 50
    assert sorted(kept(replay)) == list(range(number - 8, number))


# -- a source ---------------------------------------------------------------------------------------------------------


class Fresh:
    """Batches of `size` unrolls, numbered on; each one's version is its batch's number."""

    def __init__(self, size):
        self.size, self.number, self.heard = size, 0, []

    def next(self, timeout):
        if timeout == 0:
            return None
        numbers = torch.arange(self.size * self.number, self.size * (self.number + 1))
        batch = unrolls(numbers)._replace(policy_version=torch.full((T, self.size), self.number))
        self.number += 1
        return Work(T * self.size, batch.policy_version, [Episode(1.0, 2, {})], batch, slots=(self.number,))

    def done(self, work):
        self.heard.append(work.slots)

    def state_dict(self):
        return {"unlearned": [torch.tensor(self.number)]}

    def load_state_dict(self, state):
        self.number = int(state["unlearned"][0])


@pytest.mark.parametrize(("batch_size", "fresh"), [(2, 1), (5, 3), (8, 4), (9, 5)])
def test_fresh_unrolls_alone_count(batch_size, fresh):
    number = ReplayConfig(replay_capacity=20).unrolls(batch_size)
    assert number == batch_size - fresh
    below, replay = Fresh(fresh), Replay(SPEC, T, 20, seed=1)
    source = ReplaySource(below, replay, number, Clock())
    assert source.next(0) is None
    for update in range(12):
        work = source.next(1.0)
        full = update * fresh >= number
        assert work.batch.action.shape[1] == (batch_size if full else fresh)
        assert (work.steps, len(work.episodes)) == (T * fresh, 1)
        assert work.versions.unique().tolist() == [update]  # which the lag is counted from
        new = list(range(update * fresh, (update + 1) * fresh))
        assert work.batch.actor[:fresh].tolist() == new
        if full:
            assert work.fresh.actor.tolist() == new
            old = work.batch.actor[fresh:].tolist()
            assert all(max(0, update * fresh - 20) <= number < update * fresh for number in old)
            assert same(BatchLayout(SPEC).part(work.batch, fresh, number), work_of(old, fresh))
            assert work.replayed_versions.tolist() == [[n // fresh for n in old]] * T
        source.done(work)
        source.learned(work, number=update + 1)
    assert below.heard == [(n,) for n in range(1, 13)]
    assert source.state_dict() == {"unlearned": [torch.tensor(12)]}  # the replay is not in it
    source.load_state_dict({"unlearned": [torch.tensor(5)]})
    assert below.number == 5


def work_of(numbers, size):
    batch = unrolls(numbers)
    return batch._replace(policy_version=torch.tensor([[n // size for n in numbers]] * T))


def test_only_what_was_learned_from_is_kept():
    source = ReplaySource(Fresh(2), replay := Replay(SPEC, T, 20, seed=1), 2, Clock())
    for update in range(6):
        work = source.next(1.0)
        if update % 2:  # the others were skipped
            source.learned(work, update + 1)
    assert kept(replay) == [2, 3, 6, 7, 10, 11]


def test_ages_are_told_in_updates_since_the_last_report():
    source = ReplaySource(Fresh(1), Replay(SPEC, T, 1, seed=1), 1, Clock())
    source.learned(source.next(1.0), number=1)  # of version 0
    assert source.report() == {"replay_unrolls": 1.0}
    works = [source.next(1.0) for _ in range(3)]  # taken by three threads before any is learned from
    source.learned(works[0], number=4)  # three updates old: 4 is made with the weights of version 3
    source.learned(works[1], number=6)
    assert source.report() == {"replay_unrolls": 1.0, "replay_age_mean": 4.0, "replay_age_max": 5.0}
    assert source.report() == {"replay_unrolls": 1.0}


def test_work_that_is_a_gradient_passes():
    class Gradients(Fresh):
        def next(self, timeout):
            return super().next(timeout)._replace(batch=None)

    source = ReplaySource(Gradients(2), replay := Replay(SPEC, T, 20, seed=1), 2, Clock())
    source.learned(work := source.next(1.0), 1)
    assert work.batch is None
    assert len(replay) == 0


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_size", "ratio", "replayed"),
    [(32, 0.5, 16), (5, 0.5, 2), (2, 0.5, 1), (100, 0.29, 29), (3, 0.9, 2), (32, 0.999, 31), (1000, 0.001, 1)],
)
def test_the_replayed_part_is_rounded_down(batch_size, ratio, replayed):
    assert ReplayConfig(replay_capacity=1000, replay_ratio=ratio).unrolls(batch_size) == replayed
    assert ReplayConfig(replay_ratio=ratio).unrolls(batch_size) == 0  # without replay
    assert ReplayConfig(replay_ratio=ratio, demonstrations="there").unrolls(batch_size) == replayed


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"replay_ratio": 1.0}, "--replay_ratio must lie between 0 and 1"),
        ({"replay_ratio": 0.0}, "--replay_capacity 0 is training without replay"),
        ({"replay_ratio": float("nan")}, "--replay_ratio"),
        ({"replay_capacity": -1}, "--replay_capacity must be at least 0"),
        ({"replay_capacity": 3}, "each batch draws 4 unrolls from it"),
        ({"replay_capacity": 9, "replay_ratio": 0.1}, "less than one unroll"),
        ({"record_limit": 0}, "--record_limit"),
        ({"demonstrations": ""}, "--demonstrations must be a folder"),
    ],
)
def test_settings_that_do_not_go(settings, said):
    with pytest.raises(ValueError, match=said):
        ReplayConfig(**settings).unrolls(8)
