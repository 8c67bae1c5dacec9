"""Inference: gather the waiting environments, run one forward for all of them, and return the actions."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from beast.acting.models import ModelChoice
from beast.acting.policy import Policy
from beast.core.data import Array, ArraySpec, Nested, flatten, map_nested
from beast.processes.machine import keep_freed_memory, use_compute_threads
from beast.processes.shared import SharedArrays
from beast.processes.status import Status, WorkerStatus
from beast.store.weights import Weights

from .batcher import Batcher, Lockstep, Waiting
from .mailbox import Line, Mailbox, Request

_WAIT_EDGES = np.geomspace(1e-5, 10.0, 61)  # bins of waiting times, in seconds


@dataclass(frozen=True)
class InferenceArguments:
    """What inference needs, in whichever process it runs."""

    model: ModelChoice
    dtype: torch.dtype
    device: torch.device
    weights: Weights
    mailbox: Mailbox
    requests: Line
    answers: list[Line]
    """Pipe to each worker for answers."""
    groups: list[slice]
    """Slice of each group's rows in the mailbox."""
    worker_of: list[int]
    """Index of each group's worker."""
    min_batch: int
    max_batch: int
    timeout: float
    """Seconds after which the oldest request is served in any case."""
    sync_every_step: bool
    """Whether weights may change within an unroll."""
    lockstep: bool
    """Whether each forward waits for all environments."""
    keep_states: bool
    """Whether recurrent states are left where a successor finds them if this process dies."""
    statistics: Statistics


class Statistics:
    """Counts that inference keeps in shared memory: batch sizes, waiting times, time in forwards.

    Args:
        num_actors: the largest possible batch.
    """

    def __init__(self, num_actors: int) -> None:
        self._shared = SharedArrays(
            {
                "batch_sizes": ArraySpec((num_actors + 1,), np.dtype(np.int64)),
                "waits": ArraySpec((len(_WAIT_EDGES) + 1,), np.dtype(np.int64)),
                "seconds": ArraySpec((1,), np.dtype(np.float64)),
            }
        )

    def add(self, batch_size: int, waits: list[float], seconds: float) -> None:
        """Count one forward: its batch size, the waiting time of each group and its duration, in seconds."""
        arrays = self._shared.arrays
        arrays["batch_sizes"][batch_size] += 1
        np.add.at(arrays["waits"], np.searchsorted(_WAIT_EDGES, waits), 1)
        arrays["seconds"][0] += seconds

    def counts(self) -> dict[str, Any]:
        """Return a copy of the counts, to compare with a later one."""
        return {name: array.copy() for name, array in self._shared.arrays.items()}

    @staticmethod
    def summary(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
        """Summarise what happened between two counts.

        Returns:
            Batch sizes (mean, median, 99th percentile), waiting times of groups, and forward times.
        """
        sizes = after["batch_sizes"] - before["batch_sizes"]
        waits = after["waits"] - before["waits"]
        forwards = int(sizes.sum())

        def quantile(counts: Any, values: Any, q: float) -> float:
            at = int(np.searchsorted(np.cumsum(counts), q * counts.sum()))
            return float(values[min(at, len(values) - 1)])

        if not forwards:
            return {}
        every = np.arange(len(sizes))
        return {
            "forwards": forwards,
            "batch_size_mean": float((sizes * every).sum() / forwards),
            "batch_size_median": quantile(sizes, every, 0.5),
            "batch_size_p99": quantile(sizes, every, 0.99),
            "wait_ms_median": 1e3 * quantile(waits, _WAIT_EDGES, 0.5),
            "wait_ms_p99": 1e3 * quantile(waits, _WAIT_EDGES, 0.99),
            "forward_ms": 1e3 * float(after["seconds"][0] - before["seconds"][0]) / forwards,
        }


class Inference:
    """The server of requests for actions. The recurrent state of every environment stays here, on the device.

    Args:
        arguments: what it needs.
        status: times forwards.
    """

    def __init__(self, arguments: InferenceArguments, status: Status) -> None:
        a = self._a = arguments
        self._status = status
        self._policies: list[Policy] = []
        self._acting: dict[int, Policy] = {}  # group -> policy that acts in its current unroll
        self._core_state: Nested = self._policy_for(None).initial_state(sum(g.stop - g.start for g in a.groups))
        self._has_state = bool(flatten(self._core_state))
        # One set of rows is enough, because a forward is done with it when its actions are there.
        self._page_locked = a.mailbox.page_locked() if a.device.type == "cuda" else None
        sizes = {group: places.stop - places.start for group, places in enumerate(a.groups)}
        self._batcher = (
            Lockstep(sizes, lambda: a.mailbox.unfinished(a.groups, a.weights.version))
            if a.lockstep
            else Batcher(sizes, a.min_batch, a.max_batch, a.timeout)
        )

    @property
    def core_state(self) -> Nested:
        """The recurrent state of all actors, arrays `[num_actors, ...]`."""
        return map_nested(lambda leaf: leaf.cpu().numpy(), self._core_state)

    @core_state.setter
    def core_state(self, state: Nested) -> None:
        map_nested(lambda leaf, array: leaf.copy_(torch.from_numpy(array)), self._core_state, state)

    def serve(self, stopping: Callable[[], bool], beat: Callable[[], None]) -> None:
        """Answer requests until told to stop."""
        attend(
            self._batcher, lambda group: id(self._acting[group]), self._answer, self._receive, stopping, beat
        )  # fmt: skip

    def _receive(self, timeout: float) -> None:
        for request in self._a.requests.receive(timeout):
            if self._batcher.add(request, time.monotonic()):
                self._restore(request)
                self.admit(request.group_id)

    def _restore(self, request: Request) -> None:
        """Take over the recurrent state of a group from a dead predecessor, if it left one."""
        if not self._a.keep_states or request.group_id in self._acting:
            return
        places = self._a.groups[request.group_id]
        if (kept := self._a.mailbox.kept_state(request, places)) is not None:
            map_nested(lambda leaf, array: leaf[places].copy_(torch.from_numpy(array)), self._core_state, kept)

    def _leave_states(self, requests: list[Request]) -> None:
        for request in requests:
            places = self._a.groups[request.group_id]
            leaves = [leaf[places].cpu().numpy() for leaf in flatten(self._core_state)]
            self._a.mailbox.keep_state(places, request.ticket, leaves)

    def admit(self, group: int) -> None:
        """Give a group that is at row 0 of an unroll the newest weights, which it keeps until its next unroll."""
        opening = bool(self._a.mailbox.get_rows([self._a.groups[group]]).opening[0])
        if opening or group not in self._acting:
            self._acting.pop(group, None)
            self._acting[group] = self._policy_for(group)

    def _policy_for(self, group: int | None) -> Policy:
        """Return a policy with the newest weights: an existing one, or one that no group uses any more, reloaded."""
        a = self._a
        if a.sync_every_step and self._policies:
            return self._policies[0]
        version = a.weights.version
        if newest := [policy for policy in self._policies if policy.version == version]:
            return newest[0]
        in_use = {id(policy) for policy in self._acting.values()}
        unused = [policy for policy in self._policies if id(policy) not in in_use]
        if not unused:
            unused = [Policy(a.model, a.dtype, a.weights, 0, a.device)]
            self._policies += unused
        policy = unused[0]
        policy.refresh()
        return policy

    def _answer(self, batch: list[Waiting]) -> None:
        start = time.monotonic()
        a = self._a
        self.forward([waiting.request.group_id for waiting in batch])
        if a.keep_states and self._has_state:
            self._leave_states([waiting.request for waiting in batch])
        by_worker: dict[int, list[Request]] = {}
        for waiting in batch:
            by_worker.setdefault(a.worker_of[waiting.request.group_id], []).append(waiting.request)
        for worker, requests in by_worker.items():
            a.answers[worker].send(requests)
        places = [a.groups[waiting.request.group_id] for waiting in batch]
        waits = [start - waiting.since for waiting in batch]
        a.statistics.add(sum(p.stop - p.start for p in places), waits, time.monotonic() - start)

    def forward(self, groups: list[int]) -> None:
        """Act for groups that share one policy: read their rows from the mailbox and put the actions back."""
        places = [self._a.groups[group] for group in groups]
        with self._status.time("inference", sum(p.stop - p.start for p in places)):
            self._forward(self._acting[groups[0]], places)

    @torch.inference_mode()
    def _forward(self, policy: Policy, places: list[slice]) -> None:
        a = self._a
        if a.sync_every_step:
            policy.refresh()
        post = a.mailbox.get_rows(places, self._page_locked)
        state: Nested = ()
        if self._has_state:
            state = map_nested(lambda leaf: torch.cat([leaf[p] for p in places]), self._core_state)
            self._put_states(places, post.opening)
        chosen, state = policy.forward(post, post.noise, state)
        a.mailbox.put_actions(places, chosen, policy.version)
        if self._has_state:
            for leaf, new in zip(flatten(self._core_state), flatten(state), strict=True):
                for p, part in zip(places, new.split([p.stop - p.start for p in places]), strict=True):
                    leaf[p] = part

    def _put_states(self, places: list[slice], opening: Array) -> None:
        start = 0
        for p in places:
            if opening[start]:
                before = [leaf[p].cpu().numpy() for leaf in flatten(self._core_state)]
                self._a.mailbox.put_state(p, before)
            start += p.stop - p.start


def attend(
    batcher: Batcher, together: Callable[[int], int], answer: Callable[[list[Waiting]], None],
    receive: Callable[[float], None], stopping: Callable[[], bool], beat: Callable[[], None],
) -> None:  # fmt: skip
    """Serve waiting requests, batch after batch, with a sign of life before each.

    Args:
        batcher: the queue.
        together: maps a group to a number; groups with the same number may share a batch.
        answer: serves a batch.
        receive: takes requests in, waiting up to this many seconds for the first.
        stopping: returns whether to stop.
        beat: notes a sign of life.
    """
    while not stopping():
        beat()
        if batch := batcher.next_batch(time.monotonic(), together):
            answer(batch)
            receive(0.0)
            continue
        patience = batcher.patience(time.monotonic())
        receive(0.2 if patience is None else patience)


def run(status: WorkerStatus, _ports: list[Any], arguments: InferenceArguments) -> None:
    """Run an inference process until told to stop."""
    use_compute_threads(1)
    keep_freed_memory()
    inference = Inference(arguments, status)
    status.beat(1)
    inference.serve(lambda: status.stopping, status.beat)
