"""The first function of every child process: it calls the worker's own function and reports its failure to the parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from beast.core.errors import BeastError, StoreClosed
from beast.processes.status import WorkerStatus

NICENESS = 10  # of workers, so that the learner gets a core first on a busy machine
CLOSE_DEADLINE = 10.0  # seconds that a worker's environments may take to close after the worker has ended
_PR_SET_NAME = 15


class _Terminated(BaseException):
    """SIGTERM as an exception, so that the environments are closed before the process ends."""


def _terminate(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second SIGTERM ends the process at once
    raise _Terminated


def worker_main(
    name: str, target: Callable[..., None], status: WorkerStatus, arguments: tuple[Any, ...], errors: Any
) -> None:
    """Run a worker and end the process: the first function of every child.

    Args:
        name: of the process, as `top` shows it.
        target: the worker's function, called with `status` and `arguments`.
        status: what the worker reports to.
        arguments: further arguments of `target`.
        errors: sending end of a pipe to the parent, for (summary, traceback) of a failure.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode())  # `top` shows 15 characters of it
    with suppress(OSError):
        os.nice(NICENESS)
    try:
        signal.signal(signal.SIGTERM, _terminate)
        exit_status = _work(name, target, status, arguments, errors)
    except _Terminated:
        exit_status = -signal.SIGTERM
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # The kernel's timer also ends a close() that hangs in C. Nothing is lost then, because errors are sent already.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, CLOSE_DEADLINE)
    status.close()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()  # output of environments
    if exit_status < 0:
        os.kill(os.getpid(), -exit_status)
    os._exit(exit_status)  # skips the interpreter's shutdown, which threads of libraries slow down and sometimes block


def _work(name: str, target: Callable[..., None], status: WorkerStatus, arguments: tuple[Any, ...], errors: Any) -> int:
    """Call the target, send its failure to the parent and return the exit status."""
    try:
        status.beat()
        target(status, *arguments)
    except StoreClosed:
        return 0  # the run is stopping
    except _Terminated:
        raise
    except BeastError as error:  # its message is complete, and a restart would raise it again
        with suppress(OSError):
            errors.send((str(error), ""))
        return 1
    except BaseException as error:  # the parent must hear of any failure
        summary = f"{type(error).__name__}: {error}".splitlines()[0][:500]
        with suppress(OSError):
            errors.send((summary, f"--- traceback of {name} ---\n{traceback.format_exc()[-8000:]}"))
        return 1
    return 0
