"""Compute threads: each thread has its own number, and a learner that falls behind takes more of the machine."""

from __future__ import annotations

import threading

import pytest
import torch

from beast.processes.machine import usable_cores, use_compute_threads
from beast.run import assemble as assemble_module
from beast.run import learning as learning_module
from beast.run.assemble import assemble
from beast.run.learning import BEHIND
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


@pytest.mark.parametrize(("full", "more"), [(8, True), (7, False)])
def test_a_learner_that_falls_behind_takes_more_threads(monkeypatch, full: int, more: bool) -> None:
    asked: list[int] = []
    for module in (assemble_module, learning_module):
        monkeypatch.setattr(module, "use_compute_threads", asked.append)
    config, task = resolve_config(
        {"env": "Catch-v0", "num_actors": 8, "batch_size": 8, "num_actor_processes": 1, "total_steps": 160 * 3 * BEHIND}
    )
    run = assemble(config, task, None, live=False)
    monkeypatch.setattr(run.store, "fill", lambda: {"free": 0, "held": 0, "full": full})
    assert run.run() == 0
    half = max(1, usable_cores() // 2)
    assert asked == [half, half, *([min(2 * half, usable_cores())] if more else [])]  # at first this thread's, unused
