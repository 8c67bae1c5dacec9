"""The process that all workers are forked from: it has imported torch once, so that each costs milliseconds.

It talks to the parent through one socket that has no name, and to nobody else. What workers start is theirs and goes with
them: each worker adopts what its children leave behind, this process adopts what a worker leaves behind, and kills it
(Linux). It has a process group of its own, so that it outlives a kill of the whole group long enough to do that.
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
"""Kind, number of the request, value. What the parent asks for is BORN; its value does not matter."""
READY, BORN, FAILED, DEAD = range(4)
"""All is imported; a worker lives (its pid); it could not be made (an errno); it ended (its exit code, or minus a signal)."""
MOST_DESCRIPTORS = 253  # of Linux, in one message
FOR_THE_PARENT = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM)  # what reaches a group
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
_inherited: list[int] = []


class Handed:
    """A descriptor in what a worker is given: pickled as its place in the message's list."""

    def __init__(self, place: int) -> None:
        self._place = place

    def detach(self) -> int:
        """The descriptor, in the worker; its own from now on."""
        return _inherited[self._place]


def prctl(option: int, value: int) -> None:
    """Linux's; elsewhere nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def serve(fd: int, parent: int, preload: list[str]) -> None:
    """The fork server's whole life.

    Args:
        fd: of the socket to the parent.
        parent: its pid.
        preload: modules to import before the first fork.
    """
    # As long as it has no children the kernel may end it with its parent: by itself it would notice only after the imports.
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    for number in FOR_THE_PARENT:
        # Not ignored but caught: what a worker's environment executes is then born with the signals as they usually are.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # else it is under nohup
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
    # From here on it has children to end first, when the socket says that the parent is gone: it must only not be stopped.
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
    def __init__(self, parent: socket.socket, group: int) -> None:
        self._parent, self._group = parent, group
        self._workers: dict[int, int] = {}  # pid -> number of its request
        self._wake_r, self._wake_w = os.pipe()
        for end in (self._wake_r, self._wake_w):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _nothing)

    def run(self) -> None:
        """Fork and bury until the parent is gone."""
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
        signal.pthread_sigmask(
            signal.SIG_BLOCK, [signal.SIGTERM]
        )  # which a worker does not pass over as this process does
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
        """The rest of a worker's life."""
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
        """Tell of the dead, and kill what they left behind."""
        someone = False
        while (found := _reap()) is not None:
            someone = True
            pid, status = found
            number = self._workers.pop(pid, None)
            if number is not None:
                self._say(DEAD, number, os.waitstatus_to_exitcode(status))
        if someone:  # each orphan's death comes back here, until there is none
            _kill([pid for pid in children() if pid not in self._workers])

    def end_all(self) -> None:
        """Kill all children, and theirs, as they come here one after the other."""
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
    """This process's own, adopted ones too (Linux; elsewhere none)."""
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
    """Where the kernel does not do it."""
    import threading
    import time

    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
