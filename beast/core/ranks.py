"""All learners of one policy. Here there is one; processes that learn together bring an object with the same methods."""

from __future__ import annotations

from beast.core.gradients import Gradient


class Ranks:
    """A learner alone."""

    size = 1
    """How many there are."""
    first = True
    """Whether this one has the run folder, the reports, the checkpoints and the evaluator."""

    def sum(self, gradient: Gradient) -> Gradient:
        """A gradient added over all ranks, vectors and sums. All ranks call it as often as each other."""
        return gradient

    def any(self, wish: bool) -> bool:
        """Whether any rank has this wish (to stop, say)."""
        return wish
