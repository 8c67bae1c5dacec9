"""The emulator alone, our group of environments around it: on one core, and on all of them at once.

The second is the ceiling of the whole program: where two hardware threads share a core it is far from cores times the first.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from typing import Any

import numpy as np

from beast.envs import EnvChoice
from benchmarks.gpu.processes import die_with

ENV = "PongNoFrameskip-v4"


def rate(processes: int, games: int, seconds: float) -> dict[str, Any]:
    """Agent steps a second of wall time, all processes together, each bound to a core of its own.

    Args:
        processes: how many, each bound to a core.
        games: number in each process.
        seconds: how long to measure.
    """
    context = multiprocessing.get_context("fork")
    together = context.Barrier(processes)
    cores = sorted(os.sched_getaffinity(0))[:processes]
    ends = []
    for core in cores:
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_step, args=(os.getpid(), core, games, seconds, together, sender), daemon=True)
        child.start()
        sender.close()  # so that the receiver sees the end when the child is gone
        ends.append((child, receiver))
    found = [receiver.recv() for _, receiver in ends]
    for child, _ in ends:
        child.join()
    sps = sum(found)
    return {
        "processes": processes,
        "games": games,
        "sps": sps,
        "sps_slowest": min(found),
        "us_per_step": processes / sps * 1e6,
    }


def _step(parent: int, core: int, games: int, seconds: float, together: Any, result: Any) -> None:
    die_with(parent)
    os.sched_setaffinity(0, {core})
    group = EnvChoice(ENV).make_vector(list(range(core * games, (core + 1) * games)))
    group.reset()
    choices = np.random.default_rng(core).integers(0, group.action_space.n, (100, games))
    group.step(choices[0])
    together.wait()
    began, steps = time.perf_counter(), 0
    while not steps or time.perf_counter() - began < seconds:
        group.step(choices[steps % len(choices)])
        steps += 1
    result.send(steps * games / (time.perf_counter() - began))
    group.close()
