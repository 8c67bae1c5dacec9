"""The unroll store: preallocated shared tensors, one for each field, `[num_buffers, rows, ...]`, and an account of the slots.

A slot is, at any moment, in one of these: the free list, a worker (which writes it), the full list, a batch being read.
The parent alone keeps that account. It sends free slots to each worker through that worker's own pipe, and receives full
ones through one pipe that all workers write to. A pipe write of a few integers is atomic, so there is no lock that a
killed process could keep, and the slots of a dead worker are known exactly: `detach` takes them back.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing import reduction
from typing import Any, NamedTuple

import numpy as np
import torch

from beast.core.data import Array, ArraySpec, Batch, Chosen, EnvOutput, Nested, flatten, map_nested
from beast.core.errors import StoreClosed
from beast.processes.shared import SharedArrays
from beast.store.batches import BatchLayout
from beast.store.pipes import INT, make_room, readable, write


@dataclass(frozen=True)
class UnrollSpec:
    """The specs of one step, from the environment's spaces, the policy's distribution and the model's state."""

    observation: Nested
    action: ArraySpec
    num_params: int
    core_state: Nested
    metric_names: tuple[str, ...] = ()
    extra: Mapping[str, ArraySpec] = field(default_factory=dict)
    """Columns from the environment for each row: keys of its `info` that it or the algorithm declares."""
    agent_extra: Mapping[str, ArraySpec] = field(default_factory=dict)
    """Columns from the model for each step, which it declares."""

    def slots(self, num_buffers: int, unroll_length: int) -> dict[str, Any]:
        """Return the specs of the store's arrays, `[num_buffers, ...]`."""

        def column(rows: int, shape: tuple[int, ...] = (), dtype: Any = np.float32) -> ArraySpec:
            return ArraySpec((num_buffers, rows, *shape), np.dtype(dtype))

        def observation(spec: ArraySpec) -> ArraySpec:
            if spec.stack > 1:  # a blank frame, the history before row 0, one frame for each row
                return column(spec.stack + rows, spec.shape[1:], spec.dtype)
            return column(rows, spec.shape, spec.dtype)

        steps, rows = unroll_length, unroll_length + 1
        return {
            "observation": map_nested(observation, self.observation),
            "reward": column(rows),
            "terminated": column(rows, dtype=bool),
            "truncated": column(rows, dtype=bool),
            "first": column(rows, dtype=bool),
            "last_action": column(rows, self.action.shape, self.action.dtype),
            "action": column(steps, self.action.shape, self.action.dtype),
            "behaviour_logits": column(steps, (self.num_params,)),
            "policy_version": column(steps, dtype=np.int64),
            "core_state": map_nested(lambda s: ArraySpec((num_buffers, *s.shape), s.dtype), self.core_state),
            "episode_return": column(rows),
            "episode_steps": column(rows),
            "metrics": column(rows, (len(self.metric_names),)),
            "actor": ArraySpec((num_buffers,), np.dtype(np.int32)),
            "extra": {name: column(rows, s.shape, s.dtype) for name, s in self.extra.items()},
            "agent_extra": {name: column(steps, s.shape, s.dtype) for name, s in self.agent_extra.items()},
        }


class Episode(NamedTuple):
    """A full game that ended within a batch."""

    episode_return: float
    episode_steps: int
    metrics: dict[str, float]
    actor: int = -1
    """Number of the actor that played it."""


class UnrollWriter:
    """A writer of rows into slots, in place. `slots` is `[E]` int, one slot for each actor of the caller."""

    def __init__(self, spec: UnrollSpec, arrays: dict[str, Any]) -> None:
        self._arrays = arrays
        self._stacks = map_nested(lambda s: s.stack, spec.observation)

    def begin(self, slots: Array, core_state: Nested, actors: tuple[int, ...]) -> None:
        """Store which actors write these slots, and the policy's recurrent state `[E, ...]` before row 0."""
        self._arrays["actor"][slots] = actors
        for array, state in zip(flatten(self._arrays["core_state"]), flatten(core_state), strict=True):
            array[slots] = state

    def write_env(self, slots: Array, row: int, env: EnvOutput) -> None:
        """Store the environments' side of a row."""

        def write(stack: int, array: Array, value: Array) -> None:
            if stack == 1:
                array[slots, row] = value
                return
            if row == 0:
                array[slots, 1:stack] = value[:, :-1]
            array[slots, stack + row] = value[:, -1]

        arrays = self._arrays
        map_nested(write, self._stacks, arrays["observation"], env.observation)
        arrays["reward"][slots, row] = env.reward
        arrays["terminated"][slots, row] = env.terminated
        arrays["truncated"][slots, row] = env.truncated
        arrays["first"][slots, row] = env.first
        arrays["last_action"][slots, row] = env.last_action
        arrays["episode_return"][slots, row] = env.episode_return
        arrays["episode_steps"][slots, row] = env.episode_steps
        arrays["metrics"][slots, row] = env.metrics
        for name, array in arrays["extra"].items():
            array[slots, row] = env.extra[name]

    def write_agent(self, slots: Array, row: int, chosen: Chosen, policy_version: int) -> None:
        """Store the policy's side of a row, and the version of the weights that chose the action."""
        arrays = self._arrays
        arrays["action"][slots, row] = chosen.action
        arrays["behaviour_logits"][slots, row] = chosen.logits
        arrays["policy_version"][slots, row] = policy_version
        for name, array in arrays["agent_extra"].items():
            array[slots, row] = chosen.extra[name]


class WorkerPort:
    """A worker's end of the store: it takes free slots, writes them and commits them. It pickles into a child process."""

    def __init__(self, spec: UnrollSpec, shared: SharedArrays, free_fd: int, full_fd: int, group: int) -> None:
        self._spec, self._shared, self._group = spec, shared, group
        self._free_fd, self._full_fd = free_fd, full_fd
        self.writer = UnrollWriter(spec, shared.arrays)

    def __getstate__(self) -> dict[str, Any]:
        fds = reduction.DupFd(self._free_fd), reduction.DupFd(self._full_fd)
        return {"spec": self._spec, "shared": self._shared, "fds": fds, "group": self._group}

    def __setstate__(self, state: dict[str, Any]) -> None:
        free_fd, full_fd = (fd.detach() for fd in state["fds"])
        self.__init__(state["spec"], state["shared"], free_fd, full_fd, state["group"])  # type: ignore[misc]

    def fileno(self) -> int:
        """Return the descriptor that is readable when slots are there to `acquire` (for poll)."""
        return self._free_fd

    def acquire(self, timeout: float) -> Array | None:
        """Return `[group]` free slots, or None if none come within `timeout` seconds.

        Raises:
            StoreClosed: when the parent has closed the store.
        """
        if not readable(self._free_fd, timeout):
            return None
        wanted = self._group * INT.itemsize
        data = b""
        while len(data) < wanted:  # written at once, so the rest is there or arrives immediately
            piece = os.read(self._free_fd, wanted - len(data))
            if not piece:
                raise StoreClosed("the unroll store is closed")
            data += piece
        return np.frombuffer(data, INT).astype(np.intp)

    def read(self, slots: Array) -> Batch:
        """Copy slots that this worker has written into a batch (see `UnrollStore.read`)."""
        tensors = map_nested(torch.from_numpy, self._shared.arrays)
        return BatchLayout(self._spec).gather(tensors, torch.from_numpy(slots))

    def commit(self, slots: Array) -> None:
        """Hand over slots whose rows are all written.

        Raises:
            StoreClosed: when the parent has closed the store.
        """
        try:
            write(self._full_fd, slots)
        except BrokenPipeError as error:
            raise StoreClosed("the unroll store is closed") from error


class UnrollStore:
    """The parent's side of the store: the memory, the account of slots, and the batches.

    Args:
        spec: spec of one step.
        num_buffers: number of slots; at least actors + batch_size, or actors and learner could wait for each other.
        unroll_length: T.
    """

    def __init__(self, spec: UnrollSpec, num_buffers: int, unroll_length: int) -> None:
        self.spec, self.num_buffers, self.unroll_length = spec, num_buffers, unroll_length
        self._shared = SharedArrays(spec.slots(num_buffers, unroll_length))
        self.arrays: dict[str, Any] = self._shared.arrays
        self._fill_with_absurd_values()
        self._tensors = map_nested(torch.from_numpy, self.arrays)
        self._layout = BatchLayout(spec)
        self._full_read, self._full_write = os.pipe()
        os.set_blocking(self._full_read, False)
        self._lock = threading.Lock()  # for the parent's threads only
        self._closed = False
        self._free = deque(range(num_buffers))
        self._full: deque[int] = deque()
        self._held: dict[int, set[int]] = {}  # worker -> slots that it may write
        self._groups: dict[int, int] = {}
        self._pipes: dict[int, tuple[int, int]] = {}

    def _fill_with_absurd_values(self) -> None:
        """Fill all slots with absurd values, so that a row that was not written shows in the first loss."""
        for array in flatten(self.arrays):
            if array.dtype.kind == "f":
                array.fill(np.nan)
            elif array.dtype.kind == "i":
                array.fill(np.iinfo(array.dtype).min)
            elif array.dtype.kind == "u":
                array.fill(0xAB)

        def blank(spec: ArraySpec, array: Array) -> None:
            if spec.stack > 1:
                array[:, 0] = 0  # the blank frame of `restack`; never written again

        map_nested(blank, self.spec.observation, self.arrays["observation"])

    @property
    def nbytes(self) -> int:
        """Size of the shared memory in bytes."""
        return self._shared.nbytes

    # -- workers ------------------------------------------------------------------------------------------------------

    def attach(self, worker: int, group: int) -> WorkerPort:
        """Open a port for a worker that writes `group` unrolls at a time.

        Raises:
            MemoryError: if no pipe can hold two groups of slots, which are sent before the worker reads.
        """
        free_read, free_write = os.pipe()
        make_room(free_write, 2 * group * INT.itemsize)
        with self._lock:
            self._pipes[worker] = free_read, free_write
            self._groups[worker] = group
            self._held[worker] = set()
            self._hand_out()
        return WorkerPort(self.spec, self._shared, free_read, self._full_write, group)

    def detach(self, worker: int) -> int:
        """Take back all slots of a dead worker; return how many unrolls were lost unfinished."""
        with self._lock:
            self._collect_full()  # what it committed before it died is complete and is kept
            lost = self._take_back(worker)
            self._free.extend(lost)
            del self._groups[worker]
            for fd in self._pipes.pop(worker):
                os.close(fd)
            self._hand_out()
        return len(lost)

    def _hand_out(self) -> None:
        """Send free slots to the workers that hold the fewest, a whole group at a time, at most two groups to each."""
        while self._groups:
            worker = min(self._groups, key=lambda w: len(self._held[w]) / self._groups[w])
            group = self._groups[worker]
            if len(self._free) < group or len(self._held[worker]) > group:
                return
            self._give(worker)

    def _give(self, worker: int) -> None:
        slots = [self._free.popleft() for _ in range(self._groups[worker])]
        self._held[worker].update(slots)
        write(self._pipes[worker][1], np.array(slots))

    def _take_back(self, worker: int) -> set[int]:
        return self._held.pop(worker)

    def _note_full(self, worker: int, slot: int) -> None:
        self._held[worker].remove(slot)
        self._full.append(slot)

    def _collect_full(self) -> None:
        try:
            while data := os.read(self._full_read, 1 << 16):
                for slot in np.frombuffer(data, INT).tolist():
                    for worker, held in self._held.items():
                        if slot in held:
                            self._note_full(worker, slot)
                            break
        except BlockingIOError:
            pass

    # -- batches ------------------------------------------------------------------------------------------------------

    def next_slots(self, batch_size: int, timeout: float) -> list[int] | None:
        """Return the `batch_size` oldest full slots; None if there are fewer after `timeout` seconds or the store is closed."""
        deadline = time.monotonic() + timeout
        while True:
            remaining = deadline - time.monotonic()  # before the check, so that the last one comes after the deadline
            with self._lock:
                if self._closed:  # its descriptors may belong to another file by now
                    return None
                self._collect_full()
                self._hand_out()
                if len(self._full) >= batch_size:
                    return [self._full.popleft() for _ in range(batch_size)]
            if remaining <= 0:
                return None
            readable(self._full_read, remaining)

    def read(self, slots: list[int]) -> tuple[Batch, list[Episode]]:
        """Copy slots into a batch; they stay taken until `free`. Stacked observations are still frames (see `restack`)."""
        return self._layout.gather(self._tensors, torch.tensor(slots)), self.episodes(slots)

    def free(self, slots: list[int]) -> None:
        """Free slots that were read, so that workers may write them again."""
        with self._lock:
            self._free.extend(slots)
            self._hand_out()

    def fileno(self) -> int:
        """Return a file descriptor that is readable when unrolls were committed (for poll)."""
        return self._full_read

    def episodes(self, slots: list[int]) -> list[Episode]:
        """Return the full games that ended in slots, which stay taken."""
        returns = self.arrays["episode_return"][slots, 1:]  # row 0 repeats row T of the previous unroll
        names = self.spec.metric_names
        return [
            Episode(
                float(returns[b, t]),
                int(self.arrays["episode_steps"][slots[b], t + 1]),
                dict(zip(names, self.arrays["metrics"][slots[b], t + 1].tolist(), strict=True)),
                int(self.arrays["actor"][slots[b]]),
            )
            for b, t in np.argwhere(~np.isnan(returns))
        ]

    def unlearned(self) -> list[torch.Tensor]:
        """Return a copy of the complete unrolls that no batch has taken yet, oldest first: each field `[n, ...]`."""
        with self._lock:
            self._collect_full()
            slots = list(self._full)
        return [tensor[slots] for tensor in flatten(self._tensors)]

    def put_back(self, fields: list[torch.Tensor]) -> None:
        """Restore what `unlearned` returned. Call it before any worker is attached."""
        slots = [self._free.popleft() for _ in range(len(fields[0]))]
        for tensor, values in zip(flatten(self._tensors), fields, strict=True):
            if tensor is self._tensors["metrics"]:  # an older version stored fewer metrics
                tensor[slots] = torch.nan
                tensor[slots, :, : values.shape[2]] = values
            else:
                tensor[slots] = values
        self._full.extend(slots)

    def fill(self) -> dict[str, int]:
        """Return how many slots are free, with workers, and full."""
        with self._lock:
            self._collect_full()
            held = sum(len(slots) for slots in self._held.values())
            return {"free": len(self._free), "held": held, "full": len(self._full)}

    def close(self) -> None:
        """Close the pipes: waiting workers see the end, and so does `next_slots` when its time is up."""
        with self._lock:
            self._closed = True
            for fds in self._pipes.values():
                for fd in fds:
                    os.close(fd)
            self._pipes.clear()
            self._groups.clear()
            os.close(self._full_read)
            os.close(self._full_write)
