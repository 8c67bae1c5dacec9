"""Experience replay on the learner (paper, section 5.2.2): a part of each batch was learned from before, or is a demonstration.

Fresh unrolls alone count: as steps, in the schedule, the speed, the episodes and the lag. How old replayed ones are is told
beside it. The recurrent state before an unroll is the one that it was acted with.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any

import torch

from beast.core.data import Batch, map_nested
from beast.core.errors import ConfigError
from beast.processes.shared import SharedArrays
from beast.processes.status import Clock
from beast.store.batches import BatchLayout
from beast.store.sources import Source, Work
from beast.store.unrolls import UnrollSpec


@dataclass(frozen=True)
class ReplayConfig:
    """Replay"""

    replay_capacity: int = 0
    """Keep so many unrolls that were learned from, the newest, and learn from them again (10,000 in the paper; 0: none).
    The run says at its start how much memory they take."""
    replay_ratio: float = 0.5
    """The part of each batch that is drawn again, uniformly, from the unrolls kept and the demonstrations together, rounded
    down to whole unrolls. The rest is fresh, and only that counts as steps."""
    demonstrations: str | None = None
    """Learn from the unrolls in this folder too, which --record_unrolls wrote in a run with the same environment, network
    and unroll length. They are drawn together with those that are kept, and are kept for good."""
    record_unrolls: str | None = None
    """Write the unrolls that are learned from into this folder, for --demonstrations or for yourself (docs/extend.md).
    Give it again when you resume."""
    record_limit: int = 10_000
    """Write at most so many unrolls."""

    def __post_init__(self) -> None:
        if self.replay_capacity < 0:
            raise ValueError(f"--replay_capacity must be at least 0, got {self.replay_capacity}")
        if not 0 < self.replay_ratio < 1:
            raise ValueError(
                f"--replay_ratio must lie between 0 and 1 (a part of each batch is fresh), got {self.replay_ratio}; "
                "--replay_capacity 0 is training without replay"
            )
        if self.record_limit < 1:
            raise ValueError(f"--record_limit must be at least 1, got {self.record_limit}")
        for name in ("demonstrations", "record_unrolls"):
            if getattr(self, name) == "":
                raise ValueError(f"--{name} must be a folder, got ''")

    def unrolls(self, batch_size: int) -> int:
        """Return how many unrolls of a batch are replayed: 0 without replay, else 1 to `batch_size - 1`.

        Raises:
            ConfigError: if the ratio leaves none, or the capacity is smaller than that.
        """
        if not self.replay_capacity and not self.demonstrations:
            return 0
        replayed = math.floor(batch_size * self.replay_ratio + 1e-9)  # 0.29 * 100 is 28.999...
        if not replayed:
            raise ConfigError(
                f"--replay_ratio {self.replay_ratio:g} of --batch_size {batch_size} is less than one unroll: raise either"
            )
        if 0 < self.replay_capacity < replayed:
            raise ConfigError(
                f"--replay_capacity {self.replay_capacity} is too small: each batch draws {replayed} unrolls from it "
                f"(--replay_ratio {self.replay_ratio:g} of --batch_size {batch_size})"
            )
        return replayed


def replay_specs(spec: UnrollSpec, unrolls: int, unroll_length: int) -> dict[str, Any]:
    """Return the specs of arrays `[unrolls, ...]` for so many unrolls: those of the store that a batch needs."""
    slots = spec.slots(unrolls, unroll_length)
    return {name: slots[name] for name in Batch._fields}


class Replay:
    """Unrolls in memory: demonstrations, which stay, and the newest that were added. Several threads may use it.

    Args:
        spec: of one step.
        unroll_length: T.
        capacity: how many stay of those that are added; the oldest goes first.
        seed: of what is drawn.
        demonstrations: how many there are; the caller writes them into the first of `tensors`.

    Raises:
        MemoryError: if the system has not that much.
    """

    def __init__(self, spec: UnrollSpec, unroll_length: int, capacity: int, seed: int, demonstrations: int = 0) -> None:
        self._shared = SharedArrays(replay_specs(spec, demonstrations + capacity, unroll_length))
        self.tensors: dict[str, Any] = map_nested(torch.from_numpy, self._shared.arrays)
        """`[demonstrations + capacity, ...]` by field."""
        self._layout = BatchLayout(spec)
        self._capacity, self._demonstrations = capacity, demonstrations
        self._added = 0
        self._random = torch.Generator().manual_seed(seed)
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self._shared.nbytes

    def __len__(self) -> int:
        """Return how many unrolls it holds."""
        return self._demonstrations + min(self._added, self._capacity)

    def add(self, batch: Batch) -> None:
        """Copy a batch's unrolls in, its first as the oldest."""
        number = batch.action.shape[1]
        with self._lock:
            kept = min(number, self._capacity)
            newest = self._added + torch.arange(number - kept, number)  # counted since the start
            if kept:
                slots = self._demonstrations + newest % self._capacity
                self._layout.scatter(self.tensors, slots, self._layout.part(batch, number - kept, kept))
            self._added += number

    def draw(self, number: int) -> tuple[Batch, torch.Tensor] | None:
        """Copy unrolls out, each drawn uniformly from all that it holds, the same one perhaps several times.

        Returns:
            A new batch, and the versions of the policy `[T, n]` that acted in those of it that are no demonstrations; None if
            it does not hold as many yet.
        """
        with self._lock:
            if len(self) < number:
                return None
            slots = torch.randint(len(self), (number,), generator=self._random)
            batch = self._layout.gather(self.tensors, slots)
        return batch, batch.policy_version[:, slots >= self._demonstrations]

    def join(self, fresh: Batch, drawn: Batch) -> Batch:
        """Return a new batch with the unrolls of both."""
        return self._layout.join(fresh, drawn)


class ReplaySource:
    """A source that appends replayed unrolls to the batches of another one.

    Until the replay holds as many as a batch draws, batches have their fresh part alone. So every update takes the same number
    of fresh steps, any source can be below, and as losses are sums, the missing part simply adds nothing to them.

    Args:
        source: of fresh batches.
        replay: that the rest is drawn from.
        number: of unrolls that it adds to each batch.
        clock: times `batch`.
    """

    def __init__(self, source: Source, replay: Replay, number: int, clock: Clock) -> None:
        self._source, self._replay, self._number, self._clock = source, replay, number, clock
        self._lock = threading.Lock()  # of the ages
        self._ages = (0, 0, 0)  # count, sum, maximum

    def next(self, timeout: float) -> Work | None:
        """Return the next fresh unit with its replayed part, or None if there is none within `timeout` seconds."""
        work = self._source.next(timeout)
        if work is None or work.batch is None:
            return work
        with self._clock.time("batch"):
            drawn = self._replay.draw(self._number)
            if drawn is None:
                return work
            batch = self._replay.join(work.batch, drawn[0])
        return work._replace(batch=batch, fresh=work.batch, replayed_versions=drawn[1])

    def done(self, work: Work) -> None:
        """Tell the source below that a unit was learned from and published."""
        self._source.done(work)

    def learned(self, work: Work, number: int) -> None:
        """Take in the fresh part of a unit whose updates were all made.

        Args:
            work: as `next` gave it.
            number: of its first update.
        """
        if work.unseen is not None:
            self._replay.add(work.unseen)
        if work.replayed_versions.numel():
            ages = number - 1 - work.replayed_versions
            with self._lock:
                count, total, most = self._ages
                self._ages = count + ages.numel(), total + int(ages.sum()), max(most, int(ages.max()))

    def report(self) -> dict[str, float]:
        """Return columns for the logs: the number of unrolls kept, and the age of those replayed since the last report.

        Ages are in updates; demonstrations have none.
        """
        with self._lock:
            (count, total, most), self._ages = self._ages, (0, 0, 0)
        ages = {"replay_age_mean": total / count, "replay_age_max": float(most)} if count else {}
        return {"replay_unrolls": float(len(self._replay)), **ages}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the source below; the replay is in no checkpoint."""
        return self._source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._source.load_state_dict(state)
