"""How many threads PyTorch computes with in a learner thread on a CPU."""

from __future__ import annotations

from collections.abc import Callable

UNITS, SECONDS = 10, 2.0
"""Least number of units of work, and least time, that show how fast learning is: a burst of full unrolls is shorter."""
AGAIN, SELDOM = 500, 4000
"""Units of work from one trial to the next: twice as many after each that changed nothing, and at most how many. After the
first number of units in a row with which the learner keeps up, the larger number of threads is given up."""
BUSY = 0.9
"""The share of its time that the learner must learn, rather than wait, before it limits the speed."""
FASTER = 0.95
"""The largest share of its former time that a unit may take with another number of threads which is to be kept."""


class ComputeThreads:
    """The number of threads: `fewest`, or `most` while the learner limits the speed and was measured to be faster with them.

    The learner limits the speed if it hardly waits for work. Actors wait then, so that more threads take little from them. But
    with a small network, with small batches, or on a machine that others use too, threads spend more time waiting for each
    other than they save, and what they take from the actors may make the whole slower; so each number has to show
    that it is the faster one, now and again. What counts is the time from one unit to the next, the waiting included.

    Args:
        fewest: threads at first.
        most: the only other number; with the same one nothing is ever changed.
        use: called with the number to compute with, here and at each change, in the thread that learns.
    """

    def __init__(self, fewest: int, most: int, use: Callable[[int], None]) -> None:
        self._fewest, self._most, self._use = fewest, most, use
        self._number = fewest
        self._units, self._seconds, self._waited = 0, 0.0, 0.0
        """What was heard since the last decision."""
        self._reference: tuple[int, float] | None = None
        """Units, and the seconds that they took before the trial; None if there is no trial now."""
        self._rounds = 0
        """How many times the trial must take no longer: at first actors live on what the store holds, so twice."""
        self._pause, self._until_trial = AGAIN, 0
        """Units from a trial to the next, and until the next."""
        self._in_time = 0
        """Units in a row with which the learner kept up."""
        use(fewest)

    def note(self, seconds: float, waited: float) -> None:
        """Hear of a unit of work, and perhaps change the number.

        Args:
            seconds: from the end of the unit before it to its own.
            waited: those of them in which there was no work.
        """
        if self._fewest == self._most:
            return
        self._until_trial -= 1
        self._units += 1
        self._seconds += seconds
        self._waited += waited
        if self._reference is not None:
            self._try(*self._reference)
        elif self._units >= UNITS and self._seconds >= SECONDS:
            busy = self._waited < (1 - BUSY) * self._seconds
            self._in_time = 0 if busy else self._in_time + self._units
            if busy and self._until_trial <= 0:
                self._reference, self._rounds = (self._units, self._seconds), 2
                self._change(self._other())
            elif self._in_time >= AGAIN:  # not sooner, because it may keep up only with the larger number
                self._change(self._fewest)
            self._forget()

    def _try(self, units: int, seconds: float) -> None:
        """Go on with the trial, or end it."""
        slower = self._seconds > FASTER * seconds
        if not slower and self._units < units:
            return
        self._rounds -= 1
        self._forget()
        if slower:
            self._change(self._other())
        if slower or not self._rounds:
            self._reference = None
            self._pause = self._until_trial = min(2 * self._pause, SELDOM) if slower else AGAIN

    def _forget(self) -> None:
        self._units, self._seconds, self._waited = 0, 0.0, 0.0

    def _other(self) -> int:
        return self._most if self._number == self._fewest else self._fewest

    def _change(self, number: int) -> None:
        if number != self._number:
            self._number = number
            self._use(number)
