"""Draw runs' curves and write their milestones: `python -m benchmarks.plot_run RUN_FOLDER [...] --out curve.png`.

Beside the picture goes a JSON file with the command, commit and machine of each run, and when it first passed which return.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from benchmarks.plots import panels, save

Curve = dict[str, list[float]]


def read(folder: Path) -> Curve:
    """Frames (millions), minutes and the mean return of the last 100 full games, where 100 have ended."""
    curve: Curve = {"frames": [], "minutes": [], "return": []}
    with open(folder / "logs.csv") as file:
        for row in csv.DictReader(file):
            if row["mean_episode_return"] and float(row["episodes"]) >= 100:
                curve["frames"].append(float(row["frames"]) / 1e6)
                curve["minutes"].append(float(row["time"]) / 60)
                curve["return"].append(float(row["mean_episode_return"]))
    return curve


def summary(folder: Path, curve: Curve, levels: list[float]) -> dict[str, Any]:
    """What made the run, and its first row at or above each level."""
    config = json.loads((folder / "config.json").read_text())
    passed = {}
    for level in levels:
        at = next((i for i, value in enumerate(curve["return"]) if value >= level), None)
        if at is not None:
            passed[f"{level:g}"] = {key: round(curve[key][at], 3) for key in ("frames", "minutes")}
    with open(folder / "logs.csv") as file:
        sps = sorted(float(row["sps"]) for row in csv.DictReader(file) if float(row["sps"]) > 0)
    return {
        "run": folder.name,
        "git_commit": config["git_commit"],
        "machine": config["machine"],
        "flags": {name: value for name, value in config["flags"].items() if name != "savedir"},
        "last": {key: round(curve[key][-1], 3) for key in curve},
        "best_return": max(curve["return"]),
        "median_sps": sps[len(sps) // 2],
        "first_at_or_above": passed,
    }


def main(arguments: list[str] | None = None) -> None:
    """Two panels: against frames, and against minutes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot_run", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--labels", nargs="+", help="of the curves, one a run (default: the folders' names)")
    parser.add_argument("--out", type=Path, default=Path("curve.png"))
    parser.add_argument("--title", default="")
    parser.add_argument("--levels", type=float, nargs="*", default=[0.0, 10.0, 18.0, 19.0, 20.0])
    values = parser.parse_args(arguments)
    labels = values.labels or [folder.name for folder in values.runs]
    if len(labels) != len(values.runs):
        parser.error(f"--labels: {len(values.runs)} runs need as many labels, got {len(labels)}")
    figure, axes = panels(2, values.title)
    summaries = []
    for folder, label in zip(values.runs, labels, strict=True):
        curve = read(folder)
        summaries.append({"label": label, **summary(folder, curve, values.levels)})
        for panel, key in zip(axes, ("frames", "minutes"), strict=True):
            panel.plot(curve[key], curve["return"], linewidth=1.4, label=label)
    axes[0].set(xlabel="frames (millions)", ylabel="return, mean of the last 100 games")
    axes[1].set(xlabel="minutes")
    if len(labels) > 1:
        axes[0].legend(frameon=False)
    save(figure, values.out)
    values.out.with_suffix(".json").write_text(json.dumps(summaries, indent=2) + "\n")


if __name__ == "__main__":
    main()
