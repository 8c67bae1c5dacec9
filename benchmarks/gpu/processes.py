"""Programs that end with the one that started them, however it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_LINUX = sys.platform == "linux"
_libc = ctypes.CDLL(None)  # loaded here: little should happen between fork and exec
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def die_with(parent: int) -> None:
    """Have the kernel kill the calling process when `parent`, whose child it is, ends (Linux)."""
    if _LINUX:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)


def start(command: Sequence[Any], **settings: Any) -> subprocess.Popen[bytes]:
    """Start a program in the repository's root that is killed as soon as this process is gone.

    Call it from the main thread: the kernel goes by the thread that started a process.
    """
    parent = os.getpid()
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, preexec_fn=lambda: die_with(parent), **settings)


def end(process: subprocess.Popen[bytes], number: int, patience: float) -> bool:
    """Ask a program to end by a signal, and kill it if it has not after `patience` seconds; True if it did so itself."""
    with suppress(ProcessLookupError):
        process.send_signal(number)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)  # one that is stuck in a driver does not even hear that
        return False
    return True


def adopt_orphans() -> None:
    """Have descendants whose parent ends become this process's children, so that `descendants` finds them (Linux)."""
    if _LINUX:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def descendants() -> set[Any]:
    """All that this process and its children have started and that is still there, whatever session it is in."""
    import psutil  # here, because it may lie among the wheels

    return set(psutil.Process().children(recursive=True))


def kill_all_but(kept: set[Any], patience: float = 5.0) -> None:
    """Kill the descendants that are not among these, and bury them."""
    import psutil

    deadline = time.monotonic() + patience
    while (family := descendants() - kept) and time.monotonic() < deadline:
        for process in family:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(family, 0.2)
