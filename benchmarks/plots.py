"""What the plots of all benchmarks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from beast.tools.plot import panels, save

__all__ = ["bars", "panels", "save"]


def bars(panel: Any, groups: Sequence[str], series: Mapping[str, Mapping[str, float]], label: str) -> None:
    """Draw bars side by side for each group; `series` maps a name to its values by group, some of which may be missing."""
    width = 0.8 / max(len(series), 1)
    for i, (name, values) in enumerate(series.items()):
        places = [g + width * (i - (len(series) - 1) / 2) for g, group in enumerate(groups) if group in values]
        drawn = panel.bar(places, [values[group] for group in groups if group in values], width * 0.92, label=name)
        panel.bar_label(drawn, fmt="{:,.0f}", fontsize=6)
    panel.set_xticks(range(len(groups)), groups, fontsize=8)
    panel.set_ylabel(label)
    if len(series) > 1:
        panel.legend(frameon=False, fontsize=8)
