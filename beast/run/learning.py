"""From work to published weights: the same few lines for every source, algorithm and trainer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import torch

from beast.core.gradients import Gradient, Gradients, Staged
from beast.core.learner import Learner, Update
from beast.core.ranks import Ranks
from beast.processes.machine import use_compute_threads
from beast.processes.status import Clock
from beast.run.compute_threads import ComputeThreads
from beast.run.reporter import Reporter
from beast.store.sources import Source, Work
from beast.store.weights import Weights

STAGES = ("wait", "batch", "copy", "learn", "publish")


class Learning:
    """One learner and all that a unit of work needs.

    Args:
        source: where units of work come from.
        gradients: turns a batch into gradients.
        learner: turns gradients into weights.
        weights: where they are published.
        reporter: is told of each unit.
        ranks: all learners of the same policy.
        clock: this process's seconds by stage: STAGES, and those of actors that run in this process.
    """

    def __init__(
        self, source: Source, gradients: Gradients, learner: Learner, weights: Weights, reporter: Reporter, ranks: Ranks,
        clock: Clock,
    ) -> None:  # fmt: skip
        self.source, self.gradients, self.learner, self.weights = source, gradients, learner, weights
        self.reporter, self.clock = reporter, clock
        self._ranks = ranks
        self.lock = threading.Lock()
        """Held from a unit's first gradient until it is published: who takes it sees the learner between two units."""

    def learn(self, work: Work, over: Callable[[], bool]) -> bool:
        """Learn from a unit of work and publish. Several threads may call this: one prepares while another learns.

        Args:
            work: the unit.
            over: asked before anything is changed; True leaves the unit.

        Returns:
            False if `over` returned True, or a rank has left.

        Raises:
            FloatingPointError: if weights became infinite or NaN, or too many updates in a row were skipped.
        """
        with self.clock.time("copy"):
            to_learn = work.batch if work.gradient is None else None
            staged = None if to_learn is None else self.gradients.to_device(to_learn)
        with self.lock:
            if over():
                return False
            lags = self.learner.updates - work.versions
            with self.clock.time("learn"):
                updates: list[Update] = []
                for gradient in self._passes(work, staged):
                    total = self._ranks.sum(gradient, 0 if updates else work.steps)
                    if total is None:
                        return False
                    updates.append(self.learner.apply(*total))
                heard = work._replace(episodes=self._ranks.gather(work.episodes))
            with self.clock.time("publish"):
                self.publish()
            self.source.done(work)
            self.reporter.add(self.learner.steps, heard, lags, updates)
        return True

    def _passes(self, work: Work, staged: Staged | None) -> Iterable[Gradient]:
        """Each pass's gradient is computed with the weights that the one before it has led to."""
        if staged is None:
            return [] if work.gradient is None else [work.gradient]
        return self.gradients.of(staged)

    def publish(self) -> None:
        """Publish the newest weights to all readers.

        Raises:
            FloatingPointError: if they are not finite.
        """
        acting = self.learner.acting
        self.weights.publish(acting.parameters, self.learner.updates, acting.statistics)

    def serve(self, fewest: int, most: int, over: Callable[[], bool]) -> None:
        """Learn from one unit after the other: the body of a learner thread.

        Args:
            fewest: threads with which PyTorch computes.
            most: threads that it takes instead where that is faster.
            over: returns whether to end.
        """
        # Numbers under 1e-38 count as zero here. The mean squares of weights that no longer learn get so small, and a CPU
        # takes many times as long for such numbers.
        torch.set_flush_denormal(True)
        threads = ComputeThreads(fewest, most, use_compute_threads)
        end: float | None = None  # of the unit before; the first one waits for actors to start, which says nothing
        while not over():
            work, found = self.source.next(0.2), time.monotonic()
            if work is not None and self.learn(work, over):
                before, end = found if end is None else end, time.monotonic()
                threads.note(end - before, waited=found - before)
