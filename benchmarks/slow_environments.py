"""Whether slow environments hold the fast ones: `python -m benchmarks.slow_environments [--seconds 10] [--json FILE]`.

Three synthetic tasks with the same total work a step: spread evenly; step times drawn from a tenfold range; resets that take
a hundred steps' time. Each is trained on by each beast (`run.py profile`), in turn, several rounds; medians, and what the
uneven ones lose against the even one.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from beast.processes.machine import describe_machine
from beast.run.folder import git_commit
from beast.tools.autotune import profile_of
from benchmarks.throughput import TIMEOUT

STEP_MS = 1.0  # mean work of a step, resets included
EPISODE = 100  # steps
RANGE = math.sqrt(10.0)  # factors from 1 / RANGE to RANGE: the slowest step takes ten times the fastest
SLOW_RESET = 100  # steps' time


def tasks() -> dict[str, dict[str, Any]]:
    """Return keyword arguments of the synthetic environment, by name."""
    common = {"shape": [8], "episode_steps": EPISODE}
    mean_factor = (RANGE - 1 / RANGE) / (2 * math.log(RANGE))  # of a log-uniform draw
    step_beside_resets = STEP_MS * EPISODE / (EPISODE + SLOW_RESET)
    return {
        "even": common | {"step_ms": STEP_MS},
        "step times vary tenfold": common | {"step_ms": STEP_MS / mean_factor, "vary": RANGE},
        "resets take 100 steps": common | {"step_ms": step_beside_resets, "reset_ms": SLOW_RESET * step_beside_resets},
    }


def measure(trainer: str, task: dict[str, Any], seconds: float, flags: list[str]) -> float:
    """Return the steps per second of a run."""
    values = {"env": "Synthetic-v0", "env_kwargs": task, "trainer": trainer}
    figures = profile_of(values, "--seconds", f"{seconds:g}", *flags, timeout=TIMEOUT + seconds)
    sps: float = figures["whole"]["sps"]
    return sps


def main() -> None:
    """Measure all tasks and trainers alternately."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slow_environments", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    values, flags = parser.parse_known_args()  # the rest goes to run.py
    runs: dict[tuple[str, str], list[float]] = {}
    for _ in range(values.rounds):
        for trainer in ("monobeast", "polybeast"):
            for name, task in tasks().items():
                runs.setdefault((trainer, name), []).append(measure(trainer, task, values.seconds, flags))
    results = []
    for (trainer, name), sps in runs.items():
        median, even = float(np.median(sps)), float(np.median(runs[trainer, "even"]))
        results.append({"trainer": trainer, "task": name, "sps": sps, "median": median, "loss": 1 - median / even})
        print(f"{trainer}  {name:<24} {median:>7,.0f} SPS   loses {100 * (1 - median / even):5.1f} %")
    if values.json:
        own = ["--seconds", f"{values.seconds:g}", "--rounds", str(values.rounds), *flags]
        command = shlex.join(["python", "-m", "benchmarks.slow_environments", *own])
        figures = {"machine": describe_machine(), "git_commit": git_commit(), "command": command, "results": results}
        Path(values.json).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
