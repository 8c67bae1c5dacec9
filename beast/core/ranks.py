"""All learners of one policy. Here there is one; processes that learn together bring others (run/torchrun.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from beast.core.gradients import Gradient

T = TypeVar("T")


class Ending(NamedTuple):
    """Why all ranks end before the last step: what those that left first have said."""

    failed: bool
    """Whether one of them did not end of its own will."""
    signal: int | None
    """The one that ended one of them."""


class Ranks:
    """A learner alone."""

    size = 1
    """How many there are."""
    number = 0
    """Which of them this is."""
    ending: Ending | None = None
    """Set, on all ranks between the same two updates, when one has left."""

    @property
    def first(self) -> bool:
        """Whether this one has the run folder, the reports, the checkpoints and the evaluator."""
        return self.number == 0

    # -- before the run -----------------------------------------------------------------------------------------------

    def together(self, function: Callable[[], T]) -> T:
        """Call a function on every rank; if it raises on one, all raise."""
        return function()

    def of_first(self, make: Callable[[], T]) -> T:
        """What a function returns on the first rank, where alone it is called; if it raises there, all raise."""
        return make()

    # -- in the run, by whoever holds the lock of `Learning` ----------------------------------------------------------

    def sum(self, gradient: Gradient, steps: int) -> tuple[Gradient, int] | None:
        """A gradient (vector and sums) and its agent steps, added over all ranks; None: one has left, and all end here.

        All ranks call it as often as each other, so an algorithm must make as many passes over each rank's batch.
        """
        return gradient, steps

    def gather(self, items: list[Any]) -> list[Any]:
        """On the first rank what it is given, and sooner or later what all others are; call it after a unit's sums."""
        return items

    def leave(self, nothing: Gradient, signal: int | None, failed: bool) -> None:
        """Tell the others, instead of one more gradient, that this rank ends here, and why.

        Args:
            nothing: zeros in the form of a gradient.
            signal: that ended this rank, if one did.
            failed: whether it does not end of its own will.
        """

    def watch(self, stopping: Callable[[], bool], timeout: float) -> None:
        """Wait for others no longer than `timeout` seconds, and less once the run is to end."""
