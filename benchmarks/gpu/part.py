"""One part in a process of its own: `python -m benchmarks.gpu.part REQUEST`, as the conductor starts it.

It writes a line of JSON to its standard output for each figure as soon as that is known; all else that anybody prints there
goes to standard error, which is the log.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from typing import Any, TextIO

Figures = dict[str, Any]


class Session:
    """What a part is given, and how it hands over what it finds.

    Args:
        on_gpu: whether there is a GPU to measure; else everything is small.
        seconds: until it should have ended.
        done: names of points that are known already.
        out: where lines go.
    """

    def __init__(self, on_gpu: bool, seconds: float, done: Collection[str], out: TextIO) -> None:
        self.on_gpu, self.done = on_gpu, frozenset(done)
        self._end, self._out = time.monotonic() + seconds, out

    def left(self) -> float:
        """Seconds until it should have ended."""
        return self._end - time.monotonic()

    def report(self, point: str, figures: Figures, finished: bool = True) -> None:
        """Hand over what was found; with `finished` False it is measured again when the command is started again."""
        self._say({"point": point, "figures": figures, "finished": finished})

    def fail(self, point: str, error: BaseException) -> None:
        """Hand over that there is nothing, and why."""
        traceback.print_exception(error)
        self._say({"point": point, "failed": in_one_line(error)})

    def leave_out(self, point: str) -> None:
        """Say that there is no time left for it."""
        self._say({"point": point, "left_out": True})

    def measure(self, points: Mapping[str, Callable[[], Figures]], needs: float = 0.0) -> None:
        """Measure one point after the other; one that fails does not hold the others.

        Args:
            points: functions that measure, by name.
            needs: seconds that a point takes at least; none is begun that would not fit, if it takes as long as the last.
        """
        last = 0.0
        for name, measure in points.items():
            if name in self.done:
                continue
            if self.left() < max(needs, last):
                self.leave_out(name)
                continue
            began = time.monotonic()
            print(f"--- {name}", file=sys.stderr, flush=True)
            try:
                self.report(name, measure())
            except Exception as error:  # of one point; the others are worth having
                self.fail(name, error)
            last = time.monotonic() - began

    def _say(self, line: dict[str, Any]) -> None:
        self._out.write(json.dumps(line) + "\n")
        self._out.flush()


def in_one_line(error: BaseException) -> str:
    """An error as a line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__


def main() -> None:
    """Do what the request says: JSON with `run` (a module and its function) and what a Session needs."""
    request = json.loads(sys.argv[1])
    out = os.fdopen(os.dup(1), "w")  # a descriptor that no child inherits
    os.dup2(2, 1)
    session = Session(request["on_gpu"], request["seconds"], request["done"], out)
    module, name = request["run"]
    getattr(importlib.import_module(module), name)(session)


if __name__ == "__main__":
    main()
