"""Serial mode: all actors in the learner's process, between updates, so that a repeated run has the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beast.processes.status import LocalStatus
from beast.run.action_log import ActionLog, SerialActors
from beast.store.unrolls import UnrollStore, UnrollWriter

SAME_ACTIONS = ("num_actors", "unroll_length", "batch_size", "seed")
"""Flags that must be the same for serial actors to continue."""


class Serial:
    """The actors of a serial run.

    Args:
        store: the store that they fill.
        num_actors: how many there are.
        make: makes the actors from their writer, the number of their life and what they report to.
        status: what they report to.
        action_log: what they have done so far.
        life: number of their life if they must start fresh episodes.
    """

    def __init__(
        self, store: UnrollStore, num_actors: int, make: Callable[[UnrollWriter, int, LocalStatus], SerialActors],
        status: LocalStatus, action_log: ActionLog, life: int,
    ) -> None:  # fmt: skip
        self._store, self._make, self._status, self._action_log, self._life = store, make, status, action_log, life
        self._port = store.attach(0, num_actors)
        self._actors: SerialActors | None = None

    def start(self, log: Callable[[str], None]) -> None:
        """Make the environments and bring them to their former state."""
        self._actors = self._made()
        if not self._action_log.steps:
            return
        log(f"replaying {self._action_log.steps:,} steps of each environment")
        if not self._action_log.fast_forward(self._actors, lambda: self._status.stopping):
            log("the environment is not deterministic: this run goes on with fresh episodes")
            self._actors.close()
            self._action_log = ActionLog(self._life)
            self._actors = self._made()

    def _made(self) -> SerialActors:
        return self._make(self._port.writer, self._action_log.life, self._status)

    def round(self) -> None:
        """Collect one unroll of every actor."""
        assert self._actors is not None
        slots = self._port.acquire(timeout=0.0)
        assert slots is not None, "the store has room for one unroll an actor beside a batch"
        if self._actors.unroll(slots):
            self._port.commit(slots)
            self._action_log.add(self._store.arrays["action"][slots], self._actors)

    def state_dict(self) -> dict[str, Any]:
        """Return what the actors have done, as tensors and plain types."""
        return self._action_log.state_dict()

    def close(self) -> None:
        """Close the environments."""
        if self._actors is not None:
            self._actors.close()
