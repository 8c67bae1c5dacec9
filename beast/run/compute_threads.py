"""How many threads PyTorch computes with in a learner thread on a CPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

UNITS = 5
"""Least number of units of work in a window, over which their time is measured."""
SECONDS = 2.0
"""Least length of a window: several bursts of full unrolls."""
BUSY = 0.9
"""The share of its time that the learner must learn, rather than wait, before it limits the speed."""
FASTER = 0.95
"""The largest share of its time with the fewest threads that a unit may take with the most, for these to be kept."""
AGAIN = 25
"""Windows from a trial that changed something to the next. After as many in a row in which the learner waited, the larger
number is given up."""
SELDOM = 200
"""The most windows between two trials: after each that changes nothing they are twice as many."""


class ComputeThreads:
    """The number of threads: `fewest`, or `most` while the learner limits the speed and was measured to be faster with them.

    The learner limits the speed if it hardly waits for work. Actors wait then, so that more threads take little from them. But
    with a small network, with small batches, or on a machine that others use too, threads spend more time waiting for each
    other than they save, and what they take from the actors may make the whole slower. So now and again a trial of two
    windows with the other number shows which is the faster one; `fewest` where they are equal. What counts is the time from
    one unit to the next, the waiting included. One window would not do, because what the store holds keeps the learner busy for
    some time.

    Args:
        fewest: threads at first.
        most: the only other number; with the same one nothing is ever changed.
        use: called with the number to compute with, here and at each change, in the thread that learns.
    """

    def __init__(self, fewest: int, most: int, use: Callable[[int], None]) -> None:
        self._fewest, self._most, self._use = fewest, most, use
        self._number = fewest
        self._units, self._seconds, self._waited = 0, 0.0, 0.0
        """What was heard since the last window ended."""
        self._lately: deque[tuple[float, int]] = deque(maxlen=2)
        """Seconds a unit, and units, of the last two windows with this number; the faster one counts, as the other may
        have held a stall."""
        self._allowed: tuple[float, int] | None = None
        """Seconds and units of a window that the other number may take; None if there is no trial now."""
        self._left = 0
        """Windows of the trial that are left."""
        self._pause, self._until_trial = AGAIN, 0
        """Windows from the last trial to the next, and until the next."""
        self._idle = 0
        """Windows in a row in which the learner waited."""
        use(fewest)

    def note(self, seconds: float, waited: float) -> None:
        """Hear of a unit of work, and perhaps change the number.

        Args:
            seconds: from the end of the unit before it to its own.
            waited: those of them until it was at hand.
        """
        if self._fewest == self._most:
            return
        self._units += 1
        self._seconds += seconds
        self._waited += waited
        if self._allowed is not None:
            self._try(*self._allowed)
        elif self._units >= UNITS and self._seconds >= SECONDS:
            self._look()

    def _look(self) -> None:
        """At the end of a window without a trial: begin one, or give up the larger number, or go on."""
        busy = self._waited < (1 - BUSY) * self._seconds
        self._idle = 0 if busy else self._idle + 1
        self._lately.append((self._seconds / self._units, self._units))
        self._until_trial -= 1
        if busy and self._until_trial < 0 and len(self._lately) == 2:
            each, units = min(self._lately)
            share = FASTER if self._number == self._fewest else 1 / FASTER
            self._allowed, self._left = (share * each * units, units), 2
            self._change(self._other())
        elif self._idle >= AGAIN:  # not sooner, because it may keep up only with the larger number
            self._change(self._fewest)
        self._forget()

    def _try(self, seconds: float, units: int) -> None:
        """Go on with the trial, or end it: at once if it takes too long."""
        slower = self._seconds > seconds
        if not slower and self._units < units:
            return
        self._left -= 1
        self._forget()
        if slower:
            self._change(self._other())
        if slower or not self._left:
            self._allowed = None
            self._pause = self._until_trial = min(2 * self._pause, SELDOM) if slower else AGAIN

    def _forget(self) -> None:
        self._units, self._seconds, self._waited = 0, 0.0, 0.0

    def _other(self) -> int:
        return self._most if self._number == self._fewest else self._fewest

    def _change(self, number: int) -> None:
        if number != self._number:
            self._number, self._idle = number, 0
            self._lately.clear()
            self._use(number)
