"""What Beast learns, beside published scores: `python -m benchmarks.learning [--rows classic,Pong] [--jobs 2]`.

Each row of benchmarks/learning/rows.py is trained with the preset that its task takes by itself; then 100 games are played with
drawn actions and 100 with the likeliest ones. Stop it when you like, even by a kill: the same command goes on. A run ends early
when its target is reached. Results are small files in benchmarks/results/learning; what is finished there is not run again, so
remove a run's files there and its run folder to repeat it. The page is drawn after each run.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from pathlib import Path
from typing import Any

from beast.core.errors import BeastError
from beast.settings.config import is_name
from benchmarks.learning import page, results
from benchmarks.learning.results import Run
from benchmarks.learning.rows import Row
from benchmarks.learning.suite import ROOT, missing_package, run_all

Table = dict[str, tuple[Row, ...]]


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing and draw the page.

    Args:
        arguments: of the command line; None: this process's own.

    Returns:
        The exit status: 1 if a run failed or the page cannot be drawn, 2 for wrong arguments, 130 if interrupted.
    """
    parser = _parser()
    values = parser.parse_args(arguments)
    try:
        table: Table = importlib.import_module(values.table).ROWS
        rows = selected(table, values.rows)
        if not is_name(values.label or "none"):
            raise ValueError(f"--label {values.label!r} goes into names of files: use letters and digits")
    except (ImportError, AttributeError, ValueError) as error:
        parser.error(str(error))
    if values.list:
        _list(rows, values)
        return 0
    good = True
    try:
        if not values.page:
            able = [row for row in rows if not _left_out(row)]
            good = run_all(_runs(able, values), max(1, values.jobs), values.episodes, lambda: _draw(table, values))
    except KeyboardInterrupt:
        print("interrupted: all runs have saved; the same command goes on from here", file=sys.stderr, flush=True)
        return 130
    finally:
        drawn = _draw(table, values)
    if drawn:
        print(f"the page is {values.page_file}", flush=True)
    return 0 if good and drawn else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rows", default="", metavar="NAMES", help="rows or parts of the page, with commas [all]")
    add("--jobs", type=int, default=1, metavar="N", help="runs at a time, each on its share of the cores [1]")
    add("--seeds", type=_seeds, metavar="N,N", help="only these [1 up to what the row says]")
    add("--label", default="", metavar="NAME", help="results that stand beside those without it: of before a change")
    add("--episodes", type=int, default=100, metavar="N", help="games of each score [100]")
    add("--list", action="store_true", help="show the rows and what is done, and end")
    add("--page", action="store_true", help="only draw the page, with what has run so far")
    add("--table", default="benchmarks.learning.rows", metavar="MODULE", help="a module of your own that has ROWS")
    add("--out", type=Path, default=ROOT / "benchmarks" / "results" / "learning", help="the folder of results")
    add("--savedir", type=Path, default=ROOT / "runs" / "learning", help="the folder of run folders")
    add("--page_file", type=Path, default=ROOT / "docs" / "learning.md", help="the page")
    return parser


def _seeds(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


_seeds.__name__ = "seed"  # argparse names it in its error


def selected(table: Table, names: str) -> list[Row]:
    """The rows of these names and parts, in the table's order; all for no name.

    Raises:
        ValueError: if there is no such row or part.
    """
    wanted = {name.strip() for name in names.split(",") if name.strip()}
    known = [*table, *(row.name for rows in table.values() for row in rows)]
    for name in sorted(wanted - set(known)):
        near = difflib.get_close_matches(name, known, n=1)
        raise ValueError(f"--rows: there is no {name!r}; {f'did you mean {near[0]}?' if near else '--list shows all'}")
    return [row for part, rows in table.items() for row in rows if not wanted or wanted & {part, row.name}]


def _seeds_of(row: Row, values: Any) -> list[int]:
    return values.seeds or list(range(1, row.seeds + 1))


def _runs(rows: list[Row], values: Any) -> list[Run]:
    """The first seed of every row, then the second: what is known early is known of all."""
    seeds = sorted({seed for row in rows for seed in _seeds_of(row, values)})
    pairs = [(row, seed) for seed in seeds for row in rows if seed in _seeds_of(row, values)]
    return [Run(row, seed, values.label, values.out.resolve(), values.savedir.resolve()) for row, seed in pairs]


def _left_out(row: Row) -> bool:
    """Whether a row cannot run here, which is said in one line."""
    package = missing_package(row)
    if package:
        print(f"{row.name} is left out: pip install {package!r}", flush=True)
    return package is not None


def _list(rows: list[Row], values: Any) -> None:
    for row in rows:
        runs = _runs([row], values)
        done = sum(run.result() is not None for run in runs)
        target = "no target" if row.target is None else f"target {row.target:g}"
        lacks = f"; needs {package}" if (package := missing_package(row)) else ""
        print(f"{row.name:28} {row.steps:>11,} steps, {target}; {done} of {len(runs)} seeds done{lacks}")


def _draw(table: Table, values: Any) -> bool:
    """Draw the page with all results, unfinished runs as far as they came; False if it cannot be."""
    try:
        for run in _runs([row for rows in table.values() for row in rows], values):
            if run.result() is None and (run.folder / "config.json").exists():
                results.write(run, None)
        page.write(table, values.out, values.page_file)
    except (BeastError, OSError) as error:
        print(f"benchmarks.learning: error: no page: {error}", file=sys.stderr, flush=True)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
