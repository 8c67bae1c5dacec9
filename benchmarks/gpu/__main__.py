"""Measure a machine with a GPU: `python -m benchmarks.gpu [--out DIR] [--minutes 10]`. docs/gpu.md says how to read it.

Stop it when you like: DIR/gpu.json is whole at any moment, and the same command goes on where it stopped. Parts:
"""

from __future__ import annotations

import argparse
import signal
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.conductor import InUse, Results, conduct, limit, order
from benchmarks.gpu.packages import PackagesMissing, provide
from benchmarks.gpu.parts import PARTS, Part
from benchmarks.gpu.processes import adopt_orphans
from benchmarks.gpu.verdict import headline, verdict

SAME = ("cpu", "cores", "gpu", "torch", "git_commit")  # of which figures belong together
NO_GPU = "no GPU here: everything is small, to show that the command works; its figures mean nothing"


class Refused(RuntimeError):
    """It cannot go on; the message is one line."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 if nothing failed, 1 if a part did, 2 if it cannot begin, 128 + n if signal n ended it."""
    began = time.monotonic()
    values = _parser().parse_args(arguments)
    if values.minutes < 0:
        return _refuse("--minutes must not be negative")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    adopt_orphans()
    if not values.minutes and not (values.out / "gpu.json").exists():
        return _refuse(f"--minutes 0 shows what is there, and there is no {values.out / 'gpu.json'}")
    try:
        results = Results(values.out)
    except InUse as error:
        return _refuse(str(error))
    except ValueError as error:
        return _refuse(f"{values.out / 'gpu.json'} is not what this command writes ({error}): choose another --out")
    except OSError as error:
        return _refuse(f"cannot write to --out {values.out}: {error.strerror}")
    if values.again:
        results.all = {"parts": {}}
    status = 0
    try:
        if values.minutes:
            if taken := provide(values.wheels):
                print(f"from {values.wheels}: {', '.join(taken)}", flush=True)
            _measure(results, began + 60 * values.minutes, [part for part in PARTS if part.name in values.only])
    except (PackagesMissing, Refused) as error:
        return _refuse(str(error))
    except KeyboardInterrupt as interrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        status = 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    failed = show(results, values.only)
    return status or failed


def _parser() -> argparse.ArgumentParser:
    about = "\n".join(f"  {part.name:<10}{(part.run.__doc__ or '').splitlines()[0]}" for part in PARTS)
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu", description=f"{__doc__}{about}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [part.name for part in PARTS]
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gpu"), metavar="DIR", help="of gpu.json and gpu.log [runs/gpu]"
    )
    parser.add_argument(
        "--minutes", type=float, default=10.0, metavar="X", help="for all [10]; 0: only show what is there"
    )
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="PART", help="some of the parts")
    parser.add_argument("--again", action="store_true", help="forget what is there")
    parser.add_argument("--wheels", type=Path, default=Path(".wheels"), metavar="DIR",
                        help="of packages that may be missing here [.wheels]")  # fmt: skip
    return parser


def _measure(results: Results, end: float, parts: list[Part]) -> None:
    """Run the parts that are not done, each in its time."""
    on_gpu = look_at_machine(results, end)
    started = {"at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "arguments": sys.argv[1:]}
    results.all["started"] = [*results.all.get("started", []), started]
    if not on_gpu:
        print(NO_GPU, flush=True)
    parts = [part for part in parts if part.name != "machine"]
    todo = order(parts, results)
    if known := [part.name for part in parts if part not in todo]:
        print(f"known already: {', '.join(known)}", flush=True)

    def least(part: Part) -> float:
        return part.least if on_gpu else part.least / 2

    while todo:
        part = todo[0]
        if seconds := limit(todo, least, end - time.monotonic()):
            _print(f"{part.name} ({seconds:.0f} s at most)")
            conduct(part, seconds, on_gpu, results, _tell)
            if why := results.part(part.name)["why"]:
                _print(f"    {why}")
        else:
            left = max(0.0, end - time.monotonic())
            results.part(part.name)["state"] = "left out"
            results.part(part.name)["why"] = f"it needs {least(part):.0f} s, {left:.0f} were left"
            results.write()
        todo = todo[1:]


def look_at_machine(results: Results, end: float) -> bool:
    """The first part, which is always run: whether there is a GPU, and whether what is known is of this machine.

    Raises:
        Refused: if it is not, or the part fails.
    """
    part = PARTS[0]
    before = results.part(part.name)
    known = dict(before["points"])
    before["unfinished"] = list(known)  # measured afresh, and kept until then
    seconds = min(part.least, end - time.monotonic())
    _print(f"{part.name} ({seconds:.0f} s at most)")
    conduct(part, seconds, False, results, _tell)
    found = results.part(part.name)
    now = found["points"].get("machine")
    if now is None or "machine" in found["unfinished"]:
        raise Refused(f"nothing can be measured: {found['why'] or 'the machine said nothing'}; see {results.log.name}")
    then = results.all.setdefault("of", {key: now[key] for key in SAME})
    if changed := [key for key in SAME if then[key] != now[key]]:
        found["points"] = known
        results.write()
        raise Refused(
            f"{results.file} is of another {' and '.join(changed)}: choose another --out, or --again to forget it"
        )
    return now["gpu"] is not None


def _tell(point: str, line: dict[str, Any]) -> None:
    """Print what became of a point; of tests that are as they should be there are too many."""
    if line.get("figures", {}).get("outcome") in ("passed", "skipped"):
        return
    if "figures" in line:
        text = headline(line["figures"])
    else:
        text = f"failed: {line['failed']}" if "failed" in line else "left out: no time"
    _print(f"    {point}: {text}")


def show(results: Results, names: list[str]) -> int:
    """Print what is there and what it means; returns 1 if a part failed."""
    parts = results.all["parts"]
    found = verdict(parts)
    results.all["bounds"] = [row._asdict() for row in found.rows]
    results.all["change_first"] = [change._asdict() for change in found.changes]
    results.write()
    print("\nParts")
    for name in names:
        _show_part(name, results.part(name))
    machine = parts.get("machine", {}).get("points", {}).get("machine")
    if machine and not machine["gpu"]:
        print(f"\n{NO_GPU}")
    print("\nWhat bounds what")
    for row in found.rows:
        _print(f"  {row.sps:>9,.0f} steps/s  {row.bound:<18}  ", f"{row.what}: {row.why}")
    for name, race in parts.get("pong", {}).get("points", {}).items():
        _print(f"  learning, {name}: ", headline(race))
    print("\nWhat to change first (times as fast)")
    for change in found.changes:
        _print(f"  x {change.gain:<6.2f}{change.of:<15}", change.text)
    if not found.changes:
        print("  nothing that these figures show")
    print(f"\nfigures: {results.file}; all that was printed: {results.log.name}")
    return int(any(results.part(name)["state"] in ("failed", "cut") for name in names))


def _show_part(name: str, part: dict[str, Any]) -> None:
    points = part["points"]
    outcomes = [point["outcome"] for point in points.values() if "outcome" in point]
    said = [part["why"], ", ".join(f"{outcomes.count(kind)} {kind}" for kind in sorted({*outcomes}))]
    said += [f"{point}: {why}" for point, why in part["failed"].items()]
    said += [f"no time for {', '.join(part['left_out'])}"] if part["left_out"] else []
    _print(f"  {name:<10}{part['state']:<12}{part['seconds']:5.0f} s  ", "; ".join(filter(None, said)))
    for test, point in points.items():
        if point.get("outcome") == "failed":
            _print(" " * 10, f"{test}: {point['why']}")


def _print(start: str, text: str = "") -> None:
    """A paragraph whose further lines are indented as far as the text on its first, or by a little where all is text."""
    indent = " " * (len(start) if text else 8)
    print(textwrap.fill(start + text, 120, subsequent_indent=indent, break_on_hyphens=False), flush=True)


def _refuse(message: str) -> int:
    print(f"benchmarks.gpu: error: {message}", file=sys.stderr)
    return 2


def _interrupt(number: int, _: Any) -> None:
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    sys.exit(main())
