"""The parent's side of the fork server: request processes and learn of their ends. Every call returns in bounded time."""

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
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import reduction
from pathlib import Path
from typing import Any, BinaryIO

from beast.processes import forkserver, paths
from beast.processes.forkserver import BORN, DEAD, FAILED, FOR_THE_PARENT, MESSAGE, MOST_DESCRIPTORS, READY

PRELOAD = ["torch", "gymnasium", "cv2", "ale_py.vector_env", "beast.acting.actors", "beast.processes.supervisor"]
START_PATIENCE = 300.0  # seconds that the fork server may take for its imports (a few on most machines)
REPLY_PATIENCE = 30.0  # seconds that one fork may take
NUDGE = 2.0  # seconds without an answer after which the server is sent SIGCONT, in case it was stopped
LOST = 256  # exit code of processes whose end was not observed because the fork server was killed
_MARK = "BEAST_FORKSERVER"  # environment variable that all descendants of a fork server inherit
_NO_CALL_LONGER = 0.2  # seconds


class ForkServerLost(RuntimeError):
    """The fork server was killed or did not answer, and made no process. A new fork server may succeed."""


class Process:
    """A child of the fork server.

    Args:
        server: the fork server that makes it.
        name: for messages.
    """

    def __init__(self, server: ForkServer, name: str) -> None:
        self._server, self.name = server, name
        self.pid: int | None = None
        """Process id; None before the fork server has reported it."""
        self.code: int | None = None
        """Exit code as in `exitcode`, once the fork server has reported it."""
        self._handle: int | None = None

    def born(self, pid: int) -> None:
        """Record the process's id and open a handle to it."""
        self.pid = pid
        with suppress(AttributeError, OSError):  # not on all systems; or the process has ended and was reaped
            self._handle = os.pidfd_open(pid)

    def lost(self) -> None:
        """Wait for the end of a process whose fork server died; the kernel ends it too."""
        if self._handle is not None:
            _readable(self._handle, 5.0)
        self.code = LOST

    def is_alive(self) -> bool:
        """Return whether the process runs; known at once on Linux, elsewhere when the fork server reports it."""
        self._server.listen(0.0)
        if self.pid is None or self.code is not None:
            return False
        return self._handle is None or not _readable(self._handle, 0.0)

    @property
    def exitcode(self) -> int | None:
        """Exit code: None while it runs, minus the number of the signal that killed it, LOST if nobody knows."""
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
        """Wait up to `timeout` seconds for its end."""
        end = time.monotonic() + timeout
        while self.is_alive() and (left := end - time.monotonic()) > 0:
            if self._handle is not None:
                _readable(self._handle, min(left, _NO_CALL_LONGER))
            else:
                self._server.listen(min(left, _NO_CALL_LONGER))

    def kill(self) -> None:
        """Kill the process if it runs. Once it is dead its id may belong to another process."""
        if self.pid is not None and self.is_alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def __del__(self) -> None:
        if self._handle is not None:
            os.close(self._handle)


class ForkServer:
    """The fork server as its parent sees it: starts it, restarts it if it was killed, and requests processes from it.

    Only one thread may use it.
    """

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
        """Whether the server's process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server unless it runs already. It imports torch while this process continues.

        Raises:
            OSError: if the system allows no more processes.
        """
        if self._process is not None and self._owner != os.getpid():  # forked: the server is the parent's
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
        # The server inherits the mask: it never dies of signals that are meant for this process.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_PARENT)
        try:
            self._process = subprocess.Popen(
                [sys.executable, *flags, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=_if_open(1),
                stderr=_if_open(2),
                pass_fds=[theirs.fileno()],
                env={**os.environ, _MARK: self._mark},
                cwd=None if paths.current_folder() else "/",  # MKL ends a process whose current folder was deleted
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
        """Make a new process that calls a function.

        Args:
            name: of the process.
            target: function to call; pickled, with the descriptors that it holds.
            arguments: of the function; pickled likewise.
            stopping: polled a few times a second; if it returns True, the process is not waited for and counts as dead.

        Raises:
            ForkServerLost: if the server died or did not answer; it is dead then, and all of its processes with it.
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
                pass  # _wait_for finds this out
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
        """Send the server SIGCONT, in case it was stopped."""
        if self.alive:
            assert self._process is not None
            self._process.send_signal(signal.SIGCONT)

    def listen(self, timeout: float) -> None:
        """Read the server's messages, waiting up to `timeout` seconds for a new one."""
        if self._process is None or self._owner != os.getpid():
            return
        if not _readable(self._socket.fileno(), timeout):
            return
        try:
            news = self._socket.recv(1 << 16, socket.MSG_DONTWAIT)
        except (BlockingIOError, ConnectionResetError):
            return
        if not news and timeout:  # the server is gone; do not poll in a busy loop
            time.sleep(min(timeout, 0.01))
        self._heard += news
        while len(self._heard) >= MESSAGE.size:
            kind, number, value = MESSAGE.unpack(self._heard[: MESSAGE.size])
            self._heard = self._heard[MESSAGE.size :]
            if kind == READY:
                self._ready = True
            elif (process := self._processes.get(number)) is None:
                if kind == BORN:  # its requester gave up waiting
                    with suppress(OSError):
                        os.kill(value, signal.SIGKILL)
            elif kind == BORN:
                process.born(value)
            elif kind in (DEAD, FAILED):
                process.code = value
                del self._processes[number]

    def kill(self) -> None:
        """Kill the server, and with it all of its processes."""
        if self.alive:
            assert self._process is not None
            self._process.kill()
            self._process.wait(5.0)
        self._bury()

    def close(self) -> None:
        """End the server as its parent's death would: it ends its remaining processes first."""
        if self._process is None or self._owner != os.getpid():
            return
        if self._ready and self.alive:
            self._socket.close()
            self.nudge()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5.0)
        self.kill()

    def _bury(self) -> None:
        """Clean up after a dead server: read its last messages and kill the processes that it could not end."""
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
    """Kill all processes that have this in their environment (Linux)."""
    for _ in range(20):  # again, because a process may have started another meanwhile
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
    """A collector of descriptors: `reduction.DupFd` calls it while something is pickled for a child."""

    def __init__(self) -> None:
        self.descriptors: list[int] = []

    def duplicate_for_child(self, fd: int) -> int:
        self.descriptors.append(fd)
        return len(self.descriptors) - 1

    DupFd = forkserver.Handed

    def pickle(self, target: Callable[..., None], arguments: tuple[Any, ...]) -> bytes:
        out = io.BytesIO()
        folder = next(iter(paths.current_folder()), "/")
        # All processes of a run share one key, which multiprocessing needs to send tensors through its pipes.
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
    """Return the same socket with a descriptor above 2, even where standard streams are closed."""
    if end.fileno() > 2:
        return end
    with end:
        return socket.socket(fileno=fcntl.fcntl(end.fileno(), fcntl.F_DUPFD_CLOEXEC, 3))


def _if_open(fd: int) -> int | None:
    """Return the standard stream for Popen to inherit, or None if it is closed."""
    try:
        os.fstat(fd)
    except OSError:
        return subprocess.DEVNULL
    return None


def _readable(fd: int, timeout: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(timeout, 0.0) * 1000))


server = ForkServer()
"""The fork server of this process."""
atexit.register(lambda: server.close())
