"""Threads that a run depends on: if one fails, the run fails."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Threads:
    """The threads of a run, started by name and joined at the end."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self.failure: BaseException | None = None
        """Exception of the first thread that failed."""
        self.ended = threading.Event()
        """Set when a thread ends; others may set it to wake who waits for it."""

    def start(self, name: str, target: Callable[[], None]) -> None:
        """Start a thread, which must end by itself when the run does."""

        def guarded() -> None:
            try:
                target()
            except BaseException as error:
                self.failure = self.failure or error
            finally:
                self.ended.set()

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def join(self, timeout: float) -> None:
        """Wait for each thread, at most this many seconds."""
        for thread in self._threads:
            thread.join(timeout)
