"""Where workers leave their gradients: a slot of shared memory for each, and the source that hands them to the learner.

Whose turn it is, an unroll store for each worker says, with room for exactly one unroll of each of its actors. The worker
acquires all of its slots, fills them, leaves the gradient beside them and commits; the parent frees them when the update is
published. So a worker waits until its own gradient has been applied, and whatever keeps the account of unrolls safe
(`beast/store/unrolls.py`) keeps it for gradients: one is read only after the commit, which a worker makes as a whole or not
at all, there is no lock that it could keep, and what a dead one held is taken back.
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
    """A gradient of each of W workers, in shared memory. Pickles into child processes.

    Args:
        workers: W.
        size: P, of a gradient's vector.
        num_sums: of its sums.
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
        """Leave a gradient, over the one before it.

        Args:
            worker: whose slot it is.
            gradient: on the CPU.
            number: of the algorithm's pass over the unrolls, from 0.

        Raises:
            ValueError: if it has too many metrics, or one with too long a name.
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
        """The gradient in a slot, and the number of its pass.

        Its metrics are a copy; on the CPU its vector and sums are the slot itself.
        """
        arrays = self._shared.arrays
        vector, sums = (torch.from_numpy(arrays[name][worker]).to(device) for name in ("vector", "sums"))
        named = arrays["metrics"][worker][: arrays["num_metrics"][worker]].tolist()
        metrics = {name.decode(): torch.tensor(value) for name, value in named}
        return Gradient(vector, sums, metrics), int(arrays["pass"][worker])


class GradientSource:
    """Gradients one by one: whoever waits is served before anyone comes again.

    Args:
        slots: where they are.
        stores: each worker's, with the unrolls that its gradient comes from.
        device: the learner's.
        clock: times `wait` and `batch`.
    """

    behind = False  # gradients that wait come of many workers, which more compute threads would not help

    def __init__(self, slots: GradientSlots, stores: list[UnrollStore], device: torch.device, clock: Clock) -> None:
        self._slots, self._stores, self._device, self._clock = slots, stores, device, clock
        self._waiting: deque[int] = deque()  # workers
        self._lock = threading.Lock()  # among the learner's threads

    def next(self, timeout: float) -> Work | None:
        with self._clock.time("wait"), self._lock:
            self._look()
            if not self._waiting:
                _wait_for_one(self._stores, timeout)
                self._look()
            if not self._waiting:
                return None
            worker = self._waiting.popleft()
        with self._clock.time("batch"):
            return self._work(worker)

    def _look(self) -> None:
        """Note who has committed all of its unrolls, and with them a gradient."""
        for worker, store in enumerate(self._stores):
            if store.next_slots(store.num_buffers, 0.0) is not None:
                self._waiting.append(worker)

    def _work(self, worker: int) -> Work:
        store, slots = self._stores[worker], all_slots(self._stores[worker])
        gradient, number = self._slots.get(worker, self._device)
        versions, episodes = torch.zeros(0, dtype=torch.int64), []
        if number == 0:  # a later pass over the same unrolls has nothing more to count
            versions, episodes = torch.tensor(store.arrays["policy_version"]), store.episodes(slots)
        # What made it useless can be found out from the unrolls; otherwise nobody needs them.
        batch = None if gradient.vector[0].isfinite() else store.read(slots)[0]
        return Work(versions.numel(), versions, episodes, batch, gradient, (worker,))

    def done(self, work: Work) -> None:
        (worker,) = work.slots
        self._stores[worker].free(all_slots(self._stores[worker]))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def __del__(self) -> None:
        for store in self._stores:
            store.close()


def all_slots(store: UnrollStore) -> list[int]:
    """Of a worker's store, which has one for each of its actors."""
    return list(range(store.num_buffers))


def discard(store: UnrollStore) -> int:
    """Take back what a dead worker held; returns how many unrolls were lost.

    A gradient that it had committed is whole, and is applied. Of more slots than one atomic write holds it may have
    committed a part: that comes to nothing.
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
