"""Draw a run's curve: `python -m benchmarks.plot_run RUN_FOLDER [RUN_FOLDER ...] --out curve.png`."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def read(folder: Path) -> dict[str, list[float]]:
    """Frames (millions), minutes and the mean return of the last 100 full games, where there is one."""
    curve: dict[str, list[float]] = {"frames": [], "minutes": [], "return": []}
    with open(folder / "logs.csv") as file:
        for row in csv.DictReader(file):
            if row["mean_episode_return"]:
                curve["frames"].append(float(row["frames"]) / 1e6)
                curve["minutes"].append(float(row["time"]) / 60)
                curve["return"].append(float(row["mean_episode_return"]))
    return curve


def main() -> None:
    """Two panels: against frames, and against minutes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("curve.png"))
    parser.add_argument("--title", default="")
    values = parser.parse_args()
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True, layout="constrained")
    for folder in values.runs:
        curve = read(folder)
        for panel, key in zip(panels, ("frames", "minutes"), strict=True):
            panel.plot(curve[key], curve["return"], linewidth=1.4, label=folder.name)
    panels[0].set(xlabel="frames (millions)", ylabel="return, mean of the last 100 games")
    panels[1].set(xlabel="minutes")
    for panel in panels:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    if len(values.runs) > 1:
        panels[0].legend(frameon=False)
    figure.suptitle(values.title, fontsize=11)
    figure.savefig(values.out, dpi=130)


if __name__ == "__main__":
    main()
