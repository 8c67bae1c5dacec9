"""What a run learns on several ranks, beside the same run alone: `python -m benchmarks.ranks [--ranks 2] [-- FLAGS]`.

N ranks with a batch of B make the updates of one learner with a batch of N x B, so over the same steps the curves should lie on
each other. Each seed is run both ways, one after the other; actors and batch are divided among the ranks.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from beast.processes.machine import describe_machine
from beast.report.files import write_json
from beast.run.folder import git_commit
from benchmarks.same_numbers import ROOT

POINTS = 20  # of each curve that are kept


def main(arguments: list[str] | None = None) -> int:
    """Run all seeds both ways, print the return at a few steps of each, and write the curves if asked to.

    Args:
        arguments: of the command line; None: this process's own. What follows `--` goes to `run.py`.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranks", description=__doc__)
    parser.add_argument("--ranks", type=int, default=2, metavar="N", help="ranks beside one process alone [2]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N", help="seeds [1 2 3]")
    parser.add_argument("--env", default="CartPole-v1", metavar="NAME", help="what is learned [CartPole-v1]")
    parser.add_argument("--steps", type=int, default=200_000, metavar="N", help="over all ranks [200,000]")
    parser.add_argument("--actors", type=int, default=16, metavar="N", help="over all ranks [16]")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="unrolls an update over all ranks [8]")
    parser.add_argument("--json", metavar="FILE", help="write all curves to FILE, after each run")
    parser.add_argument("flags", nargs="*", metavar="-- FLAGS", help="further ones of run.py")
    values = parser.parse_args(arguments)
    found: dict[str, Any] = {"env": values.env, "ranks": values.ranks, "steps": values.steps, "curves": []}
    found |= {"actors": values.actors, "batch": values.batch, "flags": values.flags}
    for seed in values.seeds:
        for ranks in (1, values.ranks):
            flags = ["--env", values.env, "--total_steps", values.steps, "--seed", seed]
            flags += ["--num_actors", values.actors // ranks, "--batch_size", values.batch // ranks, *values.flags]
            curve, lag = _curve(ranks, [str(flag) for flag in flags])
            curve = _thinned(curve, values.steps)
            found["curves"].append({"seed": seed, "ranks": ranks, "policy_lag": lag, "curve": curve})
            at = ", ".join(f"{value:.0f} at {step:,}" for step, value in curve[4::5])
            print(f"seed {seed}, {ranks} rank{'s' if ranks > 1 else ''}: {at}; lag {lag:.2f}", flush=True)
            if values.json:
                write_json(Path(values.json), found | {"machine": describe_machine(), "git_commit": git_commit()})
    return 0


def _curve(ranks: int, flags: list[str]) -> tuple[list[tuple[int, float]], float]:
    """(step, mean return of the last 100 games) of a run, and its mean policy lag on the first rank, in updates."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, *launcher, str(ROOT / "run.py"), *flags, "--xpid", "run", "--report_every", "1"]
        subprocess.run(command, cwd=scratch, check=True, stdout=subprocess.DEVNULL)
        with open(Path(scratch) / "runs" / "run" / "logs.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["mean_episode_return"]]
    lags = [float(row["policy_lag_mean"]) for row in rows if row["policy_lag_mean"]]
    return [(int(row["step"]), float(row["mean_episode_return"])) for row in rows], sum(lags) / len(lags)


def _thinned(curve: list[tuple[int, float]], steps: int) -> list[tuple[int, float]]:
    """Of each of POINTS equal parts of the steps the last point, if it has any."""
    last = {min(POINTS - 1, POINTS * step // steps): (step, value) for step, value in curve}
    return list(last.values())


if __name__ == "__main__":
    sys.exit(main())
