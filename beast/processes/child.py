"""The first function of every child process: it calls the worker's own, and tells the parent how that failed."""

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

NICENESS = 10  # of workers, so that on a full machine the learner never waits for a core
CLOSE_DEADLINE = 10.0  # seconds that a worker's environments have to close, where nobody waits for it
_PR_SET_NAME = 15


class _Terminated(BaseException):
    """SIGTERM: the environments are closed before it has its way."""


def _terminate(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one has it at once
    raise _Terminated


def worker_main(
    name: str, target: Callable[..., None], status: WorkerStatus, arguments: tuple[Any, ...], errors: Any
) -> None:
    """The first function of every child."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode())  # what `top` shows, cut after 15 letters
    with suppress(OSError):
        os.nice(NICENESS)
    try:
        signal.signal(signal.SIGTERM, _terminate)
        exit_status = _work(name, target, status, arguments, errors)
    except _Terminated:
        exit_status = -signal.SIGTERM
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # The kernel's own clock: it ends a close() that hangs in C as well. Nothing is lost then, all is told already.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, CLOSE_DEADLINE)
    status.close()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()  # what an environment printed
    if exit_status < 0:
        os.kill(os.getpid(), -exit_status)
    os._exit(exit_status)  # no interpreter shutdown: libraries' threads make it slow, and sometimes hang


def _work(name: str, target: Callable[..., None], status: WorkerStatus, arguments: tuple[Any, ...], errors: Any) -> int:
    """Call the target, tell the parent how it failed; returns the exit status."""
    try:
        status.beat()
        target(status, *arguments)
    except StoreClosed:
        return 0  # a stop like any other
    except _Terminated:
        raise
    except BeastError as error:  # says all there is to say, and would come again
        with suppress(OSError):
            errors.send((str(error), ""))
        return 1
    except BaseException as error:  # whatever it is, the parent must hear of it
        summary = f"{type(error).__name__}: {error}".splitlines()[0][:500]
        with suppress(OSError):
            errors.send((summary, f"--- traceback of {name} ---\n{traceback.format_exc()[-8000:]}"))
        return 1
    return 0
