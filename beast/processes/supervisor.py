"""Supervision of worker processes: start, name, watch, restart and stop them, and pass on their errors.

Workers are forked from a small server process that has imported torch once (`forkserver.py`, `children.py`), so that
each costs milliseconds and a few megabytes. They ignore the signals that a terminal or a user sends to the whole group
(the parent decides) and end with the parent, together with all processes that their environments started.
"""

from __future__ import annotations

import errno
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from beast.core.errors import WorkerError
from beast.processes import children, descendants
from beast.processes.child import worker_main
from beast.processes.children import LOST, ForkServerLost, Process
from beast.processes.machine import allow_open_files
from beast.processes.status import StatusBoard, WorkerStatus

MOST_AWAY = 1.0  # seconds between two checks of the workers; a longer gap means that this process was stopped or busy
MEMORY_EVERY = 2.0  # seconds between two checks of the workers' memory


@dataclass
class Worker:
    """A supervised worker: how its process is started, and the process that runs now."""

    name: str
    index: int
    target: Callable[..., None]
    make_arguments: Callable[[int], tuple[Any, ...]]
    """Maps the number of restarts so far to the target's arguments after its WorkerStatus."""
    on_exit: Callable[[], str]
    """Called when the process is dead; returns a description of what was lost."""
    leaves: bool = False
    """Whether it polls `WorkerStatus.leaving`, so that it can be replaced when it holds too much memory."""
    process: Any = None
    errors: Any = None
    restarts: deque[float] = field(default_factory=deque)
    count: int = 0
    first_step: int = 0
    """Steps that the earlier processes of this worker made."""
    held: float = 0.0
    """MB that it held when it was asked to leave."""


class Workers:
    """All worker processes of a run.

    Args:
        board: status board shared with the workers.
        max_restarts: restarts allowed within `window`; one more death raises WorkerError.
        timeout: seconds without a sign of life after which a process counts as hung.
        log: writes a line to the console and the log.
        window: seconds over which restarts are counted.
        max_memory: MB that a worker and its descendants may hold before it is asked to leave; None sets no limit.
    """

    def __init__(
        self, board: StatusBoard, max_restarts: int, timeout: float, log: Callable[[str], None], window: float = 600.0,
        max_memory: float | None = None,
    ) -> None:  # fmt: skip
        self.board = board
        self._max_restarts, self._timeout, self._window, self._log = max_restarts, timeout, window, log
        self._max_memory, self._looked_at_memory = max_memory, 0.0
        self._looked: float | None = None
        self._away: deque[tuple[float, float]] = deque()  # (end, seconds) of times in which this process did not check
        self.workers: list[Worker] = []
        self.restarts = 0
        self.status_of: Callable[[int], WorkerStatus] = partial(WorkerStatus, board)
        """Returns what the worker at an index of the board reports to."""

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
        status = self.status_of(worker.index)
        worker.process = self._fork(worker, (worker.name, worker.target, status, arguments, sender))
        worker.errors = receiver
        sender.close()  # so that the receiver sees the end of the pipe when the child is gone

    def _fork(self, worker: Worker, arguments: tuple[Any, ...]) -> Process:
        attempts = self._max_restarts + 1
        for attempt in range(1, attempts + 1):
            try:
                allow_open_files()
                return children.server.make(
                    worker.name, worker_main, arguments, lambda: bool(self.board.arrays["stop"][0])
                )
            except ForkServerLost as lost:
                if attempt == attempts:
                    raise WorkerError(
                        f"{worker.name} cannot be started: {lost}, {attempts} times in a row (--max_restarts)"
                    ) from lost
                self._log(f"{lost} while {worker.name} was started; starting it again ({attempt} of {attempts - 1})")
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
        """Replace dead and hung processes, and ask those that hold too much memory to leave.

        Raises:
            WorkerError: if a worker failed before its first step (a restart would fail too), died too often, or has an
                environment that breaks its contract.
        """
        now = time.monotonic()
        self._note_absence(now)
        for worker in self.workers:
            if worker.process.is_alive():
                silent = self._silence(worker, now)
                if silent > self._timeout:
                    self._replace(worker, f"gave no sign of life for {silent:.0f} s", "")
            elif self.board.arrays["stop"][0]:
                return  # the run is stopping
            elif self.board.arrays["leave"][worker.index] and worker.process.exitcode == 0:
                self._log(
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
        """Note the time in which this process did not check (Ctrl-Z stops the whole group), which no worker is blamed for."""
        most = min(MOST_AWAY, self._timeout / 4)
        if self._looked is not None and now - self._looked > most:
            self._away.append((now, now - self._looked - most))
            oldest = min((self.board.arrays["heartbeat"][w.index] for w in self.workers), default=now)
            while self._away and self._away[0][0] < oldest:
                self._away.popleft()
        self._looked = now

    def _silence(self, worker: Worker, now: float) -> float:
        """Return the seconds without a sign of life during which this process was checking."""
        last = float(self.board.arrays["heartbeat"][worker.index])
        return now - last - sum(seconds for until, seconds in self._away if until > last)

    def _look_at_memory(self, most: float) -> None:
        arrays = self.board.arrays
        looked_at = [w for w in self.workers if w.leaves and w.process.is_alive() and not arrays["leave"][w.index]]
        for worker, held in zip(looked_at, descendants.memory([w.process.pid for w in looked_at]), strict=True):
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
        pid, code = worker.process.pid, worker.process.exitcode  # code is None if it hangs
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
            self._log(details.rstrip())
        self._log(f"{message}; restarting it ({len(worker.restarts)} of {self._max_restarts})")
        self._start(worker)

    def stop(self, deadline: float) -> None:
        """Ask all workers to leave, wait `deadline` seconds in total, and kill those that still run."""
        self.board.stop()
        end = time.monotonic() + deadline
        for worker in self.workers:
            worker.process.join(max(0.0, end - time.monotonic()))
        late = [worker for worker in self.workers if worker.process.is_alive()]
        for worker in late:
            _kill(worker.process)
        for worker in self.workers:
            _ = worker.process.exitcode  # reads the report of its end, so that its descriptor is closed
        # Workers without a step are not worth a message: nothing is lost with them.
        if late := [worker for worker in late if self.board.arrays["steps"][worker.index] != worker.first_step]:
            names = ", ".join(worker.name for worker in late)
            self._log(f"{names} did not stop within {deadline:.0f} s and was killed")

    def kill(self) -> None:
        """Kill all workers at once."""
        for worker in self.workers:
            worker.process.kill()


def start_fork_server() -> None:
    """Start the fork server if there is none, so that it imports torch while the parent continues."""
    allow_open_files()  # the server and all workers inherit the limit
    children.server.start()


def _kill(process: Process) -> None:
    process.kill()
    process.join(5.0)
