"""Child processes: start, name, watch, restart and stop them; hand their errors back.

Children are forked from a small server process that has imported torch once (`forkserver.py`, `children.py`), so that each
costs milliseconds and a few megabytes. They pass over the signals that a terminal or a user sends to a whole group (the
parent decides), and are gone when the parent is, with all that their environments started.
"""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from beast import children
from beast.children import LOST, PRELOAD, ForkServerLost, Process
from beast.data import ArraySpec
from beast.envs import EnvError
from beast.shared import SharedArrays
from beast.system import allow_open_files
from beast.unrolls import StoreClosed

__all__ = ["NICENESS", "PRELOAD", "Board", "Context", "Worker", "WorkerError", "Workers", "warm_up"]

NICENESS = 10  # of workers, so that on a full machine the learner never waits for a core
CLOSE_DEADLINE = 10.0  # seconds that a worker's environments have to close, where nobody waits for it
MOST_AWAY = 1.0  # seconds between two looks at the workers; if it is more, this process was stopped or busy itself
MEMORY_EVERY = 2.0  # seconds between looks at their memory
_PR_SET_NAME = 15


class WorkerError(RuntimeError):
    """A worker failed for good. `details` holds its own traceback, or is empty."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class Board:
    """What workers tell the parent without being asked: signs of life, steps, seconds by stage; and the stop sign."""

    STAGES = ("environment", "inference", "store", "wait")

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


class Context:
    """A worker's own view of the board."""

    def __init__(self, board: Board, index: int) -> None:
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
    def stage(self, name: str, size: int = 0) -> Iterator[None]:
        """Time a block as one of `Board.STAGES`; `size`: how many environments it serves, where that varies."""
        start = time.perf_counter()
        yield
        self._add(Board.STAGES.index(name), start, time.perf_counter(), size)

    def _add(self, stage: int, start: float, end: float, size: int) -> None:
        self._seconds[stage] += end - start


@dataclass
class Worker:
    """One place that a process fills, and the process that fills it now."""

    name: str
    index: int
    target: Callable[..., None]
    make_arguments: Callable[[int], tuple[Any, ...]]
    """From how often it was restarted to the target's arguments after its Context."""
    on_exit: Callable[[], str]
    """Called once its process is dead; says what was lost."""
    leaves: bool = False
    """It looks at `Context.leaving`, so that it can be replaced when its memory has grown too much."""
    process: Any = None
    errors: Any = None
    restarts: deque[float] = field(default_factory=deque)
    count: int = 0
    first_step: int = 0
    """Steps of those before it."""
    held: float = 0.0
    """MB, when it was asked to leave."""


class Workers:
    """All children of a run.

    Args:
        board: shared with them.
        max_restarts: within `window` seconds; one more death is a WorkerError.
        timeout: seconds without a sign of life after which a process counts as hung.
        tell: takes one line for the console and the log.
        max_memory: MB that a worker may hold with all that it started before it is asked to leave; None: no limit.
    """

    def __init__(
        self, board: Board, max_restarts: int, timeout: float, tell: Callable[[str], None], window: float = 600.0,
        max_memory: float | None = None,
    ) -> None:  # fmt: skip
        self.board = board
        self._max_restarts, self._timeout, self._window, self._tell = max_restarts, timeout, window, tell
        self._max_memory, self._looked_at_memory = max_memory, 0.0
        self._looked: float | None = None
        self._away: deque[tuple[float, float]] = deque()  # until when, and how long, this process did not look
        self.workers: list[Worker] = []
        self.restarts = 0
        self.context: Callable[[int], Context] = partial(Context, board)
        """From a place on the board to what its worker reports to."""

    def add(self, worker: Worker) -> None:
        """Start a worker and watch it from now on."""
        self._start(worker)
        self.workers.append(worker)

    def _start(self, worker: Worker) -> None:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        arrays = self.board.arrays
        arrays["heartbeat"][worker.index] = time.monotonic()
        arrays["leave"][worker.index] = 0
        worker.first_step = int(arrays["steps"][worker.index])
        arguments = worker.make_arguments(worker.count)
        context = self.context(worker.index)
        worker.process = self._fork(worker, (worker.name, worker.target, context, arguments, sender))
        worker.errors = receiver
        sender.close()  # so that the receiver sees the end when the child is gone

    def _fork(self, worker: Worker, arguments: tuple[Any, ...]) -> Process:
        attempts = self._max_restarts + 1
        for attempt in range(1, attempts + 1):
            try:
                allow_open_files()
                return children.server.make(worker.name, _main, arguments, lambda: bool(self.board.arrays["stop"][0]))
            except ForkServerLost as lost:
                if attempt == attempts:
                    raise WorkerError(
                        f"{worker.name} cannot be started: {lost}, {attempts} times in a row (--max_restarts)"
                    ) from lost
                self._tell(f"{lost} while {worker.name} was started; starting it again ({attempt} of {attempts - 1})")
                self.board.arrays["heartbeat"][worker.index] = time.monotonic()
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ENOMEM):
                    raise
                raise WorkerError(
                    f"{worker.name} cannot be started: {error.strerror}; allow more processes (ulimit -u) or lower "
                    "--num_actor_processes"
                ) from error
        raise AssertionError("there is one attempt at least")

    def check(self) -> None:
        """Notice dead and hung processes, and replace them; ask those that hold too much memory to leave.

        Raises:
            WorkerError: if one failed before it did any work (which it would do again), or died too often, or its
                environment breaks its contract.
        """
        now = time.monotonic()
        self._note_absence(now)
        for worker in self.workers:
            if worker.process.is_alive():
                silent = self._silence(worker, now)
                if silent > self._timeout:
                    self._replace(worker, f"gave no sign of life for {silent:.0f} s", "")
            elif self.board.arrays["stop"][0]:
                return  # they leave because they were asked to
            elif self.board.arrays["leave"][worker.index] and worker.process.exitcode == 0:
                self._tell(
                    f"{worker.name} (pid {worker.process.pid}) held {worker.held:,.0f} MB with all it started "
                    f"(--max_actor_memory {self._max_memory:g}) and was replaced between unrolls"
                )
                worker.on_exit()
                worker.count += 1
                self._start(worker)
            else:
                cause, details = self._cause(worker)
                self._replace(worker, cause, details)
        if self._max_memory is not None and now - self._looked_at_memory > MEMORY_EVERY:
            self._looked_at_memory = now
            self._look_at_memory(self._max_memory)

    def _note_absence(self, now: float) -> None:
        """Time in which this process did not run (Ctrl-Z stops all of a group) or did not look is held against nobody."""
        most = min(MOST_AWAY, self._timeout / 4)
        if self._looked is not None and now - self._looked > most:
            self._away.append((now, now - self._looked - most))
            oldest = min((self.board.arrays["heartbeat"][w.index] for w in self.workers), default=now)
            while self._away and self._away[0][0] < oldest:
                self._away.popleft()
        self._looked = now

    def _silence(self, worker: Worker, now: float) -> float:
        """Seconds without a sign of life that this process was there to see."""
        last = float(self.board.arrays["heartbeat"][worker.index])
        return now - last - sum(seconds for until, seconds in self._away if until > last)

    def _look_at_memory(self, most: float) -> None:
        arrays = self.board.arrays
        looked_at = [w for w in self.workers if w.leaves and w.process.is_alive() and not arrays["leave"][w.index]]
        for worker, held in zip(looked_at, children.memory([w.process.pid for w in looked_at]), strict=True):
            if held <= most:
                continue
            if arrays["steps"][worker.index] == worker.first_step:
                raise WorkerError(
                    f"{worker.name} holds {held:,.0f} MB before its first step: --max_actor_memory {most:g} is too little"
                )
            worker.held = held
            arrays["leave"][worker.index] = 1

    def _cause(self, worker: Worker) -> tuple[str, str]:
        details = ""
        with suppress(EOFError, OSError):
            if worker.errors.poll(0.2):
                summary, details = worker.errors.recv()
                if not details:
                    raise WorkerError(f"{worker.name}: {summary}")
                return f"failed: {summary}", details
        code = worker.process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            return f"was killed by {name}{hint}", details
        if code == LOST:
            return "was lost with its fork server", details
        return f"ended with exit code {code}", details

    def _replace(self, worker: Worker, cause: str, details: str) -> None:
        pid, code = worker.process.pid, worker.process.exitcode  # None: it hangs
        _kill(worker.process)
        lost = worker.on_exit()
        message = f"{worker.name} (pid {pid}) {cause}; {lost}"
        now = time.monotonic()
        while worker.restarts and now - worker.restarts[0] > self._window:
            worker.restarts.popleft()
        by_itself = code is not None and 0 <= code < LOST
        if by_itself and self.board.arrays["steps"][worker.index] == 0:
            raise WorkerError(f"{worker.name} {cause}, before its first step", details)
        if len(worker.restarts) >= self._max_restarts:
            raise WorkerError(f"{message}; restarted {self._max_restarts} times already (--max_restarts)", details)
        worker.restarts.append(now)
        worker.count += 1
        self.restarts += 1
        if details:
            self._tell(details.rstrip())
        self._tell(f"{message}; restarting it ({len(worker.restarts)} of {self._max_restarts})")
        self._start(worker)

    def stop(self, deadline: float) -> None:
        """Ask all to leave, wait `deadline` seconds in all, kill who is still there."""
        self.board.stop()
        end = time.monotonic() + deadline
        for worker in self.workers:
            worker.process.join(max(0.0, end - time.monotonic()))
        late = [worker for worker in self.workers if worker.process.is_alive()]
        for worker in late:
            _kill(worker.process)
        for worker in self.workers:
            _ = worker.process.exitcode  # hear of its end, so that its descriptor is closed
        # One that had not even begun to work is no news: nothing is lost with it.
        if late := [worker for worker in late if self.board.arrays["steps"][worker.index] != worker.first_step]:
            names = ", ".join(worker.name for worker in late)
            self._tell(f"{names} did not stop within {deadline:.0f} s and was killed")

    def kill(self) -> None:
        """End all at once."""
        for worker in self.workers:
            worker.process.kill()


def warm_up() -> None:
    """Start the fork server, if there is none, so that it imports torch while the parent does."""
    allow_open_files()  # inherited, by it and by all workers
    children.server.start()


def _kill(process: Process) -> None:
    process.kill()
    process.join(5.0)


class _Terminated(BaseException):
    """SIGTERM: the environments are closed before it has its way."""


def _terminate(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one has it at once
    raise _Terminated


def _main(name: str, target: Callable[..., None], context: Context, arguments: tuple[Any, ...], errors: Any) -> None:
    """The first function of every child."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode())  # what `top` shows, cut after 15 letters
    with suppress(OSError):
        os.nice(NICENESS)
    try:
        signal.signal(signal.SIGTERM, _terminate)
        status = _work(name, target, context, arguments, errors)
    except _Terminated:
        status = -signal.SIGTERM
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # The kernel's own clock: it ends a close() that hangs in C as well. Nothing is lost then, all is told already.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, CLOSE_DEADLINE)
    context.close()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()  # what an environment printed
    if status < 0:
        os.kill(os.getpid(), -status)
    os._exit(status)  # no interpreter shutdown: libraries' threads make it slow, and sometimes hang


def _work(name: str, target: Callable[..., None], context: Context, arguments: tuple[Any, ...], errors: Any) -> int:
    """Call the target, tell the parent how it failed; returns the exit status."""
    try:
        context.beat()
        target(context, *arguments)
    except StoreClosed:
        return 0  # a stop like any other
    except _Terminated:
        raise
    except EnvError as error:  # says all there is to say, and would come again
        with suppress(OSError):
            errors.send((str(error), ""))
        return 1
    except BaseException as error:  # whatever it is, the parent must hear of it
        summary = f"{type(error).__name__}: {error}".splitlines()[0][:500]
        with suppress(OSError):
            errors.send((summary, f"--- traceback of {name} ---\n{traceback.format_exc()[-8000:]}"))
        return 1
    return 0
