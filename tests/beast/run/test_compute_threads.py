"""Compute threads: each thread has its own number, and a learner that falls behind takes more where they help."""

from __future__ import annotations

import threading

import pytest
import torch

from beast.processes.machine import usable_cores, use_compute_threads
from beast.run import assemble as assemble_module
from beast.run import learning as learning_module
from beast.run.assemble import assemble
from beast.run.compute_threads import AGAIN, TRIAL, ComputeThreads
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


def numbers(seconds, units, behind=lambda unit: True, most=2) -> list[int]:
    """The numbers of threads that each unit has, if a unit takes `seconds(unit, number)`."""
    asked: list[int] = []
    threads, had = ComputeThreads(1, most, asked.append), []
    for unit in range(units):
        had.append(asked[-1])
        threads.note(seconds(unit, asked[-1]), behind(unit))
    return had


def test_a_learner_that_falls_behind_takes_more_threads_if_they_are_faster() -> None:
    had = numbers(lambda unit, number: 1.0 / number, units=3 * AGAIN)
    assert set(had[:TRIAL]) == {1}
    assert had.count(2) >= 3 * AGAIN - 5 * TRIAL  # the former number is tried again, for less than a trial's units
    assert had[-1] == 2


def test_more_threads_that_are_no_faster_are_given_up() -> None:
    had = numbers(lambda unit, number: 1.0, units=3 * AGAIN)
    assert had.count(2) == 3 * TRIAL


def test_threads_that_wait_for_each_other_cost_a_few_units() -> None:
    assert numbers(lambda unit, number: 40.0 if number == 2 else 1.0, units=3 * AGAIN).count(2) == 3


def test_a_machine_that_is_busy_later_has_fewer_threads_again() -> None:
    had = numbers(lambda unit, number: 1.0 / number if unit < 100 else 1.0 * number, units=3 * AGAIN)
    assert had[99] == 2
    assert set(had[AGAIN + 2 * TRIAL :]) == {1, 2}
    assert had[AGAIN + 2 * TRIAL :].count(2) <= 2 * TRIAL


def test_a_learner_that_keeps_up_has_the_fewest() -> None:
    had = numbers(lambda unit, number: 1.0 / number, units=2 * AGAIN, behind=lambda unit: unit < 50)
    assert set(had[49 : 50 + AGAIN]) == {2}
    assert set(had[50 + AGAIN :]) == {1}
    assert 2 not in numbers(lambda unit, number: 1.0, units=3 * AGAIN, behind=lambda unit: unit % TRIAL > 0)
    assert set(numbers(lambda unit, number: 1.0, units=3 * AGAIN, most=1)) == {1}


@pytest.mark.parametrize(("full", "more"), [(8, True), (7, False)])
def test_whether_a_batch_waits_decides(monkeypatch, full: int, more: bool) -> None:
    asked: list[int] = []
    for module in (assemble_module, learning_module):
        monkeypatch.setattr(module, "use_compute_threads", asked.append)
    config, task = resolve_config(
        {"env": "Catch-v0", "num_actors": 8, "batch_size": 8, "num_actor_processes": 1, "total_steps": 160 * 3 * TRIAL}
    )
    run = assemble(config, task, None, live=False)
    monkeypatch.setattr(run.store, "fill", lambda: {"free": 0, "held": 0, "full": full})
    assert run.run() == 0
    half = max(1, usable_cores() // 2)
    assert asked[:2] == [half, half]  # this thread's, unused, and the learner's
    assert asked[2:3] == ([2 * half] if more and usable_cores() > half else [])
