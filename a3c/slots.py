"""Gradient slots, one for each worker in shared memory, and the source that hands gradients to the learner.

Each worker also has an unroll store of its own, with room for exactly one unroll of each of its actors. The worker acquires
all of its slots, fills them, writes the gradient into its gradient slot, and commits. The parent frees the slots after the
update is published. So a worker waits until its own gradient was applied, and gradients are as safe as unrolls
(`beast/store/unrolls.py`): the learner reads one only after the commit, which is whole or does not happen; there is no lock
that a killed worker could keep; and the slots of a dead worker are taken back.
"""

from __future__ import annotations

import select
import threading
from collections import deque
from typing import Any

import numpy as np
import torch

from beast.core.data import ArraySpec
from beast.core.gradients import Gradient
from beast.processes.shared import SharedArrays
from beast.processes.status import Clock
from beast.store.sources import Work
from beast.store.unrolls import UnrollStore

MOST_METRICS = 256
_METRIC = np.dtype([("name", "S120"), ("value", np.float32)])


class GradientSlots:
    """Room for a gradient of each of W workers, in shared memory. Pickles into child processes.

    Args:
        workers: number of workers, W.
        size: length of a gradient's vector, P.
        num_sums: length of its sums for running statistics.
    """

    def __init__(self, workers: int, size: int, num_sums: int) -> None:
        real = np.dtype(np.float32)
        self._shared = SharedArrays(
            {
                "vector": ArraySpec((workers, size), real),
                "sums": ArraySpec((workers, num_sums), real),
                "pass": ArraySpec((workers,), np.dtype(np.int32)),
                "num_metrics": ArraySpec((workers,), np.dtype(np.int32)),
                "metrics": ArraySpec((workers, MOST_METRICS), _METRIC),
            }
        )

    def put(self, worker: int, gradient: Gradient, number: int) -> None:
        """Write a worker's gradient over its previous one.

        Args:
            worker: number of the worker.
            gradient: gradient on the CPU.
            number: number of the algorithm's pass over the unrolls, from 0.

        Raises:
            ValueError: if there are too many metrics, or a name is too long.
        """
        arrays = self._shared.arrays
        names = [name.encode() for name in gradient.metrics]
        if len(names) > MOST_METRICS or any(len(name) > _METRIC["name"].itemsize for name in names):
            raise ValueError(f"a gradient has at most {MOST_METRICS} metrics, with names of at most 120 letters")
        arrays["vector"][worker] = gradient.vector.numpy()
        arrays["sums"][worker] = gradient.sums.numpy()
        arrays["pass"][worker], arrays["num_metrics"][worker] = number, len(names)
        values = [float(value) for value in gradient.metrics.values()]
        arrays["metrics"][worker][: len(names)] = list(zip(names, values, strict=True))

    def get(self, worker: int, device: torch.device) -> tuple[Gradient, int]:
        """Return a worker's gradient, on the device, and the number of its pass.

        The metrics are copies; if the device is the CPU, vector and sums are the shared memory itself.
        """
        arrays = self._shared.arrays
        vector, sums = (torch.from_numpy(arrays[name][worker]).to(device) for name in ("vector", "sums"))
        named = arrays["metrics"][worker][: arrays["num_metrics"][worker]].tolist()
        metrics = {name.decode(): torch.tensor(value) for name, value in named}
        return Gradient(vector, sums, metrics), int(arrays["pass"][worker])


class GradientSource:
    """Source of gradients: one worker's at a time, and each waiting worker once before any worker twice.

    Args:
        slots: gradients of all workers.
        stores: unroll store of each worker, with the unrolls that its gradient comes from.
        device: device of the learner.
        clock: times the stages `wait` and `batch`.
    """

    def __init__(self, slots: GradientSlots, stores: list[UnrollStore], device: torch.device, clock: Clock) -> None:
        self.slots, self.stores, self._device, self._clock = slots, stores, device, clock
        self._waiting: deque[int] = deque()  # numbers of workers
        self._lock = threading.Lock()  # for the learner's threads only

    def next(self, timeout: float) -> Work | None:
        """Return the next gradient, or None if no worker commits one within `timeout` seconds."""
        with self._clock.time("wait"), self._lock:
            self._look()
            if not self._waiting:
                _wait_for_one(self.stores, timeout)
                self._look()
            if not self._waiting:
                return None
            worker = self._waiting.popleft()
        with self._clock.time("batch"):
            return self._work(worker)

    def _look(self) -> None:
        """Note which workers have committed all of their slots, and with them a gradient."""
        for worker, store in enumerate(self.stores):
            if store.next_slots(store.num_buffers, 0.0) is not None:
                self._waiting.append(worker)

    def _work(self, worker: int) -> Work:
        store, slots = self.stores[worker], all_slots(self.stores[worker])
        gradient, number = self.slots.get(worker, self._device)
        versions, episodes = torch.zeros(0, dtype=torch.int64), []
        if number == 0:  # a later pass over the same unrolls counts no steps and no games again
            versions, episodes = torch.tensor(store.arrays["policy_version"]), store.episodes(slots)
        # The unrolls of a gradient that is not finite show the reason; nobody needs those of others.
        batch = None if gradient.vector[0].isfinite() else store.read(slots)[0]
        return Work(versions.numel(), versions, episodes, batch, gradient, (worker,))

    def done(self, work: Work) -> None:
        """Let the worker go on, with the weights that its gradient has led to."""
        (worker,) = work.slots
        self.stores[worker].free(all_slots(self.stores[worker]))

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: gradients that were not applied are lost at the end of a run."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore nothing."""

    def __del__(self) -> None:
        for store in self.stores:
            store.close()


def all_slots(store: UnrollStore) -> list[int]:
    """Return the slots of a worker's store, one for each of its actors."""
    return list(range(store.num_buffers))


def discard(store: UnrollStore) -> int:
    """Take back the slots of a dead worker, and return how many unrolls were lost.

    A gradient that it committed is whole and will be applied. A commit of more slots than one atomic write can hold may be
    cut off; it is taken back too.
    """
    lost = store.detach(0)
    if 0 < lost < store.num_buffers:
        part = store.next_slots(store.num_buffers - lost, 0.0) or []
        store.free(part)
        lost += len(part)
    return lost


def _wait_for_one(stores: list[UnrollStore], timeout: float) -> None:
    poll = select.poll()
    for store in stores:
        poll.register(store.fileno(), select.POLLIN)
    poll.poll(max(timeout, 0.0) * 1000)
