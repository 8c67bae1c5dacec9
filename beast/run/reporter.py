"""What becomes of each unit of work: its updates are reported or counted as skipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from beast.core.learner import Update
from beast.report.reports import Reports
from beast.run.callbacks import Callbacks
from beast.run.skipped_updates import SkippedUpdates
from beast.store.sources import Work


class _Unit(NamedTuple):
    step: int
    work: Work
    lags: torch.Tensor
    updates: list[Update]


class Reporter:
    """The receiver of every unit that was learned from.

    Args:
        reports: the run's reports.
        skipped: the account of skipped updates.
        callbacks: the user's callbacks.
        late: whether a unit is examined only after the next one was made, so that nothing waits for a GPU.
        learned: takes each unit of which no update was skipped, and the number of its first update.
    """

    def __init__(
        self, reports: Reports, skipped: SkippedUpdates, callbacks: Callbacks, late: bool,
        learned: Callable[[Work, int], None] = lambda work, number: None,
    ) -> None:  # fmt: skip
        self._reports, self._skipped, self._callbacks, self._late = reports, skipped, callbacks, late
        self._learned = learned
        self._pending: _Unit | None = None

    def add(self, step: int, work: Work, lags: torch.Tensor, updates: list[Update]) -> None:
        """Take a unit in.

        Args:
            step: agent steps learned from so far, including this unit's.
            work: the unit.
            lags: how many updates old the policy that acted was, for each step.
            updates: one for each pass.

        Raises:
            FloatingPointError: if too many updates in a row were skipped.
        """
        self._reports.add_episodes(work.episodes)
        self._callbacks.after_episodes(step, work.episodes)
        unit: _Unit | None = _Unit(step, work, lags, updates)
        if self._late:
            self._pending, unit = unit, self._pending
        self._admit(unit)

    def flush(self) -> None:
        """Examine the unit that is still pending.

        Raises:
            FloatingPointError: as `add` does.
        """
        unit, self._pending = self._pending, None
        self._admit(unit)

    def _admit(self, unit: _Unit | None) -> None:
        if unit is None:
            return
        step, work, lags, updates = unit
        made, skipped = 0, False
        for update in updates:
            if skipped and not update.metrics["finite"]:
                continue  # a further pass over a batch that is told already
            if self._skipped.record(update.number, work.batch, update.metrics):
                made += 1
                metrics = {name: value for name, value in update.metrics.items() if name != "finite"}
                self._reports.add_update(metrics, lags)
                self._callbacks.after_update(step, update.number, metrics)
            else:
                skipped = True
            lags = lags[:0]  # only the first pass of a unit has lags
        if updates and made == len(updates):
            self._learned(work, updates[0].number)
