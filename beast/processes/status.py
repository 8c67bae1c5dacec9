"""What workers and threads report to: signs of life, steps, seconds by stage; and how they hear of the end."""

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
    """What workers tell the parent without being asked: signs of life, steps, seconds by stage; and the stop sign."""

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
        arrays: dict[str, Any] = self._shared.arrays
        return arrays

    def stop(self) -> None:
        """Ask every worker to leave."""
        self.arrays["stop"][0] = 1

    def seconds(self) -> dict[str, float]:
        """Seconds spent in each stage, summed over workers since the start."""
        return dict(zip(self.STAGES, self.arrays["seconds"].sum(0).tolist(), strict=True))


class WorkerStatus:
    """A worker's own view of the board."""

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
        return bool(self._stop[0])

    @property
    def leaving(self) -> bool:
        """Another process is to take this one's place: start no unroll any more, return when none is begun."""
        return bool(self._leave[self.index])

    def at_end(self, close: Callable[[], None]) -> None:
        """Have something called at this worker's end, however it comes, unless it is killed."""
        self._closers.append(close)

    def close(self) -> None:
        """Call what was asked for, the last first. What fails there has no consequences any more."""
        while self._closers:
            with suppress(Exception):
                self._closers.pop()()

    def beat(self, steps: int = 0) -> None:
        """I am alive, and have made that many steps since the last beat."""
        self._heartbeat[self.index] = time.monotonic()
        self._steps[self.index] += steps

    @contextmanager
    def time(self, name: str, size: int = 0) -> Iterator[None]:
        """Time a block as one of `StatusBoard.STAGES`; `size`: how many environments it serves, where that varies."""
        start = time.perf_counter()
        yield
        self._add(StatusBoard.STAGES.index(name), start, time.perf_counter(), size)

    def _add(self, stage: int, start: float, end: float, size: int) -> None:
        self._seconds[stage] += end - start


class Clock:
    """Seconds by stage, of all threads of this process together."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def time(self, name: str, size: int = 0) -> Iterator[None]:
        """Time a block; `size`: how many environments it serves, where that varies."""
        start = time.perf_counter()
        yield
        self._add(name, start, time.perf_counter(), size)

    def _add(self, stage: str, start: float, end: float, size: int) -> None:
        self.seconds[stage] += end - start


class Status(Protocol):
    """What actors and inference report to: a `WorkerStatus`, or a `LocalStatus` in the learner's process."""

    @property
    def stopping(self) -> bool: ...
    def beat(self, steps: int = 0) -> None: ...
    def time(self, name: str, size: int = 0) -> AbstractContextManager[None]: ...


class LocalStatus:
    """The status of actors that share the learner's process: it counts nothing, and times with the learner's clock.

    Args:
        stopping: whether the run is to end.
        clock: the learner's.
    """

    def __init__(self, stopping: Callable[[], bool], clock: Clock) -> None:
        self._stopping, self._clock = stopping, clock

    @property
    def stopping(self) -> bool:
        return self._stopping()

    def beat(self, steps: int = 0) -> None:
        pass

    def time(self, name: str, size: int = 0) -> AbstractContextManager[None]:
        return self._clock.time(name, size)
