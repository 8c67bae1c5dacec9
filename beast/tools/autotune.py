"""A short search for the fastest settings: one flag after the other, keeping what helps. Each point is a run of its own."""

from __future__ import annotations

import dataclasses
import json
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from beast.core.errors import ConfigError
from beast.core.names import LEARN_THE_SAME, to_type
from beast.processes import paths
from beast.processes.forkserver import PR_SET_PDEATHSIG, prctl
from beast.processes.machine import describe_machine, usable_cores
from beast.run.crew import settle
from beast.run.folder import git_commit
from beast.settings.config import Config
from beast.settings.flags import to_arguments

SECONDS, WARM_UP = 4.0, 1.5  # seconds for each point, enough to see differences above GAIN
GAIN = 1.03  # ratio to the best speed so far that counts as faster; less is noise
PATIENCE = 180.0  # seconds that a point may take in total

Step = Callable[[dict[str, Any]], Any]


class PointFailed(RuntimeError):
    """A run of the search ended with an error; the message is one line."""


@dataclass
class Point:
    """One combination of settings that was tried, and its speed."""

    changes: dict[str, Any]
    """Flags that differ from the given ones."""
    settings: dict[str, Any]
    """Values of the tuned flags, as the run resolved them."""
    sps: float = 0.0
    pss_mb: float = 0.0
    policy_lag: float = 0.0
    error: str = ""


def profile_of(values: dict[str, Any], *own: str, timeout: float = PATIENCE) -> dict[str, Any]:
    """Run `profile` in a process of its own, so that points do not affect each other, and return its figures.

    Args:
        values: flags of the trainer by name.
        own: further arguments, of `profile` itself.
        timeout: seconds that the process may take.

    Raises:
        PointFailed: if it ends with an error or not within `timeout` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        # It uses this process's import path; `-m beast` could find another `beast` in the current folder.
        program = (
            f"import sys; sys.path.insert(0, {paths.ROOT!r}); from beast import cli; "
            f"sys.path[:] = {paths.as_it_is()!r}; sys.exit(cli.main())"
        )
        command = [sys.executable, "-c", program, "profile", *to_arguments(values), *own, "--json", str(file)]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            preexec_fn=partial(prctl, PR_SET_PDEATHSIG, signal.SIGTERM),
        ) as process:  # fmt: skip
            try:
                _, errors = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.terminate()
                raise PointFailed(f"it took longer than {timeout:.0f} s") from None
        if process.returncode:
            line = (errors.strip() or f"exit status {process.returncode}").splitlines()[-1]
            raise PointFailed(line.removeprefix("beast: error: "))
        figures: dict[str, Any] = json.loads(file.read_text())
        return figures


def _hosts(factor: int) -> Step:
    """Return a step to the next number of processes in this direction, around one for each core."""
    cores = usable_cores()
    ladder = sorted({1, max(1, cores // 2), max(1, cores - 1), cores, 2 * cores})

    def step(settings: dict[str, Any]) -> int | None:
        now = settings["num_actor_processes"]
        further = [n for n in ladder if (n - now) * factor > 0]
        return min(further, key=lambda n: abs(n - now), default=None)

    return step


def _other_trainer(settings: dict[str, Any]) -> str:
    """Return the next of the trainers that learn the same."""
    return LEARN_THE_SAME[(LEARN_THE_SAME.index(settings["trainer"]) + 1) % len(LEARN_THE_SAME)]


def _other_precision(settings: dict[str, Any]) -> str | None:
    """Return float32 to try; `auto` chooses bfloat16 wherever it may be faster."""
    return "float32" if settings["precision"] == "bfloat16" else None


DIMENSIONS: dict[str, tuple[Step, ...]] = {
    "num_actor_processes": (_hosts(1), _hosts(-1)),
    "num_actors": (lambda now: now["num_actors"] * 2, lambda now: now["num_actors"] // 2 or None),
    "trainer": (_other_trainer,),
    "batch_size": (lambda now: now["batch_size"] // 2 or None, lambda now: now["batch_size"] * 2),
    "num_learner_threads": (
        lambda now: now["num_learner_threads"] - 1 or None,
        lambda now: now["num_learner_threads"] + 1,
    ),
    "precision": (_other_precision,),
}
"""Flags in the order of tuning; each step maps the best settings to the flag's next value in one direction."""


class Search:
    """A greedy search along each flag, in each direction, while it gets faster; flags that were given stay as they are.

    Args:
        given: the flags as typed.
        budget: seconds for the whole search; a point that would exceed it is not started, except the first two.
        seconds: length of each point's steady window.
    """

    def __init__(self, given: dict[str, Any], budget: float, seconds: float = SECONDS) -> None:
        self._given, self._budget, self._seconds = given, budget, seconds
        self.points: list[Point] = []
        self._started = time.monotonic()
        self._longest = 0.0

    def run(self) -> Point:
        """Search and return the fastest point.

        Raises:
            ConfigError: if the given settings do not run.
        """
        print("  steps/s  processes  actors  trainer    batch  learner threads  precision     memory  policy lag")
        best = self._try({}, {})
        if best.error:
            raise ConfigError(best.error)
        for name, directions in DIMENSIONS.items():
            if name not in self._given:
                best = self._climb(best, name, directions)
        return best

    def _climb(self, best: Point, name: str, directions: tuple[Step, ...]) -> Point:
        before = best
        for step in directions:
            while self._has_time() and (value := step(best.settings)) is not None:
                changes, settings = best.changes | {name: value}, best.settings | {name: value}
                if not self._possible(changes) or any(point.settings == settings for point in self.points):
                    break
                point = self._try(changes, settings)
                if point.sps < GAIN * best.sps:
                    break
                best = point
            if best is not before:
                break
        return best

    def _possible(self, changes: dict[str, Any]) -> bool:
        values = {"num_buffers": None} | self._given | changes
        try:
            settle(Config.from_flat(values), values)
        except ConfigError:
            return False
        return True

    def _has_time(self) -> bool:
        return len(self.points) < 2 or time.monotonic() - self._started + self._longest <= self._budget

    def _try(self, changes: dict[str, Any], settings: dict[str, Any]) -> Point:
        began = time.monotonic()
        point = Point(changes, settings)
        try:
            times = ("--seconds", f"{self._seconds:g}", "--warm_up", f"{min(WARM_UP, self._seconds):g}", "--no_bound")
            figures = profile_of(self._given | changes, *times)
        except PointFailed as error:
            point.error = str(error)
        else:
            whole = figures["whole"]
            point.sps, point.pss_mb, point.policy_lag = whole["sps"], whole["pss_mb"], whole["policy_lag"]["mean"]
            found = figures["flags"] | {
                "precision": figures["dtype"], "num_learner_threads": figures["learner_threads"],
            }  # fmt: skip
            found["num_actor_processes"] = Config.from_flat(figures["flags"]).actors.processes
            point.settings = {name: found[name] for name in DIMENSIONS}
        self._longest = max(self._longest, time.monotonic() - began)
        self.points.append(point)
        self._show(point)
        return point

    def _show(self, point: Point) -> None:
        if not point.settings:
            return
        processes, actors, trainer, batch, threads, precision = point.settings.values()
        row = f"{processes:>9}  {actors:>6}  {trainer:<9}  {batch:>5}  {threads:>15}  {precision:<9}"
        result = f"{point.pss_mb:>6,.0f} MB  {point.policy_lag:>10.1f}" if not point.error else point.error
        print(f"{'failed' if point.error else format(point.sps, ',.0f'):>9}  {row}  {result}", flush=True)


def autotune(given: dict[str, Any], budget: float) -> dict[str, Any]:
    """Search, and print a line for each point and the best command.

    Args:
        given: the flags as typed.
        budget: seconds for the whole search.

    Returns:
        machine, git_commit, points, best, command: plain data for JSON.

    Raises:
        ConfigError: if the given settings do not run.
    """
    search = Search(given, budget, min(SECONDS, budget / 10))
    best = search.run()
    command = shlex.join([*to_type().split(), *to_arguments(given | best.changes)])
    faster = best.sps / search.points[0].sps
    how = f"{faster:.2f} times the settings given" if best.changes else "the settings given"
    print(f"fastest of {len(search.points)}: {best.sps:,.0f} steps/s, {how}\n\n    {command}\n")
    print("num_actors and batch_size change learning too, not speed alone: compare the curves. Flags given were kept.")
    return {
        "machine": describe_machine(),
        "git_commit": git_commit(),
        "points": [dataclasses.asdict(point) for point in search.points],
        "best": dataclasses.asdict(best),
        "command": command,
    }
