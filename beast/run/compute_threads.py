"""How many threads PyTorch computes with in a learner thread on a CPU."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable

TRIAL = 10
"""Units of work in a row that show how fast the learner is."""
AGAIN = 500
"""Units of work from one trial to the next, and in time until the larger number is given up."""
FASTER = 0.95
"""The largest share of its former time that a unit may take with another number of threads which is to be kept."""


class ComputeThreads:
    """The number of threads: `fewest`, or `most` while the learner limits the speed and was measured to be faster with them.

    The learner limits the speed when the next unit of work is waiting at the end of each. Actors only wait then, so that more
    threads take nothing from them. But on a machine that others use too, or with a small network, threads spend more
    time waiting for each other than they save; so each number has to show that it is the faster one, now and again.

    Args:
        fewest: threads at first.
        most: the only other number; with the same one nothing is ever changed.
        use: called with the number to compute with, here and at each change, in the thread that learns.
    """

    def __init__(self, fewest: int, most: int, use: Callable[[int], None]) -> None:
        self._fewest, self._most, self._use = fewest, most, use
        self._number = fewest
        self._behind: deque[float] = deque(maxlen=TRIAL)
        """Seconds of units in a row after which the next one was waiting."""
        self._in_time = 0
        """Units in a row after which none was."""
        self._allowed: float | None = None
        """Seconds that the trial may take; None if there is none now."""
        self._until_trial = 0
        """Units until the next trial may begin."""
        use(fewest)

    def note(self, seconds: float, behind: bool) -> None:
        """Hear of a unit of work, and perhaps change the number.

        Args:
            seconds: that it took. There is no waiting for it in them if the learner was behind before it.
            behind: whether the next one was waiting at its end.
        """
        if self._fewest == self._most:
            return
        self._until_trial -= 1
        if behind:
            self._in_time = 0
            self._behind.append(seconds)
            self._compare()
        else:
            self._in_time += 1
            self._behind.clear()
            self._allowed = None  # a number with which the learner keeps up is kept
            if self._in_time == AGAIN:  # not sooner, because it may keep up only with the larger number
                self._change(self._fewest)

    def _compare(self) -> None:
        if self._allowed is not None:
            if sum(self._behind) > self._allowed:
                self._change(self._other())
            elif len(self._behind) == TRIAL:
                self._allowed = None
        elif len(self._behind) == TRIAL and self._until_trial <= 0:
            allowed = FASTER * TRIAL * statistics.median(self._behind)
            self._change(self._other())
            self._allowed, self._until_trial = allowed, AGAIN

    def _other(self) -> int:
        return self._most if self._number == self._fewest else self._fewest

    def _change(self, number: int) -> None:
        self._behind.clear()
        self._allowed = None
        if number != self._number:
            self._number = number
            self._use(number)
