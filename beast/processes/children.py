"""The parent's side of the fork server: ask for processes, hear of their ends. No call here waits without an end."""

from __future__ import annotations

import atexit
import fcntl
import io
import multiprocessing
import multiprocessing.context
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import reduction
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from beast.processes import forkserver, paths
from beast.processes.forkserver import BORN, DEAD, FAILED, FOR_THE_PARENT, MESSAGE, MOST_DESCRIPTORS, READY

PRELOAD = ["torch", "gymnasium", "cv2", "ale_py.vector_env", "beast.acting.actors", "beast.processes.supervisor"]
START_PATIENCE = 300.0  # seconds that the fork server may take for its imports: seconds on most machines
REPLY_PATIENCE = 30.0  # seconds for one fork
NUDGE = 2.0  # seconds without an answer after which it is continued, in case that somebody stopped it
LOST = 256  # the exit code of those whose end nobody saw, because the fork server was killed
_MARK = "BEAST_FORKSERVER"  # an environment variable that all of a fork server's descendants inherit
_NO_CALL_LONGER = 0.2  # seconds


class ForkServerLost(RuntimeError):
    """The fork server was killed, or did not answer, and no process came of a request. Another one may do better."""


class Process:
    """A child of the fork server."""

    def __init__(self, server: ForkServer, name: str) -> None:
        self._server, self.name = server, name
        self.pid: int | None = None
        """None: it was never born."""
        self.code: int | None = None
        """As `exitcode`, as far as the fork server has told."""
        self._handle: int | None = None

    def born(self, pid: int) -> None:
        """Take up its life."""
        self.pid = pid
        with suppress(AttributeError, OSError):  # not on all systems; or it is dead and buried already
            self._handle = os.pidfd_open(pid)

    def lost(self) -> None:
        """The fork server is dead, and the kernel ends this one too: wait for that."""
        if self._handle is not None:
            _readable(self._handle, 5.0)
        self.code = LOST

    def is_alive(self) -> bool:
        """Whether it runs; known at once on Linux, elsewhere when the fork server tells."""
        self._server.listen(0.0)
        if self.pid is None or self.code is not None:
            return False
        return self._handle is None or not _readable(self._handle, 0.0)

    @property
    def exitcode(self) -> int | None:
        """None: it lives. Minus a signal's number: it was killed by it. LOST: nobody knows."""
        if self.is_alive():
            return None
        end = time.monotonic() + NUDGE
        while self.pid is not None and self.code is None and time.monotonic() < end and self._server.alive:
            self._server.listen(_NO_CALL_LONGER)
            if self.code is None:
                self._server.nudge()
        if self.code is None:
            self.code = LOST
        return self.code

    def join(self, timeout: float) -> None:
        """Wait for its end."""
        end = time.monotonic() + timeout
        while self.is_alive() and (left := end - time.monotonic()) > 0:
            if self._handle is not None:
                _readable(self._handle, min(left, _NO_CALL_LONGER))
            else:
                self._server.listen(min(left, _NO_CALL_LONGER))

    def kill(self) -> None:
        """End it at once; nothing if it is dead: its number may be another's by now."""
        if self.pid is not None and self.is_alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def __del__(self) -> None:
        if self._handle is not None:
            os.close(self._handle)


class ForkServer:
    """Starts the fork server, again if it was killed, and has it make processes. To be used by one thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket
        self._mark = ""
        self._heard = b""
        self._ready = False
        self._number = 0
        self._processes: dict[int, Process] = {}
        self._owner = os.getpid()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, if it does not run. It imports torch while this process goes on.

        Raises:
            OSError: if the system allows no more processes.
        """
        if self._process is not None and self._owner != os.getpid():  # this process was forked: it is its parent's
            self._process, self._processes = None, {}
        if self.alive:
            return
        self._bury()
        self._owner = os.getpid()
        self._mark, self._heard, self._ready = uuid.uuid4().hex, b"", False
        self._socket, theirs = map(_above_standard_streams, socket.socketpair())
        code = (
            f"import sys; sys.path.insert(0, {paths.ROOT!r}); from beast.processes.paths import set_search_path; "
            f"set_search_path({paths.as_it_is()!r}); "
            f"from beast.processes.forkserver import serve; serve({theirs.fileno()}, {os.getpid()}, {PRELOAD!r})"
        )
        flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        # Inherited, so that from the first moment on it cannot die of what is meant for this process.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_PARENT)
        try:
            self._process = subprocess.Popen(
                [sys.executable, *flags, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=_if_open(1),
                stderr=_if_open(2),
                pass_fds=[theirs.fileno()],
                env={**os.environ, _MARK: self._mark},
                cwd=None if paths.current_folder() else "/",  # MKL ends a process whose folder is gone
            )
        except BaseException:
            self._socket.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()

    def make(
        self, name: str, target: Callable[..., None], arguments: tuple[Any, ...], stopping: Callable[[], bool]
    ) -> Process:
        """A new process that calls a function.

        Args:
            target, arguments: pickled; their descriptors are handed over.
            stopping: asked a few times a second; True gives up, the process is then dead from birth.

        Raises:
            ForkServerLost: the server died or did not answer meanwhile; it is dead now, and so are all of its processes.
            OSError: if the system allows no more processes.
        """
        process = Process(self, name)
        if stopping():
            return process
        self.start()
        self._number += 1
        self._processes[self._number] = process
        handing = _Handing()
        with _anonymous_file() as payload:
            payload.write(handing.pickle(target, arguments))
            payload.flush()
            try:
                fds = [payload.fileno(), *handing.descriptors]
                if len(fds) > MOST_DESCRIPTORS:
                    raise ValueError(
                        f"{name} would be handed {len(fds)} descriptors, {MOST_DESCRIPTORS} at most can be"
                    )
                socket.send_fds(self._socket, [MESSAGE.pack(BORN, self._number, 0)], fds)
            except (BrokenPipeError, ConnectionResetError):
                pass  # as the wait will find
        self._wait_for(process, stopping)
        if process.pid is None:
            self._processes.pop(self._number, None)
        return process

    def _wait_for(self, process: Process, stopping: Callable[[], bool]) -> None:
        began = asked = nudged = time.monotonic()
        while process.pid is None and not stopping():
            if process.code is not None:
                raise OSError(process.code, os.strerror(process.code))
            if not self.alive:
                assert self._process is not None
                code = self._process.returncode
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                self._bury()
                raise ForkServerLost(f"the fork server {how}")
            now = time.monotonic()
            if not self._ready:
                asked = now
            if now - began > START_PATIENCE or now - asked > REPLY_PATIENCE:
                self.kill()
                raise ForkServerLost(f"the fork server gave no answer for {now - began:.0f} s")
            if now - nudged > NUDGE:
                self.nudge()
                nudged = now
            self.listen(_NO_CALL_LONGER)

    def nudge(self) -> None:
        """Let it go on, if somebody stopped it."""
        if self.alive:
            assert self._process is not None
            self._process.send_signal(signal.SIGCONT)

    def listen(self, timeout: float) -> None:
        """Take in what it has told, waiting so many seconds for something new."""
        if self._process is None or self._owner != os.getpid():
            return
        if not _readable(self._socket.fileno(), timeout):
            return
        try:
            news = self._socket.recv(1 << 16, socket.MSG_DONTWAIT)
        except (BlockingIOError, ConnectionResetError):
            return
        if not news and timeout:  # it is gone: do not come back at once
            time.sleep(min(timeout, 0.01))
        self._heard += news
        while len(self._heard) >= MESSAGE.size:
            kind, number, value = MESSAGE.unpack(self._heard[: MESSAGE.size])
            self._heard = self._heard[MESSAGE.size :]
            if kind == READY:
                self._ready = True
            elif (process := self._processes.get(number)) is None:
                if kind == BORN:  # nobody waits for it any more
                    with suppress(OSError):
                        os.kill(value, signal.SIGKILL)
            elif kind == BORN:
                process.born(value)
            elif kind in (DEAD, FAILED):
                process.code = value
                del self._processes[number]

    def kill(self) -> None:
        """End it, and with it all of its processes."""
        if self.alive:
            assert self._process is not None
            self._process.kill()
            self._process.wait(5.0)
        self._bury()

    def close(self) -> None:
        """End it as its parent's death would: what is left of its processes goes first."""
        if self._process is None or self._owner != os.getpid():
            return
        if self._ready and self.alive:
            self._socket.close()
            self.nudge()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5.0)
        self.kill()

    def _bury(self) -> None:
        """A server that is dead: hear its last words, end what it could not end any more."""
        if self._process is None:
            return
        self._process.wait(5.0)
        if self._socket.fileno() >= 0:
            for _ in range(1000):
                if not _readable(self._socket.fileno(), 0.0):
                    break
                self.listen(0.0)
                if self._at_end():
                    break
            self._socket.close()
        self._process = None
        for process in self._processes.values():
            process.lost()
        self._processes.clear()
        if self._ready:
            _kill_marked(f"{_MARK}={self._mark}".encode())

    def _at_end(self) -> bool:
        with suppress(OSError):
            return not self._socket.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
        return True


def _kill_marked(mark: bytes) -> None:
    """Kill whoever has this in its environment (Linux)."""
    for _ in range(20):  # until nobody is left who could have made more
        found = False
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mark in environment.read_bytes().split(b"\0"):
                    os.kill(int(environment.parent.name), signal.SIGKILL)
                    found = True
        if not found:
            return
        time.sleep(0.01)


class _Handing:
    """What `reduction.DupFd` asks for while something is pickled for a child: it collects the descriptors."""

    def __init__(self) -> None:
        self.descriptors: list[int] = []

    def duplicate_for_child(self, fd: int) -> int:
        self.descriptors.append(fd)
        return len(self.descriptors) - 1

    DupFd = forkserver.Handed

    def pickle(self, target: Callable[..., None], arguments: tuple[Any, ...]) -> bytes:
        out = io.BytesIO()
        folder = next(iter(paths.current_folder()), "/")
        # With one key, tensors travel through multiprocessing's pipes between all processes of a run.
        key = bytes(multiprocessing.current_process().authkey)
        pickle.dump({"path": paths.as_it_is(), "argv": sys.argv, "folder": folder, "key": key}, out)
        multiprocessing.context.set_spawning_popen(self)  # type: ignore[arg-type]
        try:
            reduction.ForkingPickler(out, pickle.HIGHEST_PROTOCOL).dump((target, arguments))
        finally:
            multiprocessing.context.set_spawning_popen(None)
        return out.getvalue()


def _anonymous_file() -> BinaryIO:
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("beast", os.MFD_CLOEXEC), "w+b")
    return tempfile.TemporaryFile()


def _above_standard_streams(end: socket.socket) -> socket.socket:
    """The same socket with a number that cannot be taken for a standard stream, where those are closed."""
    if end.fileno() > 2:
        return end
    with end:
        return socket.socket(fileno=fcntl.fcntl(end.fileno(), fcntl.F_DUPFD_CLOEXEC, 3))


def _if_open(fd: int) -> int | None:
    """For Popen: to inherit a standard stream, or nothing in its place."""
    try:
        os.fstat(fd)
    except OSError:
        return subprocess.DEVNULL
    return None


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Whatever this process starts inside the block, or adopts from those (Linux), is killed at its end.

    What it starts is born with SIGUSR1 as usual, which `run.py` ignores until there is something to save.
    """
    before = set(forkserver.children())
    ignored = signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    ignored = ignored and threading.current_thread() is threading.main_thread()
    if ignored:
        signal.signal(signal.SIGUSR1, lambda number, frame: None)
    forkserver.prctl(forkserver.PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        while left := set(forkserver.children()) - before:
            for pid in left:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
                with suppress(ChildProcessError):
                    os.waitpid(pid, 0)
        forkserver.prctl(forkserver.PR_SET_CHILD_SUBREAPER, 0)
        if ignored:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def memory(pids: list[int]) -> list[float]:
    """MB that each of these processes holds with all that it started: its share of what it shares (PSS), on Linux.

    Those of a process that is gone are 0.
    """
    below: dict[int, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            below.setdefault(process.ppid(), []).append(process)

    def total(process: psutil.Process) -> float:
        held = 0.0
        with suppress(psutil.Error):
            held = getattr(process.memory_full_info(), "pss", 0) or process.memory_info().rss
        return held / 1e6 + sum(map(total, below.get(process.pid, [])))

    held = []
    for pid in pids:
        try:
            held.append(total(psutil.Process(pid)))
        except psutil.Error:
            held.append(0.0)
    return held


def _readable(fd: int, timeout: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(timeout, 0.0) * 1000))


server = ForkServer()
"""This process's."""
atexit.register(lambda: server.close())
