"""Compute threads: each thread has its own number, and a learner that falls behind takes more where they help."""

from __future__ import annotations

import itertools
import threading
from types import SimpleNamespace

import pytest
import torch

from beast.processes.machine import use_compute_threads
from beast.run import learning as learning_module
from beast.run.compute_threads import AGAIN, SECONDS, SELDOM, UNITS, ComputeThreads
from beast.run.learning import Learning


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


def test_numbers_that_are_next_to_nothing_cost_no_time() -> None:
    kept: list[float] = []

    def compute() -> None:
        use_compute_threads(1)
        kept.append(float(torch.full((8,), 1e-38).mul(0.1).max()))  # under the smallest normal number

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join(30)
    assert kept == [0.0]


def numbers(seconds, units, waited=lambda unit: 0.0, most=2) -> list[int]:
    """The numbers of threads that each unit has, if it takes `seconds(unit, number)` after `waited(unit)` without work."""
    asked: list[int] = []
    threads, had = ComputeThreads(1, most, asked.append), []
    for unit in range(units):
        had.append(asked[-1])
        threads.note(seconds(unit, asked[-1]) + waited(unit), waited(unit))
    return had


def test_a_learner_that_limits_the_speed_takes_more_threads_if_they_are_faster() -> None:
    had = numbers(lambda unit, number: 1.0 / number, units=3 * AGAIN)
    assert set(had[:UNITS]) == {1}
    assert had.count(2) >= 3 * AGAIN - 5 * UNITS  # the former number is tried again, for less than a trial's units
    assert had[-1] == 2


def test_more_threads_that_are_no_faster_are_given_up_and_tried_less_and_less_often() -> None:
    had = numbers(lambda unit, number: 1.0, units=40 * AGAIN)
    begins = [unit for unit in range(1, len(had)) if had[unit] > had[unit - 1]]
    pauses = [after - before for before, after in itertools.pairwise(begins)]
    assert had.count(2) == UNITS * len(begins)
    assert pauses == sorted(pauses)
    assert 2 * AGAIN <= pauses[0] <= 2 * AGAIN + 2 * UNITS
    assert SELDOM <= pauses[-1] <= SELDOM + 2 * UNITS


def test_threads_that_wait_for_each_other_cost_a_few_units() -> None:
    assert numbers(lambda unit, number: 40.0 if number == 2 else 1.0, units=AGAIN).count(2) == 1


def test_threads_that_make_the_learner_faster_and_its_actors_slower_are_given_up() -> None:
    """The store holds unrolls for some time, so that the learner is faster at first and waits only then."""
    had = numbers(
        lambda unit, number: 1.0 if number == 1 else 0.5,
        units=AGAIN,
        waited=lambda unit: 0.6 if unit >= 2 * UNITS + 1 else 0.0,
    )
    assert had.count(2) == 2 * UNITS
    assert had[-1] == 1


def test_short_units_are_compared_over_some_time() -> None:
    """Unrolls come in bursts: between them the learner waits, and in one of them it does not."""
    per_burst = 15
    had = numbers(lambda unit, _: 0.02, units=1000, waited=lambda unit: 0.2 if unit % per_burst == 0 else 0.0)
    assert set(had) == {1}
    asked = numbers(lambda unit, number: 0.02 / number, units=1000)
    assert asked.index(2) == SECONDS / 0.02


def test_a_machine_that_is_busy_later_has_fewer_threads_again() -> None:
    had = numbers(lambda unit, number: 1.0 / number if unit < 100 else 1.0 * number, units=3 * AGAIN)
    assert had[99] == 2
    assert set(had[AGAIN + 3 * UNITS :]) == {1, 2}
    assert had[AGAIN + 3 * UNITS :].count(2) <= 2 * UNITS


def test_a_learner_that_keeps_up_has_the_fewest() -> None:
    had = numbers(lambda unit, number: 1.0 / number, units=2 * AGAIN, waited=lambda unit: 0.0 if unit < 50 else 0.2)
    assert set(had[49 : 50 + AGAIN]) == {2}
    assert set(had[50 + AGAIN + UNITS :]) == {1}
    assert 2 not in numbers(lambda unit, number: 1.0, units=3 * AGAIN, waited=lambda unit: 0.2)
    assert set(numbers(lambda unit, number: 1.0, units=3 * AGAIN, most=1)) == {1}


class Units:
    """Work that is there at once or after a wait, by a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wait: float) -> None:
        self.now, self._wait, self._start_up = 0.0, wait, 100.0
        monkeypatch.setattr(learning_module.time, "monotonic", lambda: self.now)

    def next(self, timeout: float) -> object:
        self.now += self._wait + self._start_up
        self._start_up = 0.0
        return object()

    def learn(self, work: object, over: object) -> bool:
        self.now += 1.0
        return True


@pytest.mark.parametrize(("wait", "more"), [(0.0, True), (0.2, False)])
def test_whether_the_learner_waits_decides(monkeypatch: pytest.MonkeyPatch, wait: float, more: bool) -> None:
    asked: list[int] = []
    monkeypatch.setattr(learning_module, "use_compute_threads", asked.append)
    monkeypatch.setattr(learning_module, "usable_cores", lambda: 8)
    units = Units(monkeypatch, wait)
    learning = SimpleNamespace(source=units, learn=units.learn, gradients=SimpleNamespace(device=torch.device("cpu")))
    Learning.serve(learning, 3, lambda: units.now > 100.0 + 1.5 * UNITS)  # type: ignore[arg-type]
    assert asked == ([3, 6] if more else [3])
