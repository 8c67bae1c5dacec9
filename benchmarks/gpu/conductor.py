"""Gives each part its time, keeps what it finds, and sees to it that nothing of it stays behind."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import Part
from benchmarks.gpu.processes import descendants, kill_all_but, start

GRACE = 3.0  # seconds between when a part should have ended and when it is ended


class InUse(RuntimeError):
    """Another run writes to the same folder."""


class Results:
    """What was found so far: one JSON file, whole at any moment, and the log of all that the parts print.

    Args:
        folder: where both lie; it is made.

    Raises:
        InUse: if another process has them.
        ValueError: if the file is no such file.
        OSError: if they cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "gpu.json"
        self.log = open(folder / "gpu.log", "ab", buffering=0)  # noqa: SIM115
        try:
            # No child inherits it, and the kernel lets go at any death.
            fcntl.lockf(self.log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InUse(f"another run writes to {folder}: wait for it, or choose another --out") from None
        self.all: dict[str, Any] = {"parts": {}}
        if self.file.exists():
            self.all = json.loads(self.file.read_text())
            if not isinstance(self.all, dict) or not isinstance(self.all.get("parts"), dict):
                raise ValueError("it has no parts")

    def part(self, name: str) -> dict[str, Any]:
        """What is known of a part; empty ones are made."""
        new = {"state": "not begun", "why": "", "seconds": 0.0, "points": {}, "unfinished": [], "failed": {}}
        found: dict[str, Any] = self.all["parts"].setdefault(name, {**new, "left_out": []})
        return found

    def known(self, name: str) -> list[str]:
        """The points of a part that need not be measured again."""
        part = self.part(name)
        return [point for point in part["points"] if point not in part["unfinished"]]

    def write(self) -> None:
        """Replace the file by a new one: whoever reads it, and whenever this process ends, it is whole."""
        new = self.file.with_suffix(".json.new")
        new.write_text(json.dumps(self.all, indent=1) + "\n")
        os.replace(new, self.file)


def order(parts: Sequence[Part], results: Results) -> list[Part]:
    """The parts that are not done; those that failed before come last, so that they cannot take the others' time again."""
    todo = [part for part in parts if results.part(part.name)["state"] != "done"]
    return sorted(todo, key=lambda part: results.part(part.name)["state"] in ("failed", "cut"))


def limit(parts: Sequence[Part], least: Callable[[Part], float], left: float) -> float:
    """Seconds for the first of the parts that are still to do: its share of what is left; 0 if that is not enough."""
    first = parts[0]
    share = left * first.share / sum(part.share for part in parts)
    return min(left, max(least(first), share)) if least(first) <= left else 0.0


def conduct(
    part: Part, seconds: float, on_gpu: bool, results: Results, on_point: Callable[[str, dict[str, Any]], None]
) -> None:
    """Run one part in a process of its own, for so long at most; figures are written as they come.

    Args:
        part: the part to run.
        seconds: most that it may take.
        on_gpu: whether a GPU is measured.
        results: takes the figures.
        on_point: is told a point's name and the line that the part wrote of it.
    """
    found, began = results.part(part.name), time.monotonic()
    found |= {"state": "running", "why": "", "failed": {}, "left_out": [], "limit": seconds}
    results.write()
    results.log.write(f"\n=== {part.name}, {seconds:.0f} s at most\n".encode())
    request = {
        "run": [part.run.__module__, part.run.__name__],
        "on_gpu": on_gpu,
        "seconds": max(0.0, seconds - GRACE),
        "done": results.known(part.name),
    }

    def take(line: dict[str, Any]) -> None:
        point = line["point"]
        if "figures" in line:
            found["points"][point] = line["figures"]
            found["unfinished"] = sorted(
                ({*found["unfinished"]} - {point}) | ({point} if not line["finished"] else set())
            )
        elif "failed" in line:
            found["failed"][point] = line["failed"]
        else:
            found["left_out"].append(point)
        found["seconds"] = time.monotonic() - began
        results.write()
        on_point(point, line)

    found["why"], in_time = _watch(request, began + seconds, results, take)
    found["seconds"] = time.monotonic() - began
    if not in_time:
        found["state"] = "cut"
    elif found["why"] or found["failed"]:
        found["state"] = "failed"
    else:
        found["state"] = "incomplete" if found["left_out"] or found["unfinished"] else "done"
    results.write()


def _watch(
    request: dict[str, Any], end: float, results: Results, take: Callable[[dict[str, Any]], None]
) -> tuple[str, bool]:
    """Start the process and hear it until it ends or its time has come.

    Returns:
        What went wrong (empty if nothing), and whether it ended by itself.
    """
    log_began, others = results.log.tell(), descendants()
    process = start(
        [sys.executable, "-m", "benchmarks.gpu.part", json.dumps(request)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=results.log,
        start_new_session=True,  # Ctrl-C is for the conductor alone
    )  # fmt: skip
    assert process.stdout is not None
    pipe, rest, in_time = process.stdout.fileno(), b"", False
    try:
        while (left := end - time.monotonic()) > 0:
            if not select.select([pipe], [], [], left)[0]:
                break
            if not (data := os.read(pipe, 1 << 16)):
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.1, end - time.monotonic()))
                    in_time = True
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                take(json.loads(line))
    finally:
        kill_all_but(others)  # it, and what it started: found together, as long as it is there
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
        process.stdout.close()
    if not in_time:
        return f"cut at its limit of {request['seconds'] + GRACE:.0f} s", False
    code = process.returncode
    if code < 0:
        return f"killed by {signal.Signals(-code).name}", True
    if code:
        with open(results.log.name, "rb") as log:
            log.seek(log_began)
            said = log.read().decode(errors="replace").strip().splitlines()
        return (said[-1] if said else f"exit status {code}")[:300], True
    return "", True
