"""A real run whose processes are killed at random: `python -m benchmarks.chaos [--minutes 30] [--every 10] [flags of run.py]`.

With `--every 0` nothing is killed: a soak; with `--quiet 10` nothing in the last ten minutes, whose figures are then given
apart too. `--env benchmarks.engines:CatchWithEngine` has environments that start processes. Memory (PSS of all processes),
open files and threads of the learner's process and the step rate are watched. Growth per hour is that of a straight line
fitted to all but the first fifth.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).parents[1]
WATCHED = ("memory_mb", "open_files", "threads", "processes")
FAULTS = ("worker", "worker stopped", "server killed", "server stopped", "engine")
"""A worker is killed; it is stopped; its fork server is killed; it is stopped and then a worker is killed; a process that an
environment started is killed."""
PATIENCE = 400.0  # seconds within which all workers must run again, without `--actor_timeout`
RUN = ["--savedir", ".", "--xpid", "run", "--total_steps", str(10**9), "--max_restarts", str(10**6)]


class Run:
    """A run.py as a process, with its workers."""

    def __init__(self, flags: list[str], folder: Path, actor_timeout: float) -> None:
        self.actor_timeout = actor_timeout
        self.folder = folder / "run"
        with open(folder / "errors.txt", "w") as errors:
            command = [sys.executable, str(ROOT / "run.py"), *flags, *RUN, "--actor_timeout", str(actor_timeout)]
            self.process = psutil.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=errors)
        self.seen: set[psutil.Process] = set()

    def workers(self) -> list[psutil.Process]:
        """Return actor processes, inference process and evaluator: the fork server's own children, not the adopted ones."""
        found = []
        with suppress(psutil.Error):  # the server may have just been killed
            for server in self.process.children():
                for child in server.children():
                    with suppress(psutil.Error):
                        if (
                            child.cmdline() == server.cmdline()
                        ):  # which those that execute something, and the dead, have not
                            found.append(child)
        return found

    def sample(self) -> dict[str, float]:
        """Return the current values of what is watched."""
        family = [self.process, *self.process.children(recursive=True)]
        self.seen |= set(family)
        memory = 0
        for process in family:
            with suppress(psutil.Error):  # it may have just been killed
                memory += process.memory_full_info().pss
        values = memory / 1e6, self.process.num_fds(), self.process.num_threads(), len(family)
        return dict(zip(WATCHED, map(float, values), strict=True))

    def strike(self, fault: str, chance: random.Random) -> tuple[str, float]:
        """Inflict a fault on a random process; return what was done, and the seconds until all workers run again.

        Args:
            fault: one of FAULTS. Environments that start no processes have a worker killed instead of an `engine`.
            chance: chooses the process.

        Raises:
            TimeoutError: if the workers do not run again in time.
        """
        while not (before := self.workers()):  # the server is being replaced for another reason
            time.sleep(0.1)
        victim = chance.choice(before)
        engines = [engine for worker in before for engine in worker.children(recursive=True)]
        began = time.monotonic()
        if fault == "engine" and engines:
            chance.choice(engines).kill()
            return fault, 0.0  # the environment decides whether its worker ends then
        server = victim.parent()
        if fault == "server killed":
            server.kill()
        elif fault == "worker stopped":
            victim.suspend()
        else:
            if fault == "server stopped":
                server.suspend()
            victim.kill()
        name = re.sub(r"\W*\d*$", "", victim.name())
        pids = {worker.pid for worker in before}
        while self.process.poll() is None and (
            len(now := self.workers()) < len(before) or {worker.pid for worker in now} == pids
        ):
            if time.monotonic() > began + self.actor_timeout + PATIENCE:
                raise TimeoutError(f"{fault} ({victim.name() if victim.is_running() else name}): not replaced")
            time.sleep(0.01)
        return fault if " " in fault else name, time.monotonic() - began

    def left(self) -> int:
        """Count the processes ever seen that still run."""
        count = 0
        for process in self.seen:
            with suppress(psutil.Error):
                count += process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return count

    def rows(self) -> list[dict[str, str]]:
        """Read logs.csv."""
        with suppress(FileNotFoundError), open(self.folder / "logs.csv", newline="") as file:
            return list(csv.DictReader(file))
        return []


def slopes(samples: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the mean of each watched value, and its growth per hour by a straight line through all but the first fifth."""
    kept = samples[len(samples) // 5 :]
    hours = np.array([sample["seconds"] for sample in kept]) / 3600
    return {
        name: {
            "mean": float(np.mean([sample[name] for sample in kept])),
            "change_per_hour": float(np.polyfit(hours, [sample[name] for sample in kept], 1)[0]),
        }
        for name in kept[0]
        if name != "seconds"
    }


def standstill(rows: list[dict[str, str]]) -> float:
    """Return the longest time in seconds in which no step was counted in logs.csv."""
    times, worst = [float(row["time"]) for row in rows], 0.0
    last = times[0]
    for time_, before, row in zip(times[1:], rows, rows[1:], strict=False):
        if row["step"] != before["step"]:
            last = time_
        worst = max(worst, time_ - last)
    return worst


def watch(
    run: Run, minutes: float, quiet: float, every: float, faults: list[str], chance: random.Random
) -> dict[str, Any]:
    """Let the run train, inflict faults except in the last `quiet` minutes, check once a second, and return the figures."""
    while not run.rows() and run.process.poll() is None:
        time.sleep(0.1)
    samples: list[dict[str, float]] = []
    killed: Counter[str] = Counter()
    downtime: list[float] = []
    began = time.monotonic()
    offset = float(run.rows()[-1]["time"]) if run.rows() else 0.0
    peace = 60 * (minutes - quiet)
    next_kill = began + every
    while (now := time.monotonic()) < began + 60 * minutes and run.process.poll() is None:
        samples.append({"seconds": now - began, **run.sample()})
        if every and now >= next_kill and now < began + peace:
            kind, seconds = run.strike(chance.choice(faults), chance)
            killed[kind] += 1
            downtime.append(seconds)
            next_kill = now + every
        time.sleep(1.0)
    alive = run.process.poll() is None
    stopped = time.monotonic()
    if alive:
        run.process.send_signal(signal.SIGINT)
    code = run.process.wait(120)
    took = time.monotonic() - stopped
    while run.left() and time.monotonic() < stopped + took + 10.0:
        time.sleep(0.1)
    gone = time.monotonic() - stopped - took
    told = (run.folder / "log.txt").read_text()
    rates = [{"seconds": float(row["time"]), "steps_per_s": float(row["sps"])} for row in run.rows()]
    last = run.rows()[-1]
    calm: dict[str, Any] = {}
    if quiet and alive:
        calm = {"minutes": quiet, **slopes([sample for sample in samples if sample["seconds"] > peace])}
        calm |= slopes([rate for rate in rates if rate["seconds"] > peace + offset])
    return {
        "minutes": (stopped - began) / 60,
        "survived": alive,
        "exit_code": code,
        "seconds_to_stop": took,
        "seconds_until_all_gone": gone,
        "processes_left": run.left(),
        "kills": dict(killed),
        "kills_survived": sum(killed.values()),
        "restarts_told": told.count("; restarting it ("),
        "unrolls_discarded": sum(map(int, re.findall(r"(\d+) unfinished unrolls discarded", told))),
        "seconds_lost": sum(downtime),
        "seconds_lost_worst": max(downtime, default=0.0),
        "steps": int(last["step"]),
        "mean_episode_return": float(last["mean_episode_return"] or "nan"),
        "skipped_updates": int(float(last["skipped_updates"])),
        "seconds_without_steps_worst": standstill(run.rows()),
        **slopes(samples),
        **slopes(rates),
        "quiet": calm,
    }


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument(
        "--quiet", type=float, default=0.0, metavar="MINUTES", help="how many of them, at the end, without kills"
    )
    parser.add_argument(
        "--actor_timeout", type=float, default=300.0, help="of the run; a stopped worker costs that much"
    )
    parser.add_argument("--every", type=float, default=10.0, help="seconds between kills; 0: none")
    parser.add_argument(
        "--faults", default="worker", help=f"what is done, by chance: some of {', '.join(FAULTS)}, with commas; or all"
    )
    parser.add_argument("--env", default="Catch-v0")
    parser.add_argument("--trainer", default="monobeast")
    parser.add_argument("--seed", type=int, default=1, help="of the kills")
    parser.add_argument("--out", metavar="FILE.json")
    values, flags = parser.parse_known_args()
    faults = list(FAULTS) if values.faults == "all" else [name.strip() for name in values.faults.split(",")]
    if wrong := set(faults) - set(FAULTS):
        parser.error(f"--faults: {', '.join(wrong)}; use some of {', '.join(FAULTS)}, or all")
    flags = ["--env", values.env, "--trainer", values.trainer, "--eval_every", "100000", *flags]
    with tempfile.TemporaryDirectory() as folder:
        run = Run(flags, Path(folder), values.actor_timeout)
        try:
            figures = watch(run, values.minutes, values.quiet, values.every, faults, random.Random(values.seed))
            figures["errors"] = (Path(folder) / "errors.txt").read_text()
            config = json.loads((run.folder / "config.json").read_text())
        finally:
            if run.process.poll() is None:
                run.process.kill()
    command = shlex.join(["python", "-m", "benchmarks.chaos", *sys.argv[1:]])
    results = {"command": command, **{key: config[key] for key in ("git_commit", "machine", "versions")}, **figures}
    print(json.dumps(results, indent=2))
    if values.out:
        Path(values.out).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
