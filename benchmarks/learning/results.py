"""What is kept of a run: a thinned CSV and a JSON file, small enough to be committed."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beast.report.files import write_atomically, write_json
from benchmarks.learning.rows import Row

COLUMNS = ("step", "time", "episodes", "mean_episode_return", "sps")
"""Of logs.csv."""
POINTS = 200
"""Lines of a thinned CSV, at most."""
WINDOW = 100
"""Games that a mean return is over."""
_OF_A_PLACE = ("savedir", "xpid", "resume")
"""Flags that say where a run was, not what it was."""
_OF_A_SCORE = ("mean", "std", "median", "min", "max", "episodes")


@dataclass(frozen=True)
class Run:
    """One row with one seed: its name, and where its things are."""

    row: Row
    seed: int
    label: str
    """beside the row's name, so that results of different commits stand side by side; may be empty"""
    out: Path
    """the folder of results"""
    savedir: Path
    """the folder of run folders"""

    @property
    def name(self) -> str:
        """Of its run folder and its files."""
        return f"{self.row.name}_seed{self.seed}" + (f"_{self.label}" if self.label else "")

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.savedir / self.name

    @property
    def json(self) -> Path:
        """The file with its scores."""
        return self.out / f"{self.name}.json"

    @property
    def command(self) -> str:
        """What to type to repeat it, or to go on with it."""
        label = f" --label {self.label}" if self.label else ""
        return f"python -m benchmarks.learning --rows {self.row.name} --seeds {self.seed}{label}"

    def result(self) -> dict[str, Any] | None:
        """What its JSON file says, if it was trained and scored; its run folder may be gone then."""
        if not self.json.exists():
            return None
        found: dict[str, Any] = json.loads(self.json.read_text())
        return found if found["finished"] else None


def write(run: Run, scores: dict[str, dict[str, Any]] | None) -> None:
    """Write both files from a run folder, the JSON last: it is what says that a run is finished.

    Args:
        run: whose folder has config.json, and logs.csv if it was ever reported.
        scores: what `beast.evaluate` said, by how actions were chosen; None: it is not trained to its end.
    """
    lines = thinned(run.folder / "logs.csv")
    config = json.loads((run.folder / "config.json").read_text())
    run.out.mkdir(parents=True, exist_ok=True)
    write_atomically(run.json.with_suffix(".csv"), lambda file: file.write(_text(lines).encode()))
    write_json(
        run.json,
        {
            "row": run.row.name,
            "seed": run.seed,
            "label": run.label,
            "finished": scores is not None,
            "steps": int(lines[-1]["step"]) if lines else 0,
            "steps_wanted": run.row.steps,
            "minutes": round(float(lines[-1]["time"]) / 60, 2) if lines else 0.0,
            "target": run.row.target,
            "scores": {how: {key: score[key] for key in _OF_A_SCORE} for how, score in (scores or {}).items()},
            "flags": {name: value for name, value in config["flags"].items() if name not in _OF_A_PLACE},
            "git_commit": config["git_commit"],
            "machine": config["machine"],
            "load": [round(load, 1) for load in os.getloadavg()],
            "command": run.command,
        },
    )


def thinned(log: Path) -> list[dict[str, str]]:
    """Evenly spaced lines of a logs.csv that have a return, the last one among them; none if there is no such file."""
    if not log.exists():
        return []
    with open(log, newline="") as file:
        lines = [line for line in csv.DictReader(file) if line.get("mean_episode_return")]
    every = max(1, -(-len(lines) // POINTS))
    return [{name: line[name] for name in COLUMNS} for line in lines[::-1][::every][::-1]]


def _text(lines: list[dict[str, str]]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(lines)
    return text.getvalue()


@dataclass(frozen=True)
class Curve:
    """The mean return of the last games, from the hundredth game on; from the first if there were fewer."""

    steps: list[int]
    minutes: list[float]
    returns: list[float]

    def first_at(self, level: float) -> int | None:
        """The step at which the return was first so high, if it ever was."""
        return next((step for step, value in zip(self.steps, self.returns, strict=True) if value >= level), None)


def read_curve(file: Path) -> Curve:
    """Read a thinned CSV.

    Raises:
        OSError, KeyError, ValueError: if it is none.
    """
    with open(file, newline="") as lines:
        rows = list(csv.DictReader(lines))
    rows = [row for row in rows if float(row["episodes"]) >= WINDOW] or rows
    return Curve(
        [int(row["step"]) for row in rows],
        [float(row["time"]) / 60 for row in rows],
        [float(row["mean_episode_return"]) for row in rows],
    )


def read_all(out: Path) -> list[dict[str, Any]]:
    """All JSON files of a folder of results, each with its `curve`, by row, label and seed."""
    found = []
    for file in out.glob("*.json"):
        result = json.loads(file.read_text())
        found.append(result | {"curve": read_curve(file.with_suffix(".csv"))})
    return sorted(found, key=lambda result: (result["row"], result["label"], result["seed"]))
