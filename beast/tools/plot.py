"""The curves of runs and their milestones (`beast plot RUN ... --out curve.png`).

A JSON file beside the picture holds each run's command, commit and machine, and when it first reached which return.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from beast.core.errors import ConfigError
from beast.report.files import write_json

Curve = dict[str, list[float]]


def read(folder: Path) -> Curve:
    """Read a run's frames (millions), minutes and mean return of the last 100 full games, from the 100th game on."""
    curve: Curve = {"frames": [], "minutes": [], "return": []}
    with open(folder / "logs.csv") as file:
        for row in csv.DictReader(file):
            if row["mean_episode_return"] and float(row["episodes"]) >= 100:
                curve["frames"].append(float(row["frames"]) / 1e6)
                curve["minutes"].append(float(row["time"]) / 60)
                curve["return"].append(float(row["mean_episode_return"]))
    return curve


def summary(folder: Path, curve: Curve, levels: list[float]) -> dict[str, Any]:
    """Return the command, commit and machine of a run, and its first row at or above each level."""
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
        "median_sps": sps[len(sps) // 2] if sps else 0.0,
        "first_at_or_above": passed,
    }


def draw(folders: list[Path], labels: list[str], out: Path, title: str = "", levels: list[float] | None = None) -> None:
    """Draw two panels, against frames and against minutes, and write a JSON file beside the picture.

    Args:
        folders: run folders.
        labels: labels of the curves, one for each run.
        out: file of the picture; its extension sets the format.
        title: heading of the picture.
        levels: returns for which the JSON file says when each was first reached.

    Raises:
        ConfigError: if there is nothing to draw, matplotlib is missing, or the picture cannot be written.
    """
    curves, summaries = [], []
    for folder, label in zip(folders, labels, strict=True):
        try:
            curves.append(curve := read(folder))
            if curve["return"]:
                summaries.append({"label": label, **summary(folder, curve, levels or [])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{folder} cannot be drawn: {error}") from error
        if not curve["return"]:
            raise ConfigError(f"{folder} has no curve yet: it takes 100 full games")
    figure, axes = panels(2, title)
    for curve, label in zip(curves, labels, strict=True):
        for panel, key in zip(axes, ("frames", "minutes"), strict=True):
            panel.plot(curve[key], curve["return"], linewidth=1.4, label=label)
    axes[0].set(xlabel="frames (millions)", ylabel="return, mean of the last 100 games")
    axes[1].set(xlabel="minutes")
    if len(labels) > 1:
        axes[0].legend(frameon=False)
    try:
        save(figure, out)
        write_json(out.with_suffix(".json"), summaries)
    except (OSError, ValueError) as error:  # ValueError: matplotlib does not know the format
        raise ConfigError(f"--out {out}: {error}") from error


def _pyplot() -> Any:
    """Import and return matplotlib's pyplot, which only drawing needs.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ConfigError("plots need matplotlib, which is not installed: pip install matplotlib") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def panels(count: int, title: str, lines: int = 1) -> tuple[Any, list[Any]]:
    """Make a figure with `count` panels side by side in each of so many lines; the panels come line by line."""
    size, shape = (5.2 * count, 3.6 * lines), (lines, count)
    figure, axes = _pyplot().subplots(*shape, figsize=size, layout="constrained", squeeze=False)
    figure.suptitle(title, fontsize=11)
    for panel in axes.flat:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, list(axes.flat)


def save(figure: Any, file: Path) -> None:
    """Write a figure to a file and close it."""
    figure.savefig(file, dpi=130)
    _pyplot().close(figure)
