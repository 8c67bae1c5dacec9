"""Rounds: every actor writes one unroll, one update is made of them all, and everybody goes on with the weights it led to.

That is batched A2C, "sync step" and "sync trajectory" of the paper (Espeholt et al. 2018, section 5.1 and table 1).
"""

from __future__ import annotations

from typing import Any

from beast.store.sources import StoreSource, Work
from beast.store.unrolls import UnrollSpec, UnrollStore


class RoundStore(UnrollStore):
    """An unroll store filled in rounds: a port writes one group of unrolls, and gets no more slots until `free` ends the round.

    The account is kept for each port, not for each process. The successor of a worker that died after its commit waits for
    the next round; the successor of one that died before it fills the missing slots in the same round.

    Args:
        spec: layout of one step.
        num_buffers: number of slots; a round needs one for each actor.
        unroll_length: T.
    """

    def __init__(self, spec: UnrollSpec, num_buffers: int, unroll_length: int) -> None:
        super().__init__(spec, num_buffers, unroll_length)
        self._delivered: dict[int, list[int]] = {}  # port -> its full slots of this round

    def free(self, slots: list[int]) -> None:
        """End the round: give its slots back, and let every port write again."""
        with self._lock:
            self._delivered.clear()
        super().free(slots)

    def _hand_out(self) -> None:
        for worker, group in self._groups.items():
            served = self._held[worker] or worker in self._delivered
            if not served and len(self._free) >= group:
                self._give(worker)

    def _note_full(self, worker: int, slot: int) -> None:
        super()._note_full(worker, slot)
        self._delivered.setdefault(worker, []).append(slot)

    def _take_back(self, worker: int) -> set[int]:
        lost = super()._take_back(worker)
        if lost:  # it may have died within a commit too large for one pipe write: then no part of it counts
            for slot in self._delivered.pop(worker, []):
                self._full.remove(slot)
                lost.add(slot)
        return lost


class RoundSource(StoreSource):
    """Batches of one unroll of every actor, in the order of the actors; the next round begins when the update is published.

    So every row was chosen by the policy that learns from it, and the order within a batch does not depend on timing.
    """

    def _read(self, slots: list[int]) -> Work:
        actor: Any = self._store.arrays["actor"]
        slots = sorted(slots, key=lambda slot: int(actor[slot]))
        batch, episodes = self._store.read(slots)
        return Work(batch.policy_version.numel(), batch.policy_version, episodes, batch, slots=tuple(slots))

    def done(self, work: Work) -> None:
        """Begin the next round, now that the update is published."""
        self._store.free(list(work.slots))
