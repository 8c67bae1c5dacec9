"""The rule of dynamic batching: which requests are served when, and together. It knows no pipe and no model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple

from .mailbox import Request


class Waiting(NamedTuple):
    """A request in the queue."""

    request: Request
    since: float
    """Time of its arrival, in seconds of a monotonic clock."""


class Batcher:
    """A queue of requests in order of arrival, served when enough environments wait or the oldest has waited long enough.

    Args:
        sizes: number of environments in each group.
        min_batch: fewest environments in a batch, unless the timeout has passed.
        max_batch: most environments in a batch; a batch never splits a group.
        timeout: seconds after which the oldest request is served in any case.

    Raises:
        ValueError: if a single group is larger than max_batch.
    """

    def __init__(self, sizes: dict[int, int], min_batch: int, max_batch: int, timeout: float) -> None:
        if max(sizes.values()) > max_batch:
            raise ValueError(
                f"--inference_max_batch {max_batch} is smaller than a group of {max(sizes.values())} environments: "
                "raise it, or --num_actor_processes"
            )
        self._sizes, self._min_batch, self._max_batch, self._timeout = sizes, min_batch, max_batch, timeout
        self._waiting: OrderedDict[int, Waiting] = OrderedDict()  # by group
        self._served: dict[int, int] = {}  # group -> ticket

    def add(self, request: Request, now: float) -> bool:
        """Queue a request; return False if it only repeats one that waits or was served."""
        if self._served.get(request.group_id) == request.ticket:
            return False
        if (waiting := self._waiting.get(request.group_id)) is not None:
            # It may come from a new worker that replaced a dead one.
            self._waiting[request.group_id] = Waiting(request, waiting.since)
            return waiting.request.ticket != request.ticket
        self._waiting[request.group_id] = Waiting(request, now)
        return True

    def next_batch(self, now: float, kind: Callable[[int], Hashable] = lambda group: None) -> list[Waiting]:
        """Return the requests to serve now, oldest first; empty if it is too early.

        Args:
            now: in seconds of a monotonic clock.
            kind: maps a group to its kind; only groups of one kind share a batch (those that act with one policy version).
        """
        if not self._waiting:
            return []
        oldest = next(iter(self._waiting))
        chosen, size = [], 0
        for group in self._waiting:
            if kind(group) == kind(oldest) and size + self._sizes[group] <= self._max_batch:
                chosen.append(group)
                size += self._sizes[group]
        if size < min(self._min_batch, self._max_batch) and self.patience(now):
            return []
        batch = [self._waiting.pop(group) for group in chosen]
        self._served.update(waiting.request for waiting in batch)
        return batch

    def patience(self, now: float) -> float | None:
        """Return the seconds until the oldest request must be served; None if none waits."""
        if not self._waiting:
            return None
        return max(0.0, next(iter(self._waiting.values())).since + self._timeout - now)


class Lockstep(Batcher):
    """One batch a step, for as long as the slowest environment takes: the paper's "sync step" (table 1).

    Args:
        sizes: environments in each group.
        unfinished: which groups have not finished their unroll of this round; a batch waits for all of them.
    """

    def __init__(self, sizes: dict[int, int], unfinished: Callable[[], set[int]]) -> None:
        super().__init__(sizes, min_batch=1, max_batch=sum(sizes.values()), timeout=0.0)
        self._unfinished = unfinished

    def _all_here(self) -> bool:
        return self._unfinished() <= self._waiting.keys()

    def next_batch(self, now: float, kind: Callable[[int], Hashable] = lambda group: None) -> list[Waiting]:
        """Return all requests, oldest first; none if a group is missing."""
        return super().next_batch(now, kind) if self._all_here() else []

    def patience(self, now: float) -> float | None:
        """Return 0 if everybody can be served; None if a group is missing or nobody waits."""
        return super().patience(now) if self._all_here() else None
