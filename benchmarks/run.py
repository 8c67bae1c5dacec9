"""All benchmarks, one after the other: `python -m benchmarks.run [--only NAME ...] [--seconds S] [--out FOLDER] [--again]`.

Each writes FOLDER/NAME_MACHINE.json after each of its points, with machine, commit and command, and a plot at its end. Stop it
when you like: points that are there are not measured again. For figures that count, the machine must do nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from beast.processes import machine as system
from beast.report.files import write_json
from beast.run.folder import git_commit
from benchmarks import environment, learner, startup, throughput

ROOT = Path(__file__).parents[1]

Points = dict[str, Callable[[], dict[str, Any]]]


@dataclass(frozen=True)
class Benchmark:
    """One question that is measured at several points."""

    points: Callable[[float], Points]
    """Maps the seconds of each measurement to functions that measure, by name."""
    draw: Callable[[dict[str, dict[str, Any]], Path], None] | None = None
    """Draws the figures of all points."""


def _script(name: str, seconds: float) -> Points:
    """Return a benchmark that is a command of its own, as one point."""

    def measure() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "figures.json"
            own = ["--seconds", f"{seconds:g}", "--json", str(file)]
            subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *own], cwd=ROOT, check=True)
            return {"results": json.loads(file.read_text())["results"]}

    return {name: measure}


BENCHMARKS = {
    "environment": Benchmark(environment.points, environment.draw),
    "learner": Benchmark(learner.points, learner.draw),
    "startup": Benchmark(startup.points, startup.draw),
    "throughput": Benchmark(throughput.points, throughput.draw),
    "signalling": Benchmark(partial(_script, "signalling")),
    "slow_environments": Benchmark(partial(_script, "slow_environments")),
}


def run(name: str, out: Path, seconds: float, again: bool) -> bool:
    """Measure what is missing, write it and draw; return False if a point failed.

    Raises:
        ValueError: if the file holds another machine's results, or something else.
    """
    benchmark, machine = BENCHMARKS[name], system.describe_machine()
    file = out / f"{name}_{machine['cores']}cores{'_gpu' if machine['gpu'] else ''}.json"
    done = {} if again else _read(file, machine)
    good = True
    todo = benchmark.points(seconds)
    for number, (point, measure) in enumerate(todo.items(), 1):
        if point in done:
            continue
        print(f"{name} {number}/{len(todo)}: {point} ...", flush=True)
        began = time.monotonic()
        try:
            figures = measure()
        except Exception as error:  # one failed point must not lose the others
            print(f"    failed: {error}", flush=True)
            good = False
            continue
        done[point] = {
            "machine": machine,
            "git_commit": git_commit(),
            "command": f"python -m benchmarks.run --only {name} --seconds {seconds:g}",
            "figures": figures,
        }
        write_json(file, {"points": done})
        print(f"    {time.monotonic() - began:.0f} s: {_headline(figures)}", flush=True)
    if benchmark.draw and done:
        benchmark.draw({point: found["figures"] for point, found in done.items()}, file.with_suffix(".png"))
    return good


def _read(file: Path, machine: dict[str, Any]) -> dict[str, Any]:
    if not file.exists():
        return {}
    points: dict[str, Any] = json.loads(file.read_text()).get("points")
    same = ("cpu", "cores", "gpu")
    if points is None or any(p["machine"][key] != machine[key] for p in points.values() for key in same):
        raise ValueError(f"{file} is not this machine's: choose another --out, or --again to write it anew")
    return points


def _headline(figures: dict[str, Any]) -> str:
    """Format the numbers among the figures, one level deep."""
    numbers = {**figures.get("whole", {}), **figures.get("share_of_bare_emulator", {}), **figures}
    return ", ".join(f"{key} {value:,.4g}" for key, value in numbers.items() if isinstance(value, float))


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks; return 0, 1 if a point failed, 2 if other results are in the way, 130 if interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), metavar="NAME",
                        help=", ".join(BENCHMARKS))  # fmt: skip
    parser.add_argument("--seconds", type=float, default=12.0, help="of each measurement [12]")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--again", action="store_true", help="measure points that are there already, too")
    values = parser.parse_args(arguments)
    values.out.mkdir(parents=True, exist_ok=True)
    try:
        good = [run(name, values.out, values.seconds, values.again) for name in values.only]
    except ValueError as error:
        print(f"benchmarks.run: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
