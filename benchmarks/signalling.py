"""How fast two processes can take turns: `python -m benchmarks.signalling [--seconds 2]`.

Each way is a ping-pong between this process and a child: the time of a round trip is two wake-ups. The CPU column counts
both processes: a way that spins is fast only while nobody else wants the cores, and on a full machine that is never.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import struct
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil

from beast.core.data import ArraySpec
from beast.polybeast.mailbox import Line, Request
from beast.processes.machine import describe_machine
from beast.processes.shared import SharedArrays


class Pipes:
    """PolyBeast's way: an eight-byte message in each direction."""

    def __init__(self) -> None:
        self.there, self.back = Line(), Line()

    def ping(self) -> None:
        """Send a message and wait for the answer."""
        self.there.send([Request(0, 1)])
        while not self.back.receive(1.0):
            pass

    def pong(self) -> None:
        """Answer a message, if one comes within a second."""
        if self.there.receive(1.0):
            self.back.send([Request(0, 1)])


class Eventfd:
    """Two eventfds; the message itself would lie in shared memory."""

    def __init__(self) -> None:
        self.there, self.back = os.eventfd(0), os.eventfd(0)

    def ping(self) -> None:
        """Raise one counter and wait for the other."""
        os.eventfd_write(self.there, 1)
        os.eventfd_read(self.back)

    def pong(self) -> None:
        """Wait for one counter and raise the other."""
        os.eventfd_read(self.there)
        os.eventfd_write(self.back, 1)


class Flags:
    """Flags in shared memory: spin for a short time, then sleep in steps of 50 microseconds."""

    def __init__(self) -> None:
        self.shared = SharedArrays({"turn": ArraySpec((1,), np.dtype(np.int64))})

    def _wait(self, turn: int) -> bool:
        flag = self.shared.arrays["turn"]
        for _ in range(200):
            if flag[0] == turn:
                return True
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            if flag[0] == turn:
                return True
            time.sleep(50e-6)
        return False

    def ping(self) -> None:
        """Set the flag and wait until it is cleared."""
        self.shared.arrays["turn"][0] = 1
        self._wait(0)

    def pong(self) -> None:
        """Wait for the flag and clear it."""
        if self._wait(1):
            self.shared.arrays["turn"][0] = 0


class Queues:
    """Two multiprocessing.Queue: a pickled object, a lock and a feeder thread; a killed reader keeps the lock."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("fork")
        self.there: Any = context.Queue()
        self.back: Any = context.Queue()

    def ping(self) -> None:
        """Put a message and get the answer."""
        self.there.put(struct.pack("ii", 0, 1))
        self.back.get()

    def pong(self) -> None:
        """Get a message and put the answer."""
        self.there.get()
        self.back.put(struct.pack("ii", 0, 1))


def _serve(way: Any) -> None:
    while True:
        way.pong()


def measure(make: Callable[[], Any], seconds: float) -> dict[str, float]:
    """Return the round trips per second, and the CPU microseconds of both processes for each."""
    way = make()
    child = multiprocessing.get_context("fork").Process(target=_serve, args=(way,), daemon=True)
    child.start()
    for _ in range(100):
        way.ping()
    processes = [psutil.Process(), psutil.Process(child.pid)]
    before = sum(sum(p.cpu_times()[:2]) for p in processes)
    count, start = 0, time.perf_counter()
    while (wall := time.perf_counter() - start) < seconds:
        way.ping()
        count += 1
    cpu = sum(sum(p.cpu_times()[:2]) for p in processes) - before
    child.kill()
    child.join()
    return {"round_trips_per_s": count / wall, "round_trip_us": wall / count * 1e6, "cpu_us": cpu / count * 1e6}


def main() -> None:
    """Measure every way three times, alternately, and print the medians."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.signalling", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", metavar="FILE")
    values = parser.parse_args()
    ways = {"pipes": Pipes, "eventfd": Eventfd, "flags, spin then sleep": Flags, "multiprocessing.Queue": Queues}
    runs = [{name: measure(make, values.seconds) for name, make in ways.items()} for _ in range(3)]
    results = {
        name: {key: float(np.median([run[name][key] for run in runs])) for key in runs[0][name]} for name in ways
    }
    for name, result in results.items():
        print(
            f"{name:<24} {result['round_trips_per_s']:>9,.0f} round trips/s  {result['round_trip_us']:>7.1f} us each  "
            f"{result['cpu_us']:>7.1f} us of CPU"
        )
    if values.json:
        with open(values.json, "w") as file:
            json.dump({"machine": describe_machine(), "results": results}, file, indent=2)


if __name__ == "__main__":
    main()
