"""Compute threads: each thread has its own number, and a learner that falls behind takes more where they help."""

from __future__ import annotations

import itertools
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from beast.processes.machine import use_compute_threads
from beast.run import learning as learning_module
from beast.run import trainer as trainer_module
from beast.run.assemble import assemble
from beast.run.compute_threads import AGAIN, SECONDS, SELDOM, UNITS, ComputeThreads
from beast.run.learning import Learning
from beast.run.resolve import resolve_config


def test_a_thread_keeps_its_number_whatever_others_ask_for() -> None:
    seen: list[int] = []
    told, looked = threading.Event(), threading.Event()

    def other() -> None:
        use_compute_threads(1)
        told.set()
        assert looked.wait(30)
        torch.ones(1 << 20).sum()  # PyTorch's threads are made at the first operation that could use them
        seen.append(torch.get_num_threads())

    thread = threading.Thread(target=other)
    thread.start()
    assert told.wait(30)
    before = torch.get_num_threads()
    use_compute_threads(2)
    looked.set()
    thread.join(30)
    torch.set_num_threads(before)
    assert seen == [1]


def numbers(seconds, units, waited=lambda unit: 0.0, most=2) -> list[int]:
    """The numbers of threads that each unit has, if it takes `seconds(unit, number)` after `waited(unit)` without work."""
    asked: list[int] = []
    threads, had = ComputeThreads(1, most, asked.append), []
    for unit in range(units):
        had.append(asked[-1])
        threads.note(seconds(unit, asked[-1]) + waited(unit), waited(unit))
    return had


def begins(had: list[int]) -> list[int]:
    """The units with which more threads begin."""
    return [unit for unit in range(1, len(had)) if had[unit] > had[unit - 1]]


def test_a_learner_that_limits_the_speed_takes_more_threads_if_they_are_faster() -> None:
    had = numbers(lambda unit, number: 1.0 / number, units=2000)
    assert had.index(2) == 2 * UNITS
    assert had.count(1) < 200  # the former number is tried again, for less than a window, and less and less often
    assert had[-1] == 2


def test_more_threads_that_are_no_faster_are_given_up_and_tried_less_and_less_often() -> None:
    had = numbers(lambda unit, number: 1.0, units=40 * AGAIN * UNITS)
    pauses = [after - before for before, after in itertools.pairwise(begins(had))]
    assert had.count(2) == UNITS * len(begins(had))
    assert pauses == sorted(pauses)
    assert pauses[0] == (2 * AGAIN + 2) * UNITS
    assert pauses[-1] == (SELDOM + 2) * UNITS


@pytest.mark.parametrize("seconds", [0.001, 0.005, 0.08])
@pytest.mark.parametrize("times", [40.0, 1.5])
def test_threads_that_wait_for_each_other_cost_little_time(seconds: float, times: float) -> None:
    spent = {1: 0.0, 2: 0.0}

    def take(_: int, number: int) -> float:
        spent[number] += (took := seconds * (times if number == 2 else 1.0))
        return took

    numbers(take, units=int(1000 / seconds))
    assert 0 < spent[2] < 0.03 * spent[1]


def test_threads_that_make_the_learner_faster_and_its_actors_slower_are_given_up() -> None:
    """The store holds unrolls for some time, so that the learner is faster at first and waits only then."""
    had = numbers(
        lambda unit, number: 1.0 if number == 1 else 0.5,
        units=100,
        waited=lambda unit: 0.6 if unit >= 3 * UNITS else 0.0,
    )
    assert had.count(2) == 2 * UNITS
    assert had[-1] == 1


def test_unrolls_that_come_in_bursts_do_not_look_like_a_learner_that_is_behind() -> None:
    had = numbers(lambda unit, _: 0.02, units=3000, waited=lambda unit: 0.2 if unit % 15 == 0 else 0.0)
    assert set(had) == {1}
    assert numbers(lambda unit, number: 0.02 / number, units=1000).index(2) == 2 * SECONDS / 0.02


@pytest.mark.parametrize("at", [3, 30, 60])
def test_a_stall_does_not_speak_for_more_threads(at: int) -> None:
    """Such as a checkpoint, in one of the windows that more threads are compared with."""
    had = numbers(
        lambda unit, number: 0.08 * (1.04 if number == 2 else 1.0) + (0.8 if unit == at else 0.0), units=20_000
    )
    assert 0 < had.count(2) < 0.03 * len(had)


def test_a_machine_that_is_busy_later_has_fewer_threads_again() -> None:
    had = numbers(lambda unit, number: 1.0 / number if unit < 100 else 1.0 * number, units=2000)
    assert had[99] == 2
    assert set(had[300:]) == {1, 2}
    assert had[300:].count(2) < 0.03 * len(had)


def test_where_both_are_as_fast_the_fewest_are_kept() -> None:
    had = numbers(lambda unit, number: 1.0 / number if unit < 100 else 1.0, units=2000)
    assert had[99] == 2
    assert had[300:].count(2) < 0.05 * len(had)


def test_a_learner_that_keeps_up_has_the_fewest() -> None:
    had = numbers(lambda unit, number: 1.0 / number, units=1000, waited=lambda unit: 0.0 if unit < 50 else 0.2)
    assert set(had[49 : 50 + AGAIN * UNITS]) == {2}
    assert set(had[50 + (AGAIN + 2) * UNITS :]) == {1}
    assert set(numbers(lambda unit, number: 1.0, units=1000, waited=lambda unit: 0.2)) == {1}
    assert set(numbers(lambda unit, number: 1.0, units=1000, most=1)) == {1}


class Units:
    """Work that is there at once or after a wait, by a clock of its own; the first comes late."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wait: float) -> None:
        self.now, self._wait, self._start_up = 0.0, wait, 100.0
        self.tiny = 1.0
        monkeypatch.setattr(learning_module.time, "monotonic", lambda: self.now)

    def next(self, timeout: float) -> object:
        self.now += self._wait + self._start_up
        self._start_up = 0.0
        return object()

    def learn(self, work: object, over: object) -> bool:
        self.now += 1.0
        self.tiny = float(torch.full((8,), 2e-38).mul(0.1).max())  # under the smallest normal number
        return True


@pytest.mark.parametrize(("wait", "more"), [(0.0, True), (0.2, False)])
def test_whether_the_learner_waits_decides(monkeypatch: pytest.MonkeyPatch, wait: float, more: bool) -> None:
    asked: list[int] = []
    monkeypatch.setattr(learning_module, "use_compute_threads", asked.append)
    units = Units(monkeypatch, wait)
    learning = SimpleNamespace(source=units, learn=units.learn)
    thread = threading.Thread(
        target=Learning.serve, args=(learning, 3, 6, lambda: units.now > 100.0 + 2.5 * UNITS)
    )  # because of what is set for a thread
    thread.start()
    thread.join(30)
    assert asked == ([3, 6] if more else [3])
    assert units.tiny == 0.0


@pytest.mark.parametrize(
    ("flags", "may_change"), [({}, True), ({"pace": "unroll"}, False), ({"num_learner_threads": 2}, False)]
)
def test_a_run_begins_with_half_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], may_change: bool
) -> None:
    begun: list[tuple[int, int]] = []
    monkeypatch.setattr(trainer_module, "usable_cores", lambda: 6)

    class Heard(ComputeThreads):
        def __init__(self, fewest, most, use):
            begun.append((fewest, most))
            super().__init__(1, 1, use)

    monkeypatch.setattr(learning_module, "ComputeThreads", Heard)
    own = {"env": "Catch-v0", "num_actors": 4, "num_actor_processes": 1, "total_steps": 1000}
    config, task = resolve_config(own | ({} if "pace" in flags else {"batch_size": 4}) | flags)
    assert assemble(config, task, None, live=False).run() == 0
    assert set(begun) == {(3, 6 if may_change else 3)}
    assert len(begun) == flags.get("num_learner_threads", 1)
