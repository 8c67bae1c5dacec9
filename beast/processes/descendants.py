"""All processes below this one or another: what they hold, and that none is left."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from beast.processes import forkserver


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Kill, at the end of the block, every process that this one starts inside it or adopts from those (Linux).

    Processes started inside have the usual SIGUSR1, which `run.py` ignores until there is something to save.
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
    """Return the MB that each process holds with all its descendants, shared memory counted by share (PSS, on Linux).

    A process that has ended counts 0.
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
