"""What a run costs beside its steps: seconds from the command to the first update, memory, seconds to stop."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from beast.processes.forkserver import PR_SET_PDEATHSIG, prctl
from beast.settings.flags import to_arguments
from benchmarks.plots import bars, panels, save
from benchmarks.throughput import MODELS, TRAINERS

ROOT = Path(__file__).parents[1]
LOOK = 0.1  # seconds between rows of the log: how exactly the first update is seen
PATIENCE = 180.0


def measure(flags: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Train in a folder of its own until `seconds` after the first update, then stop it as Ctrl-C would.

    Raises:
        RuntimeError: if no update comes.
    """
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder) / "run" / "logs.csv"
        own = {"savedir": folder, "xpid": "run", "report_every": LOOK, "disable_checkpoint": True}
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "run.py", *to_arguments(flags | own)], cwd=ROOT, stdout=subprocess.DEVNULL,
            preexec_fn=partial(prctl, PR_SET_PDEATHSIG, signal.SIGTERM),
        )  # fmt: skip
        try:
            while not _has_update(logs):
                if process.poll() is not None or time.perf_counter() - began > PATIENCE:
                    raise RuntimeError(f"no update within {time.perf_counter() - began:.0f} s")
                time.sleep(0.02)
            first_update = time.perf_counter() - began
            time.sleep(seconds)
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            memory = sum(member.memory_full_info().pss for member in family)
        finally:
            process.terminate()
            began = time.perf_counter()
            process.wait(60.0)
        return {
            "flags": flags,
            "first_update_s": first_update,
            "pss_mb": memory / 1e6,
            "processes": len(family),
            "stop_s": time.perf_counter() - began,
        }


def _has_update(logs: Path) -> bool:
    with suppress(FileNotFoundError), open(logs) as file:
        return any(int(row["updates"] or 0) > 0 for row in csv.DictReader(file))
    return False


def points(seconds: float) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what to measure, by name."""
    return {
        f"{model} {trainer} 48 actors": partial(
            measure,
            {"env": "PongNoFrameskip-v4", "model": model, "trainer": trainer, "num_actors": 48, "batch_size": 32},
            seconds,
        )
        for trainer in TRAINERS
        for model in MODELS
    }


def draw(figures: dict[str, dict[str, Any]], file: Path) -> None:
    """Draw a bar for each start."""
    figure, axes = panels(2, "Pong, 48 actors")
    for panel, (key, label) in zip(
        axes, {"first_update_s": "seconds to the first update", "pss_mb": "MB (sum of PSS)"}.items(), strict=True
    ):
        series: dict[str, dict[str, float]] = {trainer: {} for trainer in TRAINERS}
        for point in figures.values():
            series[point["flags"]["trainer"]][point["flags"]["model"]] = point[key]
        bars(panel, MODELS, series, label)
    save(figure, file)
