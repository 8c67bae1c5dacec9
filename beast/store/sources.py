"""Where the learner's work comes from. A source alone decides when slots of the store go back and are handed out again."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch

from beast.core.data import Batch
from beast.core.gradients import Gradient
from beast.processes.status import Clock
from beast.store.unrolls import Episode, UnrollStore


class Work(NamedTuple):
    """One unit for the learner: what is done with it is published, saved and stopped as a whole."""

    steps: int
    """Agent steps that count: those that nobody has learned from before."""
    versions: torch.Tensor
    """int64, any shape: the version of the policy that acted, for each of those steps; on the CPU."""
    episodes: list[Episode]
    """Full games that ended in it."""
    batch: Batch | None = None
    """As the store gave it, on the CPU. Beside a gradient it is not learned from, and need not be there."""
    gradient: Gradient | None = None
    """Computed elsewhere: its vector and sums are on the learner's device, its metrics anywhere."""
    slots: tuple[int, ...] = ()
    """Of the store, if they are still taken."""


class Source(Protocol):
    """What the learner asks for work. Its threads may ask at the same time."""

    def next(self, timeout: float) -> Work | None:
        """The next unit, or None if there is none within `timeout` seconds."""

    def done(self, work: Work) -> None:
        """Hear that a unit was learned from and that what came of it is published."""

    @property
    def behind(self) -> bool:
        """Whether the next unit is there already: then it is the learner that limits the speed."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold of work that nobody took yet: tensors and plain types."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave, before anything else happens."""


class StoreSource:
    """Batches from the unroll store; actors never wait for the learner, so slots are free again as soon as they are copied.

    Args:
        store: filled by the actors.
        batch_size: unrolls a batch.
        clock: times `wait` and `batch`.
    """

    def __init__(self, store: UnrollStore, batch_size: int, clock: Clock) -> None:
        self._store, self._batch_size, self.clock = store, batch_size, clock

    def next(self, timeout: float) -> Work | None:
        with self.clock.time("wait"):
            slots = self._store.next_slots(self._batch_size, timeout)
        if slots is None:
            return None
        with self.clock.time("batch"):
            batch, episodes = self._store.read(slots)
            self._store.free(slots)
        return Work(batch.policy_version.numel(), batch.policy_version, episodes, batch)

    def done(self, work: Work) -> None:
        pass

    @property
    def behind(self) -> bool:
        return self._store.fill()["full"] >= self._batch_size

    def state_dict(self) -> dict[str, Any]:
        return {"unlearned": self._store.unlearned()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._store.put_back(state["unlearned"])
