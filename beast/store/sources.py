"""Sources of the learner's work. A source alone decides when slots of the store are freed and handed out again."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch

from beast.core.data import Batch
from beast.core.gradients import Gradient
from beast.processes.status import Clock
from beast.store.unrolls import Episode, UnrollStore


class Work(NamedTuple):
    """One unit for the learner; publishing, saving and stopping happen only between units."""

    steps: int
    """Agent steps that count: those that were not learned from before."""
    versions: torch.Tensor
    """int64 of any shape, on the CPU: the version of the policy that acted, for each of those steps."""
    episodes: list[Episode]
    """Full games that ended in the unit."""
    batch: Batch | None = None
    """Batch as the store returned it, on the CPU. Beside a gradient it is not learned from, and may be None."""
    gradient: Gradient | None = None
    """Gradient that was computed elsewhere, its vector and sums on the learner's device; None if the work came as a batch."""
    slots: tuple[int, ...] = ()
    """Slots of the store that this unit still holds."""
    fresh: Batch | None = None
    """The part of `batch` that was not learned from before, which is what enters a replay; None: all of it."""
    replayed_versions: torch.Tensor = torch.empty(0, dtype=torch.int64)
    """int64 of any shape, on the CPU: like `versions`, for the steps that were learned from before; demonstrations have
    none."""

    @property
    def unseen(self) -> Batch | None:
        """The unrolls that were not learned from before, without those of a replay; None if there is no batch."""
        return self.fresh or self.batch


class Source(Protocol):
    """What the learner asks for work. Several learner threads may ask at the same time."""

    def next(self, timeout: float) -> Work | None:
        """Return the next unit, or None if none comes within `timeout` seconds."""

    def done(self, work: Work) -> None:
        """Note that a unit was learned from and that the resulting weights are published."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold of work that was not taken yet: tensors and plain types."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. Call it before anything else."""


class StoreSource:
    """Batches from the unroll store; slots are freed as soon as they are copied, so that actors never wait for the learner.

    Args:
        store: filled by the actors.
        batch_size: unrolls in a batch.
        clock: times `wait` and `batch`.
    """

    def __init__(self, store: UnrollStore, batch_size: int, clock: Clock) -> None:
        self._store, self._batch_size, self.clock = store, batch_size, clock

    def next(self, timeout: float) -> Work | None:
        """Return a batch of the oldest full slots, or None if there are too few within `timeout` seconds."""
        with self.clock.time("wait"):
            slots = self._store.next_slots(self._batch_size, timeout)
        if slots is None:
            return None
        with self.clock.time("batch"):
            return self._read(slots)

    def _read(self, slots: list[int]) -> Work:
        """Copy full slots into a batch, and decide how long they stay taken."""
        batch, episodes = self._store.read(slots)
        self._store.free(slots)
        return Work(batch.policy_version.numel(), batch.policy_version, episodes, batch)

    def done(self, work: Work) -> None:
        """Do nothing: the slots are free already."""

    def state_dict(self) -> dict[str, Any]:
        """Return the unrolls that no batch has taken."""
        return {"unlearned": self._store.unlearned()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the unrolls of `state_dict` back into the store."""
        self._store.put_back(state["unlearned"])
