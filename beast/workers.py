"""Child processes: start, name, watch, restart and stop them; hand their errors back.

Children are forked from a small server process that has imported torch once (multiprocessing's forkserver), so that each
costs milliseconds and a few megabytes. They ignore the signals that a terminal or a user sends to a whole group (the parent
decides), and are gone when the parent is: the kernel kills them with the fork server, and a thread in each watches the
parent itself where the kernel has no such thing.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from beast.data import ArraySpec
from beast.envs import EnvError
from beast.shared import SharedArrays
from beast.system import allow_open_files
from beast.unrolls import StoreClosed

PRELOAD = ["beast.orphan", "torch", "gymnasium", "cv2", "ale_py.vector_env", "beast.envs", "monobeast.actor"]
FOR_THE_PARENT = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)  # what reaches a group, and is not for its children
NICENESS = 10  # of workers, so that on a full machine the learner never waits for a core
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_socket: int | None = None  # the fork server's, once it has no name any more
_LOST = 255  # the exit code that multiprocessing reports once the fork server was killed


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
        self._view()

    def _view(self) -> None:
        arrays = self._board.arrays
        self._stop, self._heartbeat, self._steps = arrays["stop"], arrays["heartbeat"], arrays["steps"]
        self._seconds = arrays["seconds"][self.index]

    def __getstate__(self) -> dict[str, Any]:
        return {"board": self._board, "index": self.index}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._board, self.index = state["board"], state["index"]
        self._view()

    @property
    def stopping(self) -> bool:
        return bool(self._stop[0])

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
    process: Any = None
    errors: Any = None
    restarts: deque[float] = field(default_factory=deque)
    count: int = 0


class Workers:
    """All children of a run.

    Args:
        board: shared with them.
        max_restarts: within `window` seconds; one more death is a WorkerError.
        timeout: seconds without a sign of life after which a process counts as hung.
        tell: takes one line for the console and the log.
    """

    def __init__(
        self, board: Board, max_restarts: int, timeout: float, tell: Callable[[str], None], window: float = 600.0
    ) -> None:
        self.board = board
        self._max_restarts, self._timeout, self._window, self._tell = max_restarts, timeout, window, tell
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
        self.board.arrays["heartbeat"][worker.index] = time.monotonic()
        arguments = worker.make_arguments(worker.count)
        warm_up()  # again if it was killed
        process = multiprocessing.get_context("forkserver").Process(
            target=_main,
            args=(worker.name, worker.target, self.context(worker.index), arguments, sender),
            name=worker.name,
            daemon=True,
        )
        process.start()
        worker.process, worker.errors = process, receiver
        sender.close()  # so that the receiver sees the end when the child is gone

    def check(self) -> None:
        """Notice dead and hung processes, and replace them.

        Raises:
            WorkerError: if one failed before it did any work (which it would do again), or died too often, or its
                environment breaks its contract.
        """
        now = time.monotonic()
        for worker in self.workers:
            if worker.process.is_alive():
                silent = now - self.board.arrays["heartbeat"][worker.index]
                if silent > self._timeout:
                    self._replace(worker, f"gave no sign of life for {silent:.0f} s", "")
            else:
                cause, details = self._cause(worker)
                if self.board.arrays["stop"][0]:
                    return  # they leave because they were asked to
                self._replace(worker, cause, details)

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
        if code == _LOST:
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
        by_itself = code is not None and 0 <= code < _LOST
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
        if late:
            names = ", ".join(worker.name for worker in late)
            self._tell(f"{names} did not stop within {deadline:.0f} s and was killed")

    def kill(self) -> None:
        """End all at once."""
        for worker in self.workers:
            if worker.process.is_alive():
                worker.process.kill()


def warm_up() -> None:
    """Start the fork server, if there is none, so that it imports torch while the parent does."""
    allow_open_files()  # inherited, by it and by all workers
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    # Inherited, so that from the first moment on no child can die of them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_PARENT)
    path = os.environ.get("PYTHONPATH")
    root = str(Path(__file__).parents[1])  # so that it imports this package, not another one of its name
    os.environ["PYTHONPATH"] = root if path is None else root + os.pathsep + path
    os.environ["BEAST_PARENT"] = str(os.getpid())  # for orphan.py
    try:
        multiprocessing.resource_tracker.ensure_running()  # it unblocks SIGINT when it starts
        signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_PARENT)
        multiprocessing.forkserver.ensure_running()
        _unlink_socket()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        del os.environ["PYTHONPATH"], os.environ["BEAST_PARENT"]
        if path is not None:
            os.environ["PYTHONPATH"] = path


def _unlink_socket() -> None:
    """Take the fork server's socket, and the folder made for it, out of the file system: nobody could if we were killed.

    Linux reaches a socket through any descriptor of it, with a name or without. Where anything is not as it is expected
    (it is multiprocessing's own affair), the socket stays until this process ends.
    """
    server: Any = multiprocessing.forkserver._forkserver
    address = getattr(server, "_forkserver_address", None)
    finalizers: dict[Any, Any] = getattr(multiprocessing.util, "_finalizer_registry", {})
    if not isinstance(address, str) or not address.startswith("/") or not hasattr(os, "O_PATH"):
        return
    remove = [f for f in finalizers.values() if os.path.dirname(address) in (getattr(f, "_args", None) or ())]
    if len(remove) != 1 or os.listdir(os.path.dirname(address)) != [os.path.basename(address)]:
        return
    global _socket
    if _socket is not None:
        os.close(_socket)  # of a fork server before this one
    _socket = os.open(address, os.O_PATH | os.O_CLOEXEC)
    path = f"/proc/self/fd/{_socket}"
    if os.path.exists(path):
        server._forkserver_address = path
        remove[0]()  # the folder's, early: it notes that there is none any more


def _kill(process: Any) -> None:
    if process.is_alive():  # a dead one's number may be another process's by now
        process.kill()
    process.join(5.0)


def _main(name: str, target: Callable[..., None], context: Context, arguments: tuple[Any, ...], errors: Any) -> None:
    """The first function of every child."""
    for number in FOR_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    leave_with_parent()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode())  # what `top` shows, cut after 15 letters
    with suppress(OSError):
        os.nice(NICENESS)
    status = 1
    try:
        context.beat()
        target(context, *arguments)
        status = 0
    except StoreClosed:
        status = 0  # a stop like any other
    except EnvError as error:  # says all there is to say, and would come again
        with suppress(OSError):
            errors.send((str(error), ""))
    except BaseException as error:  # whatever it is, the parent must hear of it
        summary = f"{type(error).__name__}: {error}".splitlines()[0][:500]
        with suppress(OSError):
            errors.send((summary, f"--- traceback of {name} ---\n{traceback.format_exc()[-8000:]}"))
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()  # what an environment printed
    os._exit(status)  # no interpreter shutdown: libraries' threads make it slow, and sometimes hang


def signal_with_parent(number: int) -> None:
    """Have the kernel send this process a signal when its parent ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def leave_with_parent() -> None:
    """Arrange that this process ends when its parent does, however that ends."""
    signal_with_parent(signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # Each child is given the descriptor that keeps the fork server alive. As long as a single child is stopped, or
        # stuck in C so that the watch below cannot run, the server would outlive the parent, and so would that child.
        server: Any = multiprocessing.forkserver._forkserver
        if (alive := getattr(server, "_forkserver_alive_fd", None)) is not None:
            os.close(alive)
            server._forkserver_alive_fd = None

        sentinel = parent.sentinel

        def watch() -> None:
            multiprocessing.connection.wait([sentinel])
            os._exit(1)

        threading.Thread(target=watch, name="parent-watch", daemon=True).start()
