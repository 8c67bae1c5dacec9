"""Dynamic batching: every waiting environment is served, in order, none twice, none lost; sizes and times are kept."""

from __future__ import annotations

import random

import pytest

from beast.polybeast.batcher import Batcher, Lockstep
from beast.polybeast.mailbox import Request


def batcher(groups: int = 4, size: int = 2, least: int = 1, most: int = 100, timeout: float = 1.0) -> Batcher:
    return Batcher(dict.fromkeys(range(groups), size), least, most, timeout)


def served(batch: list) -> list[Request]:
    return [waiting.request for waiting in batch]


def test_requests_are_served_in_order_of_arrival() -> None:
    b = batcher()
    for group in (2, 0, 3):
        assert b.add(Request(group, 1), now=0.0)
    assert served(b.next_batch(0.0)) == [(2, 1), (0, 1), (3, 1)]
    assert b.next_batch(0.0) == []
    assert b.patience(0.0) is None


def test_fewer_than_the_minimum_wait_until_the_oldest_is_out_of_time() -> None:
    b = batcher(least=5, timeout=0.5)
    b.add(Request(0, 1), now=10.0)
    b.add(Request(1, 1), now=10.2)
    assert b.next_batch(10.49) == []
    assert b.patience(10.3) == pytest.approx(0.2)
    assert served(b.next_batch(10.5)) == [(0, 1), (1, 1)]


def test_the_minimum_counts_environments_not_requests() -> None:
    b = batcher(size=3, least=5)
    b.add(Request(0, 1), now=0.0)
    assert b.next_batch(0.0) == []
    b.add(Request(1, 1), now=0.0)
    assert len(b.next_batch(0.0)) == 2


def test_a_batch_never_exceeds_the_maximum_and_leaves_the_rest_in_order() -> None:
    b = batcher(groups=5, size=2, most=5)
    for group in range(5):
        b.add(Request(group, 1), now=0.0)
    assert [r.group_id for r in served(b.next_batch(0.0))] == [0, 1]
    assert [r.group_id for r in served(b.next_batch(0.0))] == [2, 3]
    assert [r.group_id for r in served(b.next_batch(0.0))] == [4]


def test_a_group_larger_than_the_maximum_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"3 is smaller than a group of 4"):
        batcher(size=4, most=3)


def test_a_repeated_request_is_served_once() -> None:
    b = batcher()
    assert b.add(Request(0, 7), now=0.0)
    assert not b.add(Request(0, 7), now=0.1)
    assert served(b.next_batch(0.2)) == [(0, 7)]
    assert not b.add(Request(0, 7), now=0.3)
    assert b.next_batch(9.0) == []


def test_a_new_workers_request_takes_the_place_of_the_dead_ones() -> None:
    b = batcher()
    b.add(Request(0, 7), now=0.0)
    b.add(Request(1, 1), now=0.1)
    assert b.add(Request(0, 900), now=0.2)
    assert served(b.next_batch(0.2)) == [(0, 900), (1, 1)]


def test_only_one_kind_shares_a_batch_and_the_oldest_kind_goes_first() -> None:
    b = batcher()
    for group in (1, 0, 3, 2):
        b.add(Request(group, 1), now=0.0)
    assert [r.group_id for r in served(b.next_batch(0.0, lambda group: group % 2))] == [1, 3]
    assert [r.group_id for r in served(b.next_batch(0.0, lambda group: group % 2))] == [0, 2]


@pytest.mark.parametrize("seed", range(20))
def test_64_groups_of_100_requests_with_delays_and_deaths_are_each_served_exactly_once(seed: int) -> None:
    rng = random.Random(seed)
    least, most, timeout = rng.randint(1, 40), rng.randint(40, 90), 0.05
    sizes = {group: rng.randint(1, 3) for group in range(64)}
    b = Batcher(sizes, least, most, timeout)
    made = dict.fromkeys(sizes, 0)  # requests answered so far
    ticket = {group: rng.randrange(1 << 20) for group in sizes}
    ready_at = {group: rng.random() * 0.1 for group in sizes}  # when it asks next
    waiting: dict[int, float] = {}
    answered: list[Request] = []
    asked: list[Request] = []
    now = 0.0
    while any(made[g] < 100 for g in sizes):
        now += 0.002
        for group in sizes:
            if group not in waiting and made[group] < 100 and now >= ready_at[group]:
                ticket[group] += 1
                assert b.add(Request(group, ticket[group]), now)
                asked.append(Request(group, ticket[group]))
                waiting[group] = now
            elif group in waiting and rng.random() < 0.002:  # its worker dies; a new one asks afresh
                asked.remove(Request(group, ticket[group]))
                ticket[group] += 1000
                assert b.add(Request(group, ticket[group]), now)
                asked.append(Request(group, ticket[group]))
        while batch := b.next_batch(now):
            size = sum(sizes[w.request.group_id] for w in batch)
            assert size <= most
            assert size >= least or now - min(w.since for w in batch) >= timeout - 1e-9
            since = [waiting[w.request.group_id] for w in batch]
            assert since == sorted(since)
            for w in batch:
                answered.append(w.request)
                del waiting[w.request.group_id]
                made[w.request.group_id] += 1
                ready_at[w.request.group_id] = now + rng.random() * 0.02
    assert sorted(answered) == sorted(asked)
    assert len(set(answered)) == len(answered) == 64 * 100


# -- lockstep ---------------------------------------------------------------------------------------------------------


def test_in_lockstep_nobody_is_served_until_all_unfinished_groups_wait() -> None:
    unfinished = {0, 1, 2}
    b = Lockstep(dict.fromkeys(range(3), 2), lambda: unfinished)
    for group in (2, 0):
        b.add(Request(group, 1), now=0.0)
        assert b.next_batch(1e9) == []
        assert b.patience(1e9) is None  # there is nothing to do until another one asks
    b.add(Request(1, 1), now=5.0)
    assert b.patience(5.0) == 0.0
    assert served(b.next_batch(5.0)) == [(2, 1), (0, 1), (1, 1)]
    assert b.next_batch(6.0) == []


def test_in_lockstep_groups_that_finished_their_unroll_are_not_waited_for() -> None:
    unfinished = {0, 1}
    b = Lockstep(dict.fromkeys(range(3), 2), lambda: unfinished)
    b.add(Request(1, 1), now=0.0)
    assert b.next_batch(0.0) == []
    unfinished.remove(0)
    assert served(b.next_batch(0.0)) == [(1, 1)]


def test_in_lockstep_a_successor_is_waited_for_like_anybody_else() -> None:
    b = Lockstep(dict.fromkeys(range(2), 2), lambda: {0, 1})
    b.add(Request(0, 7), now=0.0)
    b.add(Request(0, 900), now=0.1)  # of a new worker, which repeats it
    assert not b.add(Request(0, 900), now=0.2)
    assert b.next_batch(0.2) == []
    b.add(Request(1, 3), now=0.3)
    assert served(b.next_batch(0.3)) == [(0, 900), (1, 3)]
