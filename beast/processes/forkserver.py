"""The process from which all workers are forked: it has imported torch once, so that each fork costs milliseconds.

It talks to the parent alone, through a socket without a name. Processes that a worker starts end with the worker: each
worker adopts what its children leave behind, and this process adopts and kills what a worker leaves behind (Linux). It
has its own process group, so that it outlives a kill of the whole group long enough to do that.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

MESSAGE = struct.Struct("=3q")
"""Kind, number of the request, value. The parent requests a process with kind BORN and any value."""
READY, BORN, FAILED, DEAD = range(4)
"""Imports are done; a worker runs (value: pid); could not be made (errno); ended (exit code, or minus the signal)."""
MOST_DESCRIPTORS = 253  # Linux's limit for one message
FOR_THE_PARENT = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM)
"""Signals that may be sent to the whole group."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
_inherited: list[int] = []


class Handed:
    """A descriptor within a worker's arguments, pickled as its index in the message's list of descriptors.

    Args:
        place: that index.
    """

    def __init__(self, place: int) -> None:
        self._place = place

    def detach(self) -> int:
        """Return the descriptor in the worker, which owns it from then on."""
        return _inherited[self._place]


def prctl(option: int, value: int) -> None:
    """Call Linux's prctl; do nothing on other systems."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def serve(fd: int, parent: int, preload: list[str]) -> None:
    """Run the fork server until its parent is gone.

    Args:
        fd: descriptor of the socket to the parent.
        parent: process id of the parent.
        preload: modules to import before the first fork.
    """
    # While it has no children the kernel may kill it with its parent, whose end it would only notice after the imports.
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    for number in FOR_THE_PARENT:
        # Caught, not ignored: programs that an environment executes then start with the default handlers.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # an ignored SIGHUP means nohup
            signal.signal(number, _nothing)
            signal.siginterrupt(number, False)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    group = os.getpgrp()
    with suppress(OSError):
        os.setpgid(0, 0)
    for module in preload:
        with suppress(ImportError):
            __import__(module)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    # From here on it must end its children first, when the socket closes with the parent; SIGCONT makes sure that it runs.
    prctl(PR_SET_PDEATHSIG, signal.SIGCONT)
    if os.getppid() != parent:
        os._exit(1)
    server = _Server(socket.socket(fileno=fd), group)
    with suppress(BrokenPipeError, ConnectionResetError):
        server.run()
    server.end_all()
    os._exit(0)


def _nothing(number: int, frame: Any) -> None:
    pass


class _Server:
    """The fork server's loop.

    Args:
        parent: socket to the parent.
        group: process group of the parent.
    """

    def __init__(self, parent: socket.socket, group: int) -> None:
        self._parent, self._group = parent, group
        self._workers: dict[int, int] = {}  # pid -> number of its request
        self._wake_r, self._wake_w = os.pipe()
        for end in (self._wake_r, self._wake_w):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _nothing)

    def run(self) -> None:
        """Fork workers and reap them until the parent is gone."""
        poll = select.poll()
        poll.register(self._parent, select.POLLIN)
        poll.register(self._wake_r, select.POLLIN)
        self._say(READY, 0, 0)
        while True:
            ready = {fd for fd, _ in poll.poll(1000)}
            with suppress(BlockingIOError):
                os.read(self._wake_r, 1 << 12)
            self._bury()
            if self._parent.fileno() in ready and not self._take_request():
                return

    def _say(self, kind: int, number: int, value: int) -> None:
        self._parent.sendall(MESSAGE.pack(kind, number, value))

    def _take_request(self) -> bool:
        flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
        message, fds, _, _ = socket.recv_fds(self._parent, MESSAGE.size, MOST_DESCRIPTORS, flags)
        if len(message) < MESSAGE.size:
            return False
        _, number, _ = MESSAGE.unpack(message)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # which ends a worker, but not this process
        try:
            pid = os.fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            self._say(FAILED, number, error.errno or errno.EAGAIN)
        else:
            if pid == 0:
                self._become(fds)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            self._workers[pid] = number
            self._say(BORN, number, pid)
        for fd in fds:
            os.close(fd)
        return True

    def _become(self, fds: list[int]) -> None:
        """Run a worker for the rest of this process's life."""
        try:
            server = os.getppid()
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            prctl(PR_SET_CHILD_SUBREAPER, 1)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            with suppress(OSError):
                os.setpgid(0, self._group)
            self._parent.close()
            os.close(self._wake_r)
            os.close(self._wake_w)
            if os.getppid() != server:
                os._exit(1)
            _live(fds)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)

    def _bury(self) -> None:
        """Report the dead to the parent and kill the processes that they left behind."""
        someone = False
        while (found := _reap()) is not None:
            someone = True
            pid, status = found
            number = self._workers.pop(pid, None)
            if number is not None:
                self._say(DEAD, number, os.waitstatus_to_exitcode(status))
        if someone:  # a killed orphan's own children are adopted here in turn
            _kill([pid for pid in children() if pid not in self._workers])

    def end_all(self) -> None:
        """Kill all children and their descendants, which this process adopts one after the other."""
        self._parent.close()
        while True:
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            left = children() if sys.platform == "linux" else list(self._workers)
            if not left:
                return
            _kill(left)
            if sys.platform != "linux":
                return
            select.select([], [], [], 0.005)


def _reap() -> tuple[int, int] | None:
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def children() -> list[int]:
    """Return the process ids of this process's children, adopted ones too (Linux; none on other systems)."""
    own = os.getpid()
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            if int(stat.read_bytes().rpartition(b")")[2].split()[1]) == own:
                found.append(int(stat.parent.name))
    return found


def _live(fds: list[int]) -> None:
    from multiprocessing import current_process

    payload, *_inherited[:] = fds
    with open(payload, "rb") as file:
        file.seek(0)
        settings = pickle.load(file)
        sys.path[:] = settings["path"]
        sys.argv = settings["argv"]
        current_process().authkey = settings["key"]
        with suppress(OSError):
            os.chdir(settings["folder"])
        target: Callable[..., None]
        target, arguments = pickle.load(file)
    if sys.platform != "linux":
        _watch_parent()
    target(*arguments)


def _watch_parent() -> None:
    """End this process when its parent is gone, on systems where the kernel does not."""
    import threading
    import time

    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
