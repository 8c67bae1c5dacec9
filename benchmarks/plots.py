"""What all plots share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def _pyplot() -> Any:
    """Here, so that benchmarks can be run without matplotlib where nothing is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def panels(count: int, title: str) -> tuple[Any, list[Any]]:
    """A figure and its panels, side by side."""
    figure, axes = _pyplot().subplots(1, count, figsize=(5.2 * count, 3.6), layout="constrained", squeeze=False)
    figure.suptitle(title, fontsize=11)
    for panel in axes[0]:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[0])


def bars(panel: Any, groups: Sequence[str], series: Mapping[str, Mapping[str, float]], label: str) -> None:
    """Bars side by side for each group; `series`: from a name to its values by group, of which some may be missing."""
    width = 0.8 / max(len(series), 1)
    for i, (name, values) in enumerate(series.items()):
        places = [g + width * (i - (len(series) - 1) / 2) for g, group in enumerate(groups) if group in values]
        drawn = panel.bar(places, [values[group] for group in groups if group in values], width * 0.92, label=name)
        panel.bar_label(drawn, fmt="{:,.0f}", fontsize=6)
    panel.set_xticks(range(len(groups)), groups, fontsize=8)
    panel.set_ylabel(label)
    if len(series) > 1:
        panel.legend(frameon=False, fontsize=8)


def save(figure: Any, file: Path) -> None:
    figure.savefig(file, dpi=130)
    _pyplot().close(figure)
