"""A3C's workers killed at any moment: what is applied was whole and right, once, and the run goes on."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from contextlib import suppress

import pytest
from checked_gradients import Checked


def kill(worker) -> None:
    """The process that fills this place now, if one does."""
    if worker.process.pid is not None and worker.process.is_alive():
        with suppress(ProcessLookupError):
            os.kill(worker.process.pid, signal.SIGKILL)


@pytest.mark.parametrize("seed", [1, 2])
def test_whenever_a_worker_is_killed_no_gradient_is_half_wrong_or_applied_twice(seed):
    """Unrolls of two steps, so that a kill as often hits gradient, slot and commit; each gradient is computed again."""
    chance = random.Random(seed)
    end = threading.Event()
    checked = Checked(num_actors=4, num_actor_processes=2, unroll_length=2, total_steps=10**9)
    run = checked.run

    def kill_now_and_then() -> None:
        while not run.learner.updates and not end.wait(0.01):
            pass
        for _ in range(8):
            if end.wait(chance.uniform(0.0, 0.6)):
                return
            kill(chance.choice(run.workers.workers))
        wait = run.learner.updates + 100
        while run.learner.updates < wait and not end.wait(0.02):
            pass
        run.stop()

    thread = threading.Thread(target=kill_now_and_then)
    thread.start()
    try:
        checked.train()
    finally:
        end.set()
        thread.join()
    assert run.workers.restarts >= 4
    last = checked.works[-60:]
    assert {work.slots for work in last} == {(0,), (1,)}  # no slot was lost


def test_a_worker_that_dies_while_its_gradient_is_being_applied(tmp_path):
    """Its successor is there before that is over, and must not write where the learner still reads."""
    kills = []

    def kill_it_and_wait(work) -> None:
        """Between the check and the application."""
        if len(checked.works) % 10 or len(kills) == 3:
            return
        (number,) = work.slots
        before = work.gradient.vector.clone()
        restarts = run.workers.restarts
        kill(run.workers.workers[number])
        while run.workers.restarts == restarts:
            time.sleep(0.02)
        time.sleep(0.3)
        assert work.gradient.vector.equal(before)
        kills.append(number)

    checked = Checked(look=kill_it_and_wait, total_steps=3_000)
    run = checked.run
    checked.train()
    assert len(kills) == 3
    assert run.workers.restarts == 3
    assert checked.learner.steps == 3_000 + (-3_000 % 40)
