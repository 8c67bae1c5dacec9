"""Several learners of one policy, one in each process that torchrun has started: gradients are added by torch.distributed.

Each rank is a whole run with actors of its own. All start with the same weights and add up the same gradients, so they stay the
same without ever being compared. One reduction an update carries all that must be agreed on: the gradient, which is not finite
if one rank's is not; the steps; whether a rank leaves, and why.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from beast.core.errors import FailedElsewhere, RankLost
from beast.core.gradients import Gradient
from beast.core.ranks import Ending, Ranks, T
from beast.processes.forkserver import PR_SET_PDEATHSIG, prctl
from beast.processes.launch import Launch, launch
from beast.run.threads import Threads

START_TIMEOUT = 600.0
"""Seconds that ranks may be apart before the run, and torch.distributed's own limit for any operation."""
GOODBYE = 15.0  # seconds that the others are waited for at the end; torchrun kills thirty seconds after SIGTERM
GATHER_EVERY = 1.0  # seconds
POLL = 0.0005  # seconds between two looks at a reduction
_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_STEPS, _GATHER, _ASKED, _FAILED, *_ = range(4)  # places behind the gradient; then one for each of _SIGNALS
_EXTRA = 4 + len(_SIGNALS)


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that torchrun has started, joined by a process group; or this process alone.

    Raises:
        RankLost: if the others do not come.
    """
    place = launch()
    if place.size == 1:
        yield Ranks()
        return
    ranks = TorchrunRanks(place)
    try:
        yield ranks
    finally:
        ranks.close()


def _join(backend: str, place: Launch, timeout: timedelta) -> None:
    """Make the process group, with keys of this start's own: torchrun's store still holds the addresses of those before."""
    store = next(rendezvous("env://", place.rank, place.size, timeout=timeout))[0]
    own = dist.PrefixStore(f"start_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=own, rank=place.rank, world_size=place.size, timeout=timeout)


class TorchrunRanks(Ranks):
    """The ranks of torch.distributed's default group."""

    def __init__(self, place: Launch) -> None:
        """Join the group, as soon as all others do.

        Args:
            place: of this process.

        Raises:
            RankLost: if they do not come.
        """
        self.size, self.number = place.size, place.rank
        self._stopping: Callable[[], bool] = lambda: False
        self._timeout = START_TIMEOUT
        self._lost = False
        self._gathered, self._gather_due = 0.0, False
        self._items: list[Any] = []
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # torchrun was killed: nobody would end this process
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        self._patiently(lambda: _join(backend, place, timedelta(seconds=START_TIMEOUT)))

    def close(self) -> None:
        """Leave the process group."""
        if not self._lost:  # else it would wait for what never comes
            dist.destroy_process_group()

    def watch(self, stopping: Callable[[], bool], timeout: float) -> None:
        """Wait for others no longer than `timeout` seconds, and no longer than GOODBYE once the run is to end."""
        self._stopping, self._timeout = stopping, timeout

    # -- before the run -----------------------------------------------------------------------------------------------

    def together(self, function: Callable[[], T]) -> T:
        """Call a function on every rank. Of those that raise the same the first one alone does, all others FailedElsewhere."""
        own: Exception | None = None
        try:
            value = function()
        except Exception as error:
            own = error
        said = None if own is None else (str(own), getattr(own, "exit_status", 1))
        errors: list[Any] = [None] * self.size
        self._patiently(lambda: dist.all_gather_object(errors, said))
        if own is not None and said not in errors[: self.number]:
            raise own
        for number, failed in enumerate(errors):
            if failed is not None:
                raise FailedElsewhere(f"rank {number} could not start: {failed[0]}", failed[1]) from own
        return value

    def of_first(self, make: Callable[[], T]) -> T:
        """Call a function on the first rank and send what it returns, pickled, to all."""
        box = [self.together(make) if self.first else self.together(lambda: None)]
        self._patiently(lambda: dist.broadcast_object_list(box, src=0))
        value: Any = box[0]
        return value  # type: ignore[no-any-return]

    # -- in the run ---------------------------------------------------------------------------------------------------

    def sum(self, gradient: Gradient, steps: int) -> tuple[Gradient, int] | None:
        """Add a gradient and its steps over all ranks; None if one has left. Waits for a GPU, to know that."""
        due = self.first and time.monotonic() - self._gathered > GATHER_EVERY
        return self._reduce(gradient, {_STEPS: float(steps), _GATHER: float(due)})

    def leave(self, nothing: Gradient, signal: int | None, failed: bool) -> None:
        """Take part in one more reduction, as the one that leaves; nothing is done if the others have left already."""
        if self._lost or self.ending is not None:
            return
        said = {_FAILED if failed else _ASKED: 1.0}
        if signal in _SIGNALS and not failed:
            said[_FAILED + 1 + _SIGNALS.index(signal)] = 1.0
        self._reduce(nothing, said)

    def gather(self, items: list[Any]) -> list[Any]:
        """Bring items to the first rank: its own at once, those of others when it has asked for them, every GATHER_EVERY."""
        if not self.first:
            self._items += items
        if not self._gather_due:
            return items if self.first else []
        self._gather_due, self._gathered = False, time.monotonic()
        found: list[Any] | None = [None] * self.size if self.first else None
        own, self._items = self._items, []
        self._patiently(lambda: dist.gather_object(own, found))
        return items + [item for part in found for item in part] if found else []

    def _reduce(self, gradient: Gradient, said: dict[int, float]) -> tuple[Gradient, int] | None:
        """Add gradients and what is said over all ranks; None if one of them leaves."""
        vector, sums = gradient.vector, gradient.sums
        extra = torch.tensor([said.get(place, 0.0) for place in range(_EXTRA)])
        everything = torch.cat([vector, sums, extra.to(vector.device)])
        try:
            self._wait(dist.all_reduce(everything, async_op=True))
        except RuntimeError as error:
            raise self._gone(error) from error
        heard = everything[-_EXTRA:].tolist()  # waits for a GPU
        if heard[_ASKED] or heard[_FAILED]:
            sent = [number for number, times in zip(_SIGNALS, heard[_FAILED + 1 :], strict=True) if times]
            self.ending = Ending(bool(heard[_FAILED]), sent[0] if sent else None)
            return None
        self._gather_due = bool(heard[_GATHER])
        vector, sums, _ = torch.split(everything, [vector.numel(), sums.numel(), _EXTRA])
        return gradient._replace(vector=vector, sums=sums), round(heard[_STEPS])

    # -- waiting ------------------------------------------------------------------------------------------------------

    def _wait(self, work: Any) -> None:
        """Wait for a reduction; other threads, and with them signals, go on."""
        still_in_time = self._patience()
        while not work.is_completed():
            still_in_time()
            time.sleep(POLL)
        work.wait()  # raises what went wrong; on a GPU it lets the stream wait

    def _patiently(self, function: Callable[[], Any]) -> None:
        """Call what may block for long, in a thread, so that this one hears signals and may give up."""
        still_in_time, threads = self._patience(), Threads()
        threads.start("ranks", function)
        while not threads.ended.wait(0.1):
            still_in_time()
        if isinstance(threads.failure, RuntimeError):
            raise self._gone(threads.failure) from threads.failure
        if threads.failure is not None:
            raise threads.failure

    def _patience(self) -> Callable[[], None]:
        """What to call again and again while waiting: it raises RankLost when that has been too long."""
        began = time.monotonic()
        end = began + self._timeout

        def still_in_time() -> None:
            nonlocal end
            now = time.monotonic()
            if self._stopping():
                end = min(end, now + GOODBYE)
            if now > end:
                raise self._gone(f"no answer for {now - began:.0f} s (--rank_timeout)")

        return still_in_time

    def _gone(self, why: str | Exception) -> RankLost:
        """Take another rank for lost."""
        if isinstance(why, RankLost):
            return why
        self._lost = True
        if isinstance(why, Exception):  # gloo's begins with a line of its source code, in brackets
            why = (str(why).partition("] ")[2] or repr(why)).partition(". ")[0][:200]
        return RankLost(f"another rank is lost ({why}): the run ends; --resume auto goes on with it")
