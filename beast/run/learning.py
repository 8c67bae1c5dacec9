"""From work to published weights: the same few lines for every source, algorithm and beast."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from beast.core.gradients import Gradient, Gradients, Staged
from beast.core.learner import Learner, Update
from beast.core.ranks import Ranks
from beast.processes.machine import usable_cores, use_compute_threads
from beast.processes.status import Clock
from beast.run.reporter import Reporter
from beast.store.sources import Source, Work
from beast.store.weights import Weights

STAGES = ("wait", "batch", "copy", "learn", "publish")
BEHIND = 10  # units; then it is the learner that limits the speed, and it gets more of the machine


class Learning:
    """One learner, and all that a unit of work touches.

    Args:
        source: of work.
        gradients, learner: what turns it into weights.
        weights: where they are published.
        reporter: who hears of it.
        ranks: who learns the same policy.
        clock: this process's time by stage: STAGES, and what actors do where they are in it.
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

    def once(self, timeout: float, over: Callable[[], bool]) -> bool:
        """Wait for a unit of work, learn from it, publish. Several threads may call this: one prepares while another learns.

        Args:
            timeout: seconds to wait.
            over: asked before anything is changed; True: leave it.

        Returns:
            False if no unit came in time, or it is over.

        Raises:
            FloatingPointError: if weights became infinite or NaN, or too many updates in a row were skipped.
        """
        work = self.source.next(timeout)
        if work is None:
            return False
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
                    steps = 0 if updates else work.steps * self._ranks.size
                    updates.append(self.learner.apply(self._ranks.sum(gradient), steps))
            with self.clock.time("publish"):
                self.publish()
            self.source.done(work)
            self.reporter.add(self.learner.steps, work, lags, updates)
        return True

    def _passes(self, work: Work, staged: Staged | None) -> Iterable[Gradient]:
        """Each pass's gradient is computed with the weights that the one before it has led to."""
        if staged is None:
            return [] if work.gradient is None else [work.gradient]
        return self.gradients.of(staged)

    def publish(self) -> None:
        """Let everyone act with the newest weights.

        Raises:
            FloatingPointError: if they are not finite.
        """
        acting = self.learner.acting
        self.weights.publish(
            acting.parameters, self.learner.updates, acting.statistics if len(acting.statistics) else None
        )

    def serve(self, compute_threads: int, over: Callable[[], bool]) -> None:
        """The body of a learner thread: unit after unit.

        Args:
            compute_threads: that PyTorch takes for it; on a CPU twice as many once a further unit has been waiting again
                and again, because then actors only wait meanwhile.
        """
        use_compute_threads(compute_threads)
        behind = 0  # units in a row after which another waited already
        while not over():
            if not self.once(0.2, over):
                continue
            behind = behind + 1 if self.source.behind else 0
            if behind == BEHIND and self.gradients.device.type == "cpu":
                use_compute_threads(min(2 * compute_threads, usable_cores()))
