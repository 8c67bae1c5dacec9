"""Runs that follow each other in one process leave no descriptor behind, and a worker may have very many actors."""

from __future__ import annotations

import gc
import os

import numpy as np
import pytest

from beast.core.data import ArraySpec
from beast.store.unrolls import UnrollSpec, UnrollStore

TINY = UnrollSpec(ArraySpec((1,), np.dtype(np.float32)), ArraySpec((), np.dtype(np.int64)), 1, ())
FEW = ("--env", "Catch-v0", "--num_actors", 4, "--batch_size", 4, "--total_steps", 200)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="counts descriptors in /proc")
@pytest.mark.parametrize(
    ("trainer", "processes", "runs"),
    [
        ("monobeast", 0, 4),
        ("polybeast", 0, 4),
        ("monobeast", 1, 4),
        ("polybeast", 1, 4),
        ("a3c", 1, 4),
        pytest.param("monobeast", 0, 100, marks=pytest.mark.slow),
    ],
)
def test_runs_in_one_process_leak_no_descriptor(call, trainer, processes, runs):
    gc.collect()
    gc.disable()  # what only the garbage collector would close is a leak between two of its turns
    try:
        counts = []
        for i in range(runs):
            outcome = call(*FEW, "--trainer", trainer, "--num_actor_processes", processes, "--xpid", f"run{i}")
            assert outcome.code == 0, outcome.err
            counts.append(descriptors())
    finally:
        gc.enable()
    assert counts[-1] == counts[0]


@pytest.mark.parametrize("actors", [8_193, 20_000])
def test_a_worker_may_have_more_actors_than_a_pipe_has_room_for_by_itself(actors):
    store = UnrollStore(TINY, 2 * actors, unroll_length=1)
    port = store.attach(0, actors)  # hands two groups out, before anyone reads
    slots = [port.acquire(timeout=1) for _ in range(2)]
    assert sorted(np.concatenate(slots)) == list(range(2 * actors))
    store.close()


def test_more_actors_than_any_pipe_can_hold_are_refused_with_the_way_out():
    store = UnrollStore(TINY, 1, unroll_length=1)
    with pytest.raises(MemoryError, match="--num_actor_processes"):
        store.attach(0, 1 << 28)
    store.close()
