"""What a run does when it receives a signal: finish cleanly, end at once, or save a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

DOUBLE_SIGNAL = 0.5  # seconds within which a second signal counts as the same one


class Wishes:
    """What signals or code ask of a run. They only set these fields; the loop reads them ten times a second."""

    def __init__(self) -> None:
        self.signal: int | None = None
        """The signal that ends the run."""
        self.stop = False
        """Whether the run is to end soon and cleanly."""
        self.save = False
        """Whether to save a checkpoint now."""
        self.ending = False
        """Whether the run has left its loop."""

    @property
    def stopping(self) -> bool:
        """Whether the run is to end, for whatever reason."""
        return self.ending or self.stop or self.signal is not None


@contextmanager
def heard(wishes: Wishes, on_stop: Callable[[], None], at_once: Callable[[], None]) -> Iterator[None]:
    """Handle signals: the first SIGINT, SIGTERM or SIGHUP finishes cleanly, a second SIGINT ends at once, SIGUSR1 saves.

    Only the main thread can receive signals; in other threads this does nothing.

    Args:
        wishes: where requests are noted.
        on_stop: called in the handler; it may take no lock, because this thread may hold it.
        at_once: kills remaining processes before this process ends at once.
    """
    first_at = 0.0

    def stop(number: int, _: Any) -> None:
        nonlocal first_at
        now = time.monotonic()
        if wishes.signal is None:
            first_at = now
        elif now - first_at < DOUBLE_SIGNAL:
            return  # one Ctrl-C may reach both the process and its group
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
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # an ignored SIGHUP means nohup
        handlers[signal.SIGHUP] = stop
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
