"""Gradient slots: what is read was left as a whole, once, and whoever dies keeps nothing."""

from __future__ import annotations

import select

import numpy as np
import pytest
import torch

from beast.a3c.slots import MOST_METRICS, GradientSlots, GradientSource, discard
from beast.core.data import ArraySpec
from beast.core.gradients import Gradient
from beast.processes.status import Clock
from beast.store import pipes
from beast.store.unrolls import UnrollSpec, UnrollStore

SIZE, LENGTH, ACTORS = 5, 3, 4
CPU = torch.device("cpu")
SPEC = UnrollSpec(ArraySpec((1,), np.dtype(np.float32)), ArraySpec((), np.dtype(np.int64)), 1, ())


class Setting:
    """Two workers' slots and stores, a port to each, and the source."""

    def __init__(self, actors=ACTORS):
        self.slots = GradientSlots(2, SIZE, 1)
        self.stores = [UnrollStore(SPEC, actors, LENGTH) for _ in range(2)]
        self.ports = [store.attach(0, actors) for store in self.stores]
        self.source = GradientSource(self.slots, self.stores, CPU, Clock())

    def work(self, worker, value, version=7, number=0):
        """What a worker does, to the commit; returns its slots."""
        slots = self.ports[worker].acquire(timeout=1)
        arrays = self.stores[worker].arrays
        arrays["policy_version"][slots] = version
        arrays["episode_return"][slots] = np.nan
        arrays["episode_return"][slots[0], 1] = value
        arrays["episode_steps"][slots], arrays["actor"][slots] = 9, worker
        self.leave(worker, value, number)
        self.ports[worker].commit(slots)
        return slots

    def leave(self, worker, value, number=0):
        metrics = {"total_loss": torch.tensor(value), "größe": torch.tensor(2.5)}
        self.slots.put(worker, Gradient(torch.full((SIZE,), value), torch.tensor([value]), metrics), number)


@pytest.fixture
def make():
    made = []

    def make(**given):
        made.append(Setting(**given))
        return made[-1]

    return make


def test_a_gradient_arrives_with_all_that_belongs_to_it(make):
    s = make()
    s.work(1, 3.0)
    work = s.source.next(1.0)
    assert work.gradient.vector.tolist() == [3.0] * SIZE
    assert work.gradient.sums.tolist() == [3.0]
    assert {name: value.item() for name, value in work.gradient.metrics.items()} == {"total_loss": 3.0, "größe": 2.5}
    assert work.steps == ACTORS * LENGTH
    assert work.versions.unique().tolist() == [7]
    assert [(e.episode_return, e.episode_steps, e.actor) for e in work.episodes] == [(3.0, 9, 1)]
    assert work.batch is None


def test_metrics_outlive_the_slot_and_too_many_are_refused(make):
    s = make()
    s.work(0, 3.0)
    work = s.source.next(1.0)
    s.leave(0, 4.0)
    assert work.gradient.metrics["total_loss"] == 3.0
    many = {str(i): torch.tensor(0.0) for i in range(MOST_METRICS + 1)}
    for metrics in (many, {"n" * 121: torch.tensor(0.0)}):
        with pytest.raises(ValueError, match="at most"):
            s.slots.put(0, Gradient(torch.zeros(SIZE), torch.zeros(1), metrics), 0)


def test_a_worker_goes_on_only_when_its_own_gradient_was_applied(make):
    s = make()
    s.work(0, 1.0)
    s.work(1, 2.0)
    first, second = s.source.next(1.0), s.source.next(1.0)
    assert s.source.next(0.0) is None
    assert s.ports[0].acquire(timeout=0.0) is None
    s.source.done(second)
    assert s.ports[0].acquire(timeout=0.0) is None
    assert s.ports[1].acquire(timeout=1) is not None
    s.source.done(first)
    assert s.ports[0].acquire(timeout=1) is not None


def test_whoever_waits_is_served_before_anyone_comes_again(make):
    s = make()
    s.work(0, 1.0)
    s.work(1, 2.0)
    first = s.source.next(1.0)
    s.source.done(first)
    s.work(*((0, 3.0) if first.slots == (0,) else (1, 3.0)))
    assert s.source.next(1.0).slots != first.slots
    assert s.source.next(1.0).slots == first.slots


def test_later_passes_count_no_steps_and_no_games(make):
    s = make()
    s.work(0, 1.0, number=1)
    work = s.source.next(1.0)
    assert (work.steps, work.versions.numel(), work.episodes) == (0, 0, [])
    assert work.gradient.vector[0] == 1.0


def test_what_is_not_committed_is_never_seen_and_lost_with_its_worker(make):
    s = make()
    s.ports[0].acquire(timeout=1)
    s.leave(0, 1.0)  # and then it is killed
    assert s.source.next(0.05) is None
    assert discard(s.stores[0]) == ACTORS
    s.ports[0] = s.stores[0].attach(0, ACTORS)
    s.work(0, 2.0)
    assert s.source.next(1.0).gradient.vector.tolist() == [2.0] * SIZE


@pytest.mark.parametrize("seen", [False, True])
def test_what_a_dead_worker_committed_is_applied_once_before_another_writes_there(make, seen):
    s = make()
    s.work(0, 1.0)
    work = s.source.next(1.0) if seen else None
    assert discard(s.stores[0]) == 0
    s.ports[0] = s.stores[0].attach(0, ACTORS)
    assert s.ports[0].acquire(timeout=0.05) is None
    work = work or s.source.next(1.0)
    assert work.gradient.vector.tolist() == [1.0] * SIZE
    s.source.done(work)
    assert s.source.next(0.05) is None
    s.work(0, 2.0)
    assert s.source.next(1.0).gradient.vector.tolist() == [2.0] * SIZE


def test_a_commit_of_several_writes_that_a_kill_cut_off_comes_to_nothing(make):
    """One atomic write tells of fewer actors."""
    one_write = select.PIPE_BUF // pipes.INT.itemsize
    actors = one_write + 5
    s = make(actors=actors)
    slots = s.ports[0].acquire(timeout=1)
    s.ports[0].commit(slots[:one_write])
    assert s.source.next(0.05) is None
    assert discard(s.stores[0]) == actors
    s.ports[0] = s.stores[0].attach(0, actors)
    assert len(s.work(0, 2.0)) == actors
    assert s.source.next(1.0).steps == actors * LENGTH


def test_a_useless_gradient_brings_the_unrolls_that_it_comes_from(make):
    s = make()
    s.stores[0].arrays["reward"][:] = np.inf
    s.work(0, np.nan)
    work = s.source.next(1.0)
    assert work.batch.reward.shape == (LENGTH + 1, ACTORS)
    assert work.batch.reward.isinf().all()
