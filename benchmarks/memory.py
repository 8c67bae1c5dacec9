"""Peak memory and speed of another commit and of this tree in turn: `python -m benchmarks.memory --against COMMIT`.

For each number format a real training run, watched from outside and stopped by Ctrl-C, and `run.py profile`, which watches
itself; the deep network on Pong with the paper's batches, unless other flags follow `--`.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from beast.processes.machine import describe_machine
from beast.report.files import write_json
from beast.run.folder import git_commit
from benchmarks.same_numbers import ROOT, checked_out

PRECISIONS = ("bfloat16", "float32")
FLAGS = [
    "--env", "PongNoFrameskip-v4", "--model", "impala_resnet", "--device", "cpu", "--num_actors", "48", "--batch_size", "32"
]  # fmt: skip
WARM_UP = 3  # updates; memory has seen all that it will see
PEAKS = ("all_pss_mb", "learner_pss_mb", "learner_rss_mb")


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a line a run and the medians, and write all figures if asked to.

    Args:
        arguments: of the command line; None: this process's own. What follows `--` are flags of `run.py`.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--against", required=True, metavar="COMMIT", help="the commit to compare this tree with")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="runs of each kind [3]")
    parser.add_argument(
        "--updates", type=int, default=20, metavar="N", help="updates of a training run, after three more [20]"
    )
    parser.add_argument("--profile_seconds", type=float, default=20.0, metavar="X", help="of profile; 0: none [20]")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="number formats [both]")
    parser.add_argument("--json", metavar="FILE", help="write all figures to FILE, after each run")
    parser.add_argument("flags", nargs="*", metavar="-- FLAGS", help=f"of the run [{' '.join(FLAGS)}]")
    values = parser.parse_args(arguments)
    flags, found = values.flags or FLAGS, []
    with tempfile.TemporaryDirectory() as scratch, checked_out(values.against, Path(scratch) / "other") as other:
        for number in range(values.rounds):
            sides = [("theirs", other), ("ours", ROOT)]
            for precision in values.precisions:
                for side, checkout in sides if number % 2 else reversed(sides):
                    given = [*flags, "--precision", precision]
                    figures = training(checkout, Path(tempfile.mkdtemp(dir=scratch)), given, values.updates)
                    if values.profile_seconds:
                        figures |= profile(checkout, Path(scratch), given, values.profile_seconds)
                    found.append({"side": side, "precision": precision} | figures)
                    print(_line(side, precision, figures), flush=True)
                    if values.json:
                        about = {"against": values.against, "git_commit": git_commit(), "machine": describe_machine()}
                        write_json(
                            Path(values.json), {**about, "flags": flags, "runs": found, "medians": medians(found)}
                        )
    print("medians")
    for one in medians(found):
        print(_line(one["side"], one["precision"], one))
    return 0


def training(checkout: Path, folder: Path, flags: list[str], updates: int) -> dict[str, float]:
    """Peaks in megabytes, and steps a second after the warm-up, of a run that is stopped after so many updates."""
    process = subprocess.Popen(
        [sys.executable, str(checkout / "run.py"), *flags, "--savedir", str(folder), "--xpid", "run", "--report_every", "1"],
        cwd=folder, env=_environment(), stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    peaks = dict.fromkeys(PEAKS, 0.0)
    rows: list[dict[str, float]] = []  # of logs.csv, from the warm-up's end on
    while process.poll() is None and (not rows or rows[-1]["updates"] - rows[0]["updates"] < updates):
        time.sleep(0.5)
        sizes = [_sizes(one) for one in [psutil.Process(process.pid), *_children(process.pid)]]
        seen = (sum(pss for pss, _ in sizes), *sizes[0])
        peaks = {name: max(peaks[name], size / 1e6) for name, size in zip(PEAKS, seen, strict=True)}
        with contextlib.suppress(FileNotFoundError), open(folder / "run" / "logs.csv", newline="") as file:
            log = [{name: float(row[name]) for name in ("updates", "step", "time")} for row in csv.DictReader(file)]
            rows = [row for row in log if row["updates"] >= WARM_UP]
    process.send_signal(signal.SIGINT)
    if process.wait() != 130:
        raise SystemExit(f"memory: error: {checkout}: the run ended by itself with status {process.returncode}")
    steps, seconds = (rows[-1][name] - rows[0][name] for name in ("step", "time"))
    return peaks | {"training_sps": steps / seconds}


def profile(checkout: Path, scratch: Path, flags: list[str], seconds: float) -> dict[str, float]:
    """Of `run.py profile`: steps a second, and microseconds of core time that the learner needs for a step."""
    file = scratch / "figures.json"
    own = ["--no_bound", "--warm_up", "5", "--seconds", str(seconds), "--json", str(file)]
    command = [sys.executable, str(checkout / "run.py"), "profile", *own, *flags]
    subprocess.run(command, cwd=scratch, env=_environment(), stdout=subprocess.DEVNULL, check=True)
    whole = json.loads(file.read_text())["whole"]
    return {
        "profile_sps": whole["sps"],
        "profile_pss_mb": whole["pss_mb"],
        "learner_core_us": whole["cpu_us"]["learner"],
    }


def medians(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each kind of run."""
    kinds = dict.fromkeys((one["side"], one["precision"]) for one in found)
    named = [name for name in found[0] if name not in ("side", "precision")]
    return [
        {"side": side, "precision": precision}
        | {
            name: statistics.median(one[name] for one in found if (one["side"], one["precision"]) == (side, precision))
            for name in named
        }
        for side, precision in kinds
    ]


def _line(side: str, precision: str, figures: dict[str, Any]) -> str:
    named = ", ".join(f"{name} {x:,.0f}" for name, x in figures.items() if isinstance(x, float))
    return f"{side} {precision}: {named}"


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def _children(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def _sizes(process: psutil.Process) -> tuple[int, int]:
    """PSS and RSS in bytes; none of a process that has ended."""
    with contextlib.suppress(psutil.Error):
        found = process.memory_full_info()
        return found.pss, found.rss
    return 0, 0


if __name__ == "__main__":
    sys.exit(main())
