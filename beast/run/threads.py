"""Threads that a run depends on: the failure of one is the run's."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Threads:
    """Started by name, joined at the end."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self.failure: BaseException | None = None
        """What ended the first of them that failed."""
        self.ended = threading.Event()
        """Set whenever one ends; whoever waits for something to happen may set it too."""

    def start(self, name: str, target: Callable[[], None]) -> None:
        """Start one; it must end by itself when the run does."""

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
        """Wait for each of them, so many seconds at most."""
        for thread in self._threads:
            thread.join(timeout)
