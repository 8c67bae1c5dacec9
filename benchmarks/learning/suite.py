"""Runs several rows at a time, each in a process of its own, and survives whatever ends it."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from beast.envs.families import family_of
from benchmarks.learning import one
from benchmarks.learning.results import Run
from benchmarks.learning.rows import Row

ROOT = Path(__file__).parents[2]
POLL = 0.2  # seconds between two looks at the runs


def missing_package(row: Row) -> str | None:
    """What pip calls the package that a row's environment needs, if it is not installed."""
    family = family_of(row.env)
    if family is None or importlib.util.find_spec(family.module.partition(".")[0]) is not None:
        return None
    return family.package


def run_all(runs: list[Run], jobs: int, episodes: int, ended: Callable[[], None]) -> bool:
    """Bring runs to their ends; False if one failed. If it is interrupted they save, and go on the next time.

    Args:
        runs: in the order of their start; those that have results are passed over.
        jobs: how many at a time; each has its own share of the cores.
        episodes: games of each score.
        ended: called after the end of each.

    Raises:
        KeyboardInterrupt: once all have saved and ended.
    """
    waiting = [run for run in runs if run.result() is None]
    shares = shares_of_cores(jobs)
    running: dict[int, tuple[Run, subprocess.Popen[bytes]]] = {}  # by the number of their share
    good = True
    try:
        while waiting or running:
            for place in range(jobs):
                if waiting and place not in running:
                    running[place] = (waiting[0], _start(waiting.pop(0), episodes, shares[place]))
            for place, (run, process) in list(running.items()):
                if process.poll() is not None:
                    del running[place]
                    good = _tell(run, process) and good
                    ended()
            time.sleep(POLL)
    finally:
        for _, process in running.values():
            process.send_signal(signal.SIGTERM)
        for _, process in running.values():
            with suppress(KeyboardInterrupt):
                process.wait()
    return good


def shares_of_cores(jobs: int) -> list[list[int]]:
    """Divide the usable cores among jobs; where there are more jobs than cores, some share one.

    Runs that all take every core slow each other down by much more than they share: threads of one batch wait for each other,
    busily, while the others have the cores (docs/log.md).
    """
    cores = sorted(os.sched_getaffinity(0))
    return [cores[place::jobs] or [cores[place % len(cores)]] for place in range(jobs)]


def _start(run: Run, episodes: int, cores: list[int]) -> subprocess.Popen[bytes]:
    """In a session of its own: what the terminal says to the suite is the suite's to pass on."""
    print(f"{run.name}: {'goes on' if run.folder.exists() else 'begins'}", flush=True)
    run.savedir.mkdir(parents=True, exist_ok=True)
    with open(_log(run), "ab") as log:
        return subprocess.Popen(
            one.command(run, episodes, cores),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _log(run: Run) -> Path:
    return run.savedir / f"{run.name}.txt"


def _tell(run: Run, process: subprocess.Popen[bytes]) -> bool:
    """Say how a run ended; whether it has a result."""
    result = run.result()
    if result is not None:
        said = ", ".join(f"{how} {score['mean']:.4g}" for how, score in result["scores"].items())
        print(f"{run.name}: finished after {result['steps']:,} steps, {said}", flush=True)
        return True
    lines = [line for line in _log(run).read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1][:300] if lines else "it said nothing"
    print(
        f"{run.name}: failed with status {process.returncode}: {last} (all of it: {_log(run)})",
        file=sys.stderr,
        flush=True,
    )
    return False
