"""Rounds: everybody delivers once, nobody twice, and the next one begins when the source hears that the update is published."""

from __future__ import annotations

import random

import numpy as np
import pytest

from beast.core.data import ArraySpec
from beast.processes.status import Clock
from beast.store.pipes import readable
from beast.store.rounds import RoundSource, RoundStore
from beast.store.unrolls import UnrollSpec, WorkerPort

TINY = UnrollSpec(ArraySpec((1,), np.dtype(np.float32)), ArraySpec((), np.dtype(np.int64)), 1, ())
GROUPS = {0: (0, 1), 1: (2,), 2: (3, 4, 5)}  # port -> actors
NUM_ACTORS = 6


@pytest.fixture
def make_store():
    stores = []

    def make(num_buffers: int = NUM_ACTORS) -> RoundStore:
        stores.append(RoundStore(TINY, num_buffers, unroll_length=2))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def attached(store: RoundStore) -> dict[int, WorkerPort]:
    return {port: store.attach(port, len(actors)) for port, actors in GROUPS.items()}


def deliver(store: RoundStore, ports: dict[int, WorkerPort], port: int, version: int = 0) -> None:
    """One group of unrolls; what is in them does not matter, but who wrote them."""
    slots = ports[port].acquire(timeout=0)
    assert slots is not None
    ports[port].writer.begin(slots, (), GROUPS[port])
    store.arrays["episode_return"][slots] = np.nan
    store.arrays["policy_version"][slots] = version
    ports[port].commit(slots)


@pytest.mark.parametrize("num_buffers", [NUM_ACTORS, 4 * NUM_ACTORS])
def test_a_port_gets_one_group_a_round_however_many_slots_are_free(make_store, num_buffers):
    store = make_store(num_buffers)
    ports = attached(store)
    for port in (2, 0):
        deliver(store, ports, port)
    assert store.next_slots(NUM_ACTORS, timeout=0) is None
    assert [port for port in GROUPS if ports[port].acquire(timeout=0) is not None] == [1]


def test_the_next_round_begins_with_free_and_not_before(make_store):
    store = make_store()
    ports = attached(store)
    for _ in range(3):
        for port in GROUPS:
            deliver(store, ports, port)
        slots = store.next_slots(NUM_ACTORS, timeout=0)
        assert sorted(slots) == list(range(NUM_ACTORS))
        store.read(slots)
        assert store.next_slots(1, timeout=0) is None
        assert all(port.acquire(timeout=0) is None for port in ports.values())
        store.free(slots)


def test_the_successor_of_one_that_delivered_waits_for_the_next_round(make_store):
    store = make_store()
    ports = attached(store)
    deliver(store, ports, 0)
    assert store.detach(0) == 0
    ports[0] = store.attach(0, 2)
    assert ports[0].acquire(timeout=0) is None
    for port in (1, 2):
        deliver(store, ports, port)
    assert ports[0].acquire(timeout=0) is None
    store.free(store.next_slots(NUM_ACTORS, timeout=0))
    assert len(ports[0].acquire(timeout=0)) == 2


@pytest.mark.parametrize("begun", [False, True])
def test_the_successor_of_one_that_did_not_deliver_does_so_in_the_same_round(make_store, begun):
    store = make_store()
    ports = attached(store)
    for port in (0, 1):
        deliver(store, ports, port)
    if begun:
        ports[2].acquire(timeout=0)
    assert store.detach(2) == 3
    ports[2] = store.attach(2, 3)
    deliver(store, ports, 2)
    assert sorted(store.next_slots(NUM_ACTORS, timeout=0)) == list(range(NUM_ACTORS))


def test_of_a_commit_that_was_cut_off_nothing_counts(make_store):
    store = make_store()
    ports = attached(store)
    slots = ports[2].acquire(timeout=0)
    ports[2].commit(slots[:2])  # large groups need several writes
    assert store.detach(2) == 3
    assert store.fill() == {"free": 3, "held": 3, "full": 0}
    ports[2] = store.attach(2, 3)
    for port in GROUPS:
        deliver(store, ports, port)
    assert sorted(store.next_slots(NUM_ACTORS, timeout=0)) == list(range(NUM_ACTORS))


def test_the_source_orders_by_actor_and_waits_until_it_hears_of_the_publication(make_store):
    store = make_store()
    ports = attached(store)
    source = RoundSource(store, NUM_ACTORS, Clock())
    for order in ((2, 0, 1), (1, 2, 0)):
        deliver(store, ports, order[0])
        assert source.next(timeout=0) is None
        for port in order[1:]:
            deliver(store, ports, port)
        work = source.next(timeout=0)
        assert work.batch.actor.tolist() == list(range(NUM_ACTORS))
        assert work.steps == 2 * NUM_ACTORS
        assert all(port.acquire(timeout=0) is None for port in ports.values())
        source.done(work)


@pytest.mark.parametrize("seed", range(20))
def test_whoever_dies_whenever_each_actor_is_in_each_batch_once(make_store, seed):
    chance, store = random.Random(seed), make_store()
    ports, source = attached(store), RoundSource(store, NUM_ACTORS, Clock())
    batches = deaths = 0
    while batches < 30:
        port, what = chance.choice(list(GROUPS)), chance.random()
        if what < 0.3:
            if chance.random() < 0.5:
                ports[port].acquire(timeout=0)
            store.detach(port)
            ports[port] = store.attach(port, len(GROUPS[port]))
            deaths += 1
        elif readable(ports[port].fileno(), timeout=0):
            deliver(store, ports, port, version=batches)
        if work := source.next(timeout=0):
            assert work.batch.actor.tolist() == list(range(NUM_ACTORS))
            assert set(work.versions.flatten().tolist()) == {batches}
            batches += 1
            source.done(work)
    assert deaths > 20
