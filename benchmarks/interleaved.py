"""The speed of this tree beside another commit's, measured in pairs: `python -m benchmarks.interleaved --against COMMIT`.

Machines are noisy, so a single figure says little: runs of both follow each other in pairs, in an order that changes from
pair to pair, and the result is the median of the pairs' ratios with its 90 % interval (bootstrap over pairs). Flags that are
not given are each commit's own defaults.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from beast.processes.machine import describe_machine
from beast.report.files import write_json
from beast.run.folder import git_commit
from benchmarks.same_numbers import ROOT, checked_out


def main(arguments: list[str] | None = None) -> int:
    """Measure, print each pair and the ratio, and write all figures if asked to.

    Args:
        arguments: of the command line; None: this process's own. What follows `--` goes to `run.py profile`.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.interleaved", description=__doc__)
    parser.add_argument("--against", required=True, metavar="COMMIT", help="the commit to compare this tree with")
    parser.add_argument("--pairs", type=int, default=12, metavar="N", help="pairs of runs [12]")
    parser.add_argument("--seconds", type=float, default=30.0, metavar="X", help="steady seconds of each run [30]")
    parser.add_argument("--json", metavar="FILE", help="write all figures to FILE, after each pair")
    parser.add_argument("flags", nargs="*", metavar="-- FLAGS", help="of the trainer, e.g. -- --trainer polybeast")
    values = parser.parse_args(arguments)
    pairs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch, checked_out(values.against, Path(scratch) / "other") as other:
        for number in range(values.pairs):
            order = [("theirs", other), ("ours", ROOT)]
            found = {}
            for name, checkout in order if number % 2 else reversed(order):
                found[name] = speed(checkout, Path(scratch), values.seconds, values.flags)
            pairs.append(found)
            print(
                f"pair {number + 1}: theirs {found['theirs']:,.0f} SPS, ours {found['ours']:,.0f} SPS, "
                f"ratio {found['ours'] / found['theirs']:.3f}",
                flush=True,
            )
            figures = summary(pairs) | {"against": values.against, "flags": values.flags, "seconds": values.seconds}
            if values.json:
                write_json(Path(values.json), figures | {"machine": describe_machine(), "git_commit": git_commit()})
    low, high = figures["interval_90"]
    print(
        f"median of {len(pairs)} pairs: theirs {figures['theirs']:,.0f}, ours {figures['ours']:,.0f} SPS; "
        f"ratio {figures['ratio']:.3f} (90 % interval {low:.3f} to {high:.3f})"
    )
    return 0


def summary(pairs: list[dict[str, float]]) -> dict[str, Any]:
    """Return the medians of both sides, the median of the pairs' ratios (ours / theirs), and its 90 % interval."""
    ratios = [pair["ours"] / pair["theirs"] for pair in pairs]
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {
        "pairs": pairs,
        "theirs": statistics.median(pair["theirs"] for pair in pairs),
        "ours": statistics.median(pair["ours"] for pair in pairs),
        "ratio": statistics.median(ratios),
        "interval_90": (medians[100], medians[1899]),
    }


def speed(checkout: Path, scratch: Path, seconds: float, flags: list[str]) -> float:
    """Return the steps per second of a run of this checkout."""
    file = scratch / "figures.json"
    own = ["--no_bound", "--warm_up", "3", "--seconds", str(seconds), "--json", str(file)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, str(checkout / "run.py"), "profile", *own, *flags],
        cwd=scratch, env=environment, stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    sps: float = json.loads(file.read_text())["whole"]["sps"]
    return sps


if __name__ == "__main__":
    sys.exit(main())
