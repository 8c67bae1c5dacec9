"""The timeline of a run: which process and thread did what, and when.

Workers and threads always measure the seconds of each stage. With a `Trace` they also keep when each block began and
ended: workers in rings in shared memory, threads in their clock.
"""

from __future__ import annotations

import json
import os
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from beast.core.data import Array, ArraySpec
from beast.processes.shared import SharedArrays
from beast.processes.status import Clock, StatusBoard, WorkerStatus
from beast.processes.supervisor import Worker
from beast.report.files import write_atomically

CAPACITY = 1 << 16  # newest events kept for each worker: 1.5 MB, about a minute of the fastest worker

_EVENT = np.dtype([("stage", np.int32), ("size", np.int32), ("start", np.float64), ("end", np.float64)])


class Event(NamedTuple):
    """One timed block; times are seconds of `time.perf_counter`, which all processes share on Linux."""

    stage: str
    start: float
    end: float
    size: int


class TracedClock(Clock):
    """A clock that also keeps every block, by thread."""

    def __init__(self) -> None:
        super().__init__()
        self.events: dict[tuple[int, str], list[Event]] = defaultdict(list)

    def _add(self, stage: str, start: float, end: float, size: int) -> None:
        super()._add(stage, start, end, size)
        thread = threading.current_thread()
        self.events[thread.native_id or 0, thread.name].append(Event(stage, start, end, size))


class Ring:
    """The newest events of one worker, in shared memory, so that they outlive it.

    Args:
        capacity: most events to keep.
    """

    def __init__(self, capacity: int) -> None:
        count = ArraySpec((1,), np.dtype(np.int64))
        self._shared = SharedArrays({"count": count, "events": ArraySpec((capacity,), _EVENT)})

    def add(self, stage: int, start: float, end: float, size: int) -> None:
        """Add an event. Only the worker that owns the ring may call this."""
        arrays = self._shared.arrays
        events, number = arrays["events"], int(arrays["count"][0])
        events[number % len(events)] = stage, size, start, end
        arrays["count"][0] = number + 1

    def read(self) -> tuple[list[Event], bool]:
        """Return the events, oldest first, and whether older ones were overwritten. Call it when the worker has ended."""
        events: Array = self._shared.arrays["events"]
        number = int(self._shared.arrays["count"][0])
        overwritten = number > len(events)
        kept = np.roll(events, -(number % len(events))) if overwritten else events[:number]
        found = [Event(StatusBoard.STAGES[stage], start, end, size) for stage, size, start, end in kept.tolist()]
        return found, overwritten


class TracedStatus(WorkerStatus):
    """A worker's view of the status board that also keeps every block in a ring."""

    def __init__(self, board: StatusBoard, index: int, ring: Ring) -> None:
        super().__init__(board, index)
        self._ring = ring

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"ring": self._ring}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._ring = state["ring"]

    def _add(self, stage: str, start: float, end: float, size: int) -> None:
        super()._add(stage, start, end, size)
        self._ring.add(StatusBoard.STAGES.index(stage), start, end, size)


class Trace:
    """The record of all timed blocks of a run, kept if it is passed to `assemble`.

    Args:
        capacity: most events to keep for each worker.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.clock = TracedClock()
        self._capacity = capacity
        self._rings: dict[int, Ring] = {}

    def status_of(self, board: StatusBoard, index: int) -> WorkerStatus:
        """Return the status for the worker at this index of the board; a replacement at the same index continues its ring."""
        if index not in self._rings:
            self._rings[index] = Ring(self._capacity)
        return TracedStatus(board, index, self._rings[index])

    def write(self, path: Path, start: float, end: float, workers: list[Worker]) -> list[str]:
        """Write the blocks between `start` and `end`, cut off there, as JSON for chrome://tracing and Perfetto.

        Args:
            path: file to write.
            start: in seconds of `time.perf_counter`.
            end: in seconds of `time.perf_counter`.
            workers: workers to include; they must have ended.

        Returns:
            Names of the workers whose ring was too small to hold all their events.

        Raises:
            OSError: if the file cannot be written.
        """
        file = _File(start, end)
        file.name_process(os.getpid(), "trainer", 0)
        for (thread, name), events in self.clock.events.items():
            file.add(os.getpid(), thread, name, events)
        too_small = []
        for order, worker in enumerate(workers, 1):
            file.name_process(worker.process.pid, worker.name, order)
            events, overwritten = self._rings[worker.index].read()
            file.add(worker.process.pid, worker.process.pid, worker.name, events)
            if overwritten and events[0].start > start:
                too_small.append(worker.name)
        content = json.dumps({"traceEvents": file.events, "displayTimeUnit": "ms"}, separators=(",", ":"))
        write_atomically(path, lambda out: out.write(content.encode()))
        return too_small


class _File:
    """The content of a trace file, with times in microseconds since `start`."""

    def __init__(self, start: float, end: float) -> None:
        self._start, self._end = start, end
        self.events: list[dict[str, Any]] = []

    def name_process(self, pid: int, name: str, order: int) -> None:
        self._say("process_name", pid, 0, name=name)
        self._say("process_sort_index", pid, 0, sort_index=order)

    def add(self, pid: int, thread: int, name: str, events: list[Event]) -> None:
        self._say("thread_name", pid, thread, name=name)
        for event in events:
            begin, end = max(event.start, self._start), min(event.end, self._end)
            if begin >= end:
                continue
            at, until = (round((moment - self._start) * 1e9) for moment in (begin, end))
            row = {
                "name": event.stage, "ph": "X", "pid": pid, "tid": thread, "ts": at / 1e3, "dur": (until - at) / 1e3,
            }  # fmt: skip
            self.events.append(row | ({"args": {"batch_size": event.size}} if event.size else {}))

    def _say(self, what: str, pid: int, thread: int, **args: Any) -> None:
        self.events.append({"name": what, "ph": "M", "pid": pid, "tid": thread, "args": args})
