"""Whether a run has stopped learning: its policy tries nothing else any more, and plays no better than at the start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from beast.core.distributions import Distribution

CERTAIN = 0.02
"""Policies with less than this part of the largest entropy try nothing else; successful runs stay above it for long."""
OPEN = 0.5
"""Policies with more than this part are taken to play as at the start."""
GAMES = 100
"""Games between two looks at a policy that is certain: as many as a report's means are over."""


def largest_entropy(distribution: Distribution) -> float | None:
    """Return the entropy of a policy that takes all choices alike, in nats; None where actions hold numbers.

    The entropy of numbers has no zero that would tell a policy without doubt.
    """
    if distribution.log_stds.any():
        return None
    return float(distribution.entropy(torch.zeros(distribution.num_params)))


class Level(NamedTuple):
    """How well a policy plays."""

    mean: float
    """Mean return of the games."""
    deviation: float
    """Standard deviation of their returns."""
    episodes: int
    """Games so far in the run, these included."""


class Stall:
    """Watches the reports of a run whose actions are choices, and speaks once.

    A policy with next to no entropy sees no outcome but those of its own choices, so little changes any more. A policy that
    has solved its task may have as little, but it plays better than at the start: its mean return is higher by a standard
    deviation of single games or more. The start is the last report before the entropy fell below half of the largest one;
    where there is none (the first report came too late, or fewer than half of `GAMES` games had ended) nothing was ever
    tried long enough. Nothing is said while returns still rise, by half of that deviation from one look to the next.

    Args:
        largest: the entropy of a policy that takes all choices alike, in nats.
    """

    def __init__(self, largest: float) -> None:
        self._largest = largest
        self._start: Level | None = None
        self._mark: Level | None = None  # of the last look
        self._looks = 0  # at games that a certain policy alone has played
        self._told = False

    def look(self, entropy: float | None, returns: Sequence[float], episodes: int) -> str | None:
        """Take in a report.

        Args:
            entropy: mean of a step in nats, since the report before; None: there was no update.
            returns: of the newest games, `GAMES` at most.
            episodes: games so far.

        Returns:
            One line if the run has stopped learning and has not said so before.
        """
        if self._told or entropy is None or 2 * len(returns) < GAMES:
            return None
        now = Level(float(np.mean(returns)), float(np.std(returns)), episodes)
        if entropy > OPEN * self._largest:
            self._start = now
        if entropy > CERTAIN * self._largest:
            self._mark, self._looks = None, 0
            return None
        if self._mark is None:
            self._mark = now
        if episodes < self._mark.episodes + GAMES:
            return None
        before, self._mark = self._mark, now
        self._looks += 1
        rises = now.mean > before.mean + before.deviation / 2
        if self._looks < 2 or rises or (self._start and now.mean > self._start.mean + self._start.deviation):
            return None
        self._told = True
        return (
            f"this run seems to have stopped learning: its policy tries nothing else (entropy {entropy:.2g} of "
            f"{self._largest:.2g} nats) while the mean return is {now.mean:.4g}{self._since()}; a new run may go further "
            "with a larger --entropy_cost, a smaller --learning_rate or --scale_rewards --reward_clipping none"
        )

    def _since(self) -> str:
        if self._start is None:
            return ", and it was so before it had tried much"
        return f", no better than the {self._start.mean:.4g} that it began with"

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must know; plain types."""
        return {
            "start": list(self._start or ()),
            "mark": list(self._mark or ()),
            "looks": self._looks,
            "told": int(self._told),
        }

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on from `state_dict`; None, of a run that kept none: how it began is not known, so nothing is said."""
        if state is None:
            self._told = True
            return
        self._start = Level(*state["start"]) if state["start"] else None
        self._mark = Level(*state["mark"]) if state["mark"] else None
        self._looks, self._told = state["looks"], bool(state["told"])
