"""What workers and threads report to: heartbeats, steps, seconds by stage; and the sign that tells them to stop."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Protocol

import numpy as np

from beast.core.data import ArraySpec
from beast.processes.shared import SharedArrays


class StatusBoard:
    """A board in shared memory on which workers note heartbeats, steps and seconds by stage, and read the sign to stop.

    Args:
        num_workers: entries of the board.
    """

    STAGES = ("environment", "inference", "store", "wait", "gradient")

    def __init__(self, num_workers: int) -> None:
        self._shared = SharedArrays(
            {
                "stop": ArraySpec((1,), np.dtype(np.uint8)),
                "leave": ArraySpec((num_workers,), np.dtype(np.uint8)),
                "heartbeat": ArraySpec((num_workers,), np.dtype(np.float64)),
                "steps": ArraySpec((num_workers,), np.dtype(np.int64)),
                "seconds": ArraySpec((num_workers, len(self.STAGES)), np.dtype(np.float64)),
            }
        )

    @property
    def arrays(self) -> dict[str, Any]:
        """The board's arrays by name, each with one row per worker (`stop` has one element)."""
        arrays: dict[str, Any] = self._shared.arrays
        return arrays

    def stop(self) -> None:
        """Tell every worker to stop."""
        self.arrays["stop"][0] = 1

    def seconds(self) -> dict[str, float]:
        """Return the seconds spent in each stage, summed over workers since the start."""
        return dict(zip(self.STAGES, self.arrays["seconds"].sum(0).tolist(), strict=True))


class Timed:
    """Something that times blocks as stages; subclasses say what becomes of a block that has ended."""

    @contextmanager
    def time(self, name: str, size: int = 0) -> Iterator[None]:
        """Time a block as a stage.

        Args:
            name: of the stage.
            size: how many environments the block serves, where that varies.
        """
        start = time.perf_counter()
        yield
        self._add(name, start, time.perf_counter(), size)

    def _add(self, stage: str, start: float, end: float, size: int) -> None:
        """Take a block that began and ended at these seconds of `time.perf_counter`."""
        raise NotImplementedError


class WorkerStatus(Timed):
    """One worker's view of the board. The stages that it times are `StatusBoard.STAGES`.

    Args:
        board: the shared board.
        index: the worker's row on it.
    """

    def __init__(self, board: StatusBoard, index: int) -> None:
        self._board, self.index = board, index
        self._closers: list[Callable[[], None]] = []
        self._view()

    def _view(self) -> None:
        arrays = self._board.arrays
        self._stop, self._heartbeat, self._steps = arrays["stop"], arrays["heartbeat"], arrays["steps"]
        self._leave, self._seconds = arrays["leave"], arrays["seconds"][self.index]

    def __getstate__(self) -> dict[str, Any]:
        return {"board": self._board, "index": self.index}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._board, self.index = state["board"], state["index"]
        self._closers = []
        self._view()

    @property
    def stopping(self) -> bool:
        """Whether the run is stopping."""
        return bool(self._stop[0])

    @property
    def leaving(self) -> bool:
        """Whether a new process is to replace this one: it starts no further unroll and returns once none is in progress."""
        return bool(self._leave[self.index])

    def at_end(self, close: Callable[[], None]) -> None:
        """Register a function to call when this worker ends, in whatever way except a kill."""
        self._closers.append(close)

    def close(self) -> None:
        """Call the registered functions, the last one first, and ignore their errors."""
        while self._closers:
            with suppress(Exception):
                self._closers.pop()()

    def beat(self, steps: int = 0) -> None:
        """Note that this worker is alive and has made so many steps since the last beat."""
        self._heartbeat[self.index] = time.monotonic()
        self._steps[self.index] += steps

    def _add(self, stage: str, start: float, end: float, size: int) -> None:
        self._seconds[StatusBoard.STAGES.index(stage)] += end - start


class Clock(Timed):
    """A clock that sums seconds by stage over all threads of this process."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def _add(self, stage: str, start: float, end: float, size: int) -> None:
        self.seconds[stage] += end - start


class Status(Protocol):
    """What actors and inference report to: a `WorkerStatus`, or a `LocalStatus` in the learner's process."""

    @property
    def stopping(self) -> bool:
        """Whether the run is stopping."""

    def beat(self, steps: int = 0) -> None:
        """Note a sign of life and so many steps since the last one."""

    def time(self, name: str, size: int = 0) -> AbstractContextManager[None]:
        """Time a block as a stage that serves `size` environments."""


class LocalStatus:
    """The status of actors in the learner's process: it counts nothing and times with the learner's clock.

    Args:
        stopping: returns whether the run is stopping.
        clock: the learner's clock.
    """

    def __init__(self, stopping: Callable[[], bool], clock: Clock) -> None:
        self._stopping, self._clock = stopping, clock

    @property
    def stopping(self) -> bool:
        """Whether the run is stopping."""
        return self._stopping()

    def beat(self, steps: int = 0) -> None:
        """Do nothing: nobody watches the learner's process for signs of life."""

    def time(self, name: str, size: int = 0) -> AbstractContextManager[None]:
        """Time a block as a stage of the learner's clock."""
        return self._clock.time(name, size)
