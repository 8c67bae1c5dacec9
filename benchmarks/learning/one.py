"""One run of the suite, in a process of its own: train or go on, play 100 games twice, write the result."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import beast
from beast.processes.forkserver import PR_SET_PDEATHSIG, prctl
from benchmarks.learning import results
from benchmarks.learning.results import Run
from benchmarks.learning.rows import Row

TRAINED = "trained"
"""A file in the run folder of a run that has come to its end."""


def command(run: Run, episodes: int, cores: list[int]) -> list[str]:
    """Return the command that starts a run as a child of this process, on these cores."""
    return [sys.executable, "-m", __name__, json.dumps([asdict(run), episodes, cores, os.getpid()], default=str)]


def main(arguments: list[str] | None = None) -> int:
    """Bring one run to its end; killed at any second, it goes on from its last checkpoint.

    Args:
        arguments: one, which `command` made; None: this process's own.

    Raises:
        BeastError: and whatever else `beast.train` and `beast.evaluate` raise.
    """
    values, episodes, cores, parent = json.loads((sys.argv[1:] if arguments is None else arguments)[0])
    run = Run(Row(**values["row"]), values["seed"], values["label"], Path(values["out"]), Path(values["savedir"]))
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # it saves a checkpoint and ends when the suite is gone
    if os.getppid() != parent:
        return 1
    os.sched_setaffinity(0, cores)  # before anything counts them
    row, trained = run.row, run.folder / TRAINED
    if not trained.exists():
        flags = {"checkpoint_every": 2.0, "report_every": 1.0, "stop_at_return": row.target, **row.flags}
        beast.train(
            env=row.env, total_steps=row.steps, seed=run.seed, resume="auto", xpid=run.name, savedir=str(run.savedir),
            trust=True, **flags,
        )  # fmt: skip
        trained.touch()
    scores = {
        how: beast.evaluate(run.folder, episodes, deterministic=how == "likeliest", trust=True)
        for how in ("drawn", "likeliest")
    }
    results.write(run, scores)
    return 0


if __name__ == "__main__":
    sys.exit(main())
