"""What a run does when it is sent a signal: finish cleanly, at once, or save a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

DOUBLE_SIGNAL = 0.5  # seconds within which a second signal is the same one


class Wishes:
    """What is asked of a run, by signals or by code. Whoever asks only sets these: the loop looks ten times a second."""

    def __init__(self) -> None:
        self.signal: int | None = None
        """The signal that ends the run."""
        self.stop = False
        """To end soon, and cleanly."""
        self.save = False
        """A checkpoint now."""
        self.ending = False
        """The run has left its loop."""

    @property
    def stopping(self) -> bool:
        """Whether the run is to end, for whatever reason."""
        return self.ending or self.stop or self.signal is not None


@contextmanager
def heard(wishes: Wishes, on_stop: Callable[[], None], at_once: Callable[[], None]) -> Iterator[None]:
    """Listen to signals: first SIGINT, SIGTERM or SIGHUP: finish cleanly; second SIGINT: at once; SIGUSR1: a checkpoint now.

    Outside the main thread nothing is listened to.

    Args:
        on_stop: called in the handler; it may take no lock, which this very thread may hold.
        at_once: kills what must not stay behind, before this process ends on the spot.
    """
    first_at = 0.0

    def stop(number: int, _: Any) -> None:
        nonlocal first_at
        now = time.monotonic()
        if wishes.signal is None:
            first_at = now
        elif now - first_at < DOUBLE_SIGNAL:
            return  # one Ctrl-C, delivered to the process and to its group
        elif number == signal.SIGINT:
            at_once()
            os._exit(128 + number)
        wishes.signal = number
        on_stop()

    def save(number: int, _: Any) -> None:
        wishes.save = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers: dict[int, Any] = {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGUSR1: save}
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # else it is under nohup
        handlers[signal.SIGHUP] = stop
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
