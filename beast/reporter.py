"""What became of each unit of work: reported, or among the skipped ones."""

from __future__ import annotations

import torch

from beast.finite import SkippedUpdates
from beast.learner import Update
from beast.reports import Reports
from beast.sources import Work


class Reporter:
    """Hears of every unit, and says so.

    Args:
        reports: of the run.
        skipped: the account of updates that were not made.
        late: whether a unit is looked at only when the next one has been made: then nobody waits for a GPU.
    """

    def __init__(self, reports: Reports, skipped: SkippedUpdates, late: bool) -> None:
        self._reports, self._skipped, self._late = reports, skipped, late
        self._pending: tuple[Work, torch.Tensor, list[Update]] | None = None

    def add(self, work: Work, lags: torch.Tensor, updates: list[Update]) -> None:
        """Take in a unit.

        Args:
            lags: how many updates old the policy was that acted, for each step.
            updates: one for each pass.

        Raises:
            FloatingPointError: if one update too many in a row was skipped.
        """
        self._reports.add_episodes(work.episodes)
        unit = (work, lags, updates)
        if self._late:
            self._pending, unit = unit, self._pending
        self._admit(unit)

    def flush(self) -> None:
        """Take in the unit that is still waited for.

        Raises:
            FloatingPointError: as `add` does.
        """
        unit, self._pending = self._pending, None
        self._admit(unit)

    def _admit(self, unit: tuple[Work, torch.Tensor, list[Update]] | None) -> None:
        if unit is None:
            return
        work, lags, updates = unit
        for update in updates:
            if self._skipped.admit(update.number, work.batch, update.metrics):
                metrics = {name: value for name, value in update.metrics.items() if name != "finite"}
                self._reports.add_update(metrics, lags)
            lags = lags[:0]  # of a unit's passes the first one alone has any
