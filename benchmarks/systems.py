"""Speed of the paper's systems beside IMPALA's, in turn on one machine: `python -m benchmarks.systems`.

They are the rows of tables 1 and 2, a fixed lag, and PPO's surrogate. Machines are noisy, so the systems follow each other,
round after round, each time in another order, and what is told is the median over rounds of each one's speed divided by that
of MonoBeast's IMPALA in the same round.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from beast.processes.machine import describe_machine
from beast.report.files import write_json
from beast.run.folder import git_commit
from benchmarks.interleaved import speed
from benchmarks.same_numbers import ROOT

POLYBEAST = ("--trainer", "polybeast")
SYSTEMS: dict[str, tuple[str, ...]] = {
    "IMPALA": (),
    "IMPALA, dynamic batching": POLYBEAST,
    "A3C": ("--trainer", "a3c"),
    "batched A2C, sync trajectory": ("--pace", "unroll"),
    "batched A2C, dynamic batching": (*POLYBEAST, "--pace", "unroll"),
    "batched A2C, sync step": (*POLYBEAST, "--pace", "step"),
    "one_step": ("--correction", "one_step"),
    "epsilon": ("--correction", "epsilon"),
    "none": ("--correction", "none"),
    "replay": ("--replay_capacity", "10000"),
    "lag of 10 updates": ("--policy_lag", "10"),
    "appo": ("--algorithm", "appo"),
}
"""Rows of the tables and the flags that make them."""
FIRST = next(iter(SYSTEMS))
"""Speeds are told as parts of this one's, which is always measured."""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print each round and the ratios, and write all figures if asked to.

    Args:
        arguments: of the command line; None: this process's own. What follows `--` goes to `run.py profile`.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.systems", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="runs of each system [3]")
    parser.add_argument("--seconds", type=float, default=20.0, metavar="X", help="steady seconds of each run [20]")
    parser.add_argument(
        "--only", nargs="+", choices=SYSTEMS, default=[], metavar="NAME", help="these, and IMPALA [all]"
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures to FILE, after each round")
    parser.add_argument("flags", nargs="*", metavar="-- FLAGS", help="of the trainer, e.g. -- --env Catch-v0")
    values = parser.parse_args(arguments)
    wanted = [name for name in SYSTEMS if not values.only or name in (FIRST, *values.only)]
    rounds: list[dict[str, float]] = []
    figures: dict[str, Any] = {}
    for number in range(values.rounds):
        found = {}
        for name in random.Random(number).sample(wanted, len(wanted)):
            with tempfile.TemporaryDirectory() as scratch:
                found[name] = speed(ROOT, Path(scratch), values.seconds, [*SYSTEMS[name], *values.flags])
            print(f"round {number + 1}: {name} {found[name]:,.0f} SPS", flush=True)
        rounds.append(found)
        figures = summary(rounds) | {"flags": values.flags, "seconds": values.seconds}
        if values.json:
            write_json(Path(values.json), figures | {"machine": describe_machine(), "git_commit": git_commit()})
    for name, figure in figures["systems"].items():
        print(f"{name}: {figure['sps']:,.0f} SPS, {figure['ratio']:.2f} of IMPALA's")
    return 0


def summary(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """The median speed of each system, and the median of its speed's ratio to the first one's in the same round."""
    systems = {
        name: {
            "flags": list(flags),
            "sps": statistics.median(found[name] for found in rounds),
            "ratio": statistics.median(found[name] / found[FIRST] for found in rounds),
        }
        for name, flags in SYSTEMS.items()
        if name in rounds[0]
    }
    return {"systems": systems, "rounds": rounds}


if __name__ == "__main__":
    sys.exit(main())
