"""The page of what is learned: a table and a picture of curves for each part, beside published scores."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from beast.report.files import write_atomically
from beast.tools.plot import panels, save
from benchmarks.learning import results
from benchmarks.learning.rows import SOURCES, Row

Result = dict[str, Any]
ENOUGH = 0.9
"""The part of a target that one preset a family is to reach."""

_HEAD = """# What it learns

This page is written by `python -m benchmarks.learning` from the files in [{folder}]({link}): do not edit it. The rows
are in [rows.py]({rows}); each result's JSON has its flags, commit, processor and command.

- **Settings** are those of the preset that a task takes by itself, one for a whole family. Published scores are mostly tuned
  task by task.
- **drawn**, **likeliest**: the mean return of 100 games with the last checkpoint, actions drawn from the policy or its
  likeliest ones, for each seed. **to reach** is the published figure that a row is measured by, with a tick for each seed
  whose better score is 90 % of it or more (of a negative one: at most a tenth of it below).
- **90 % at**: the step at which the mean return of the last 100 training games (drawn actions) was first there. A run ends
  when it has reached the whole of it, so that fewer steps than asked for are good news.
- **minutes** are training time; unless a note says otherwise the machine did other work beside it (the JSON has its load), so
  they are an upper bound.
- An unfinished run stands with its last training mean in brackets, as far as it came; its command goes on with it.
"""


def write(table: dict[str, tuple[Row, ...]], out: Path, file: Path) -> None:
    """Write the page and its pictures.

    Args:
        table: rows by part of the page.
        out: the folder of results, where the pictures go.
        file: the page.

    Raises:
        ConfigError: if matplotlib is missing.
        OSError: if it cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = results.read_all(out)
    for part, rows in table.items():
        if have := _of(rows, found):
            draw(rows, have, _picture(out, part))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda page: page.write(text(table, found, out, file).encode()))


def text(table: dict[str, tuple[Row, ...]], found: list[Result], out: Path, file: Path) -> str:
    """Return the page of these results, as it stands in `file` with its pictures in `out`."""

    def link(target: Path) -> str:
        return os.path.relpath(target.resolve(), file.parent.resolve())

    lines = _HEAD.format(folder=out.name, link=link(out), rows=link(Path(__file__).with_name("rows.py")))
    for part, rows in table.items():
        have = _of(rows, found)
        lines += f"\n## {part}\n\n" + _table(rows, have)
        if have:
            lines += f"\n![Curves of {part}]({link(_picture(out, part))})\n"
    lines += "\n## Where the published scores are from\n\n"
    lines += "".join(f"- **{name}**: {source}.\n" for name, source in SOURCES.items())
    return lines + "\n## How the runs were made\n\n" + _conditions(found)


def _of(rows: tuple[Row, ...], found: list[Result]) -> list[Result]:
    """The results of these rows."""
    names = {row.name for row in rows}
    return [result for result in found if result["row"] in names]


def _picture(out: Path, part: str) -> Path:
    return out / f"{part}.png"


# -- tables -----------------------------------------------------------------------------------------------------------


def _table(rows: tuple[Row, ...], have: list[Result]) -> str:
    """One line for each row and label."""
    lines = [
        "| row | steps | drawn | likeliest | to reach | 90 % at | minutes | published | commit |",
        "|---" * 9 + "|",
    ]
    for row in rows:
        mine = [result for result in have if result["row"] == row.name]
        target = "-" if row.target is None else f"{row.target:,g}"
        if not mine:
            lines.append(f"| {row.name} | {_number(row.steps)} | not run | | {target} | | | {row.published or '-'} | |")
        for label in sorted({result["label"] for result in mine}):
            lines.append(_line(row, target, label, [result for result in mine if result["label"] == label]))
    return "\n".join(lines) + "\n"


def _line(row: Row, target: str, label: str, seeds: list[Result]) -> str:
    name = f"{row.name}, {label}" if label else row.name
    level = None if row.target is None else enough(row.target)
    reached = "" if level is None else " " + " ".join(_mark(result, level) for result in seeds)
    first = [None if level is None else result["curve"].first_at(level) for result in seeds]
    cells = [
        name,
        _each(_number(result["steps"]) for result in seeds),
        _each(_score(result, "drawn") for result in seeds),
        _each(_score(result, "likeliest") for result in seeds),
        target + reached,
        _each("-" if step is None else _number(step) for step in first),
        _each(f"{result['minutes']:.0f}" for result in seeds),
        row.published or "-",
        ", ".join(sorted({commit(result) for result in seeds})),
    ]
    return "| " + " | ".join(cells) + " |"


def enough(target: float) -> float:
    """90 % of a target; of a negative one, as much below it."""
    return target - (1 - ENOUGH) * abs(target)


def _mark(result: Result, level: float) -> str:
    """Whether the better one of a run's two scores is so high; an unfinished run has none yet."""
    if not result["finished"]:
        return "…"
    return "✓" if max(score["mean"] for score in result["scores"].values()) >= level else "✗"


def commit(result: Result) -> str:
    """Of the code, as short as git shows it; with a + if it was changed and not committed."""
    whole: str = result["git_commit"]
    return whole[:7] + ("+" if whole.endswith("-dirty") else "")


def _score(result: Result, how: str) -> str:
    if how in result["scores"]:
        return f"{result['scores'][how]['mean']:,.4g}"
    returns = result["curve"].returns
    return f"({returns[-1]:,.4g})" if returns and how == "drawn" else "-"


def _each(parts: Any) -> str:
    return ", ".join(parts)


def _number(steps: int) -> str:
    """10M, 500K, 96K, 800."""
    if steps < 1000:
        return str(steps)
    return f"{steps / 1e6:.3g}M" if steps >= 1e6 else f"{steps / 1e3:.3g}K"


def _conditions(found: list[Result]) -> str:
    """Processors with their commits, and the commands of what is not finished."""
    machines: dict[str, set[str]] = {}
    for result in found:
        machine = result["machine"]
        about = f"{machine['cores']} cores of {machine['cpu']}, {machine['gpu'] or 'no GPU'}, torch {machine['torch']}"
        machines.setdefault(about, set()).add(commit(result))
    text = "".join(f"- {about}: {', '.join(sorted(commits))}\n" for about, commits in sorted(machines.items()))
    open_ones = [result for result in found if not result["finished"]]
    text += "\nAny row again, or further: `python -m benchmarks.learning --rows NAME`.\n"
    if open_ones:
        text += "\nNot finished yet:\n\n"
        for result in open_ones:
            done = f"{_number(result['steps'])} of {_number(result['steps_wanted'])}"
            text += f"- {result['row']}, seed {result['seed']}: {done}; `{result['command']}`\n"
    return text


# -- pictures ---------------------------------------------------------------------------------------------------------


def draw(rows: tuple[Row, ...], have: list[Result], file: Path) -> None:
    """Draw two panels for each row that has results, or for rows of one panel: against steps and against minutes.

    A row by itself has a line for each seed, and a dashed one for its target; rows of one panel are means over their seeds.
    """
    shown: dict[str, list[Row]] = {}
    for row in rows:
        if any(result["row"] == row.name for result in have):
            shown.setdefault(row.panel or row.name, []).append(row)
    figure, axes = panels(2, "", len(shown))
    for (title, together), by_steps, by_minutes in zip(shown.items(), axes[::2], axes[1::2], strict=True):
        if len(together) == 1:
            _draw_seeds(together[0], have, by_steps, by_minutes)
        else:
            _draw_means(title, together, have, by_steps, by_minutes)
        by_steps.set_xlabel("steps (millions)", fontsize=8)
        by_minutes.set_xlabel("minutes", fontsize=8)
        by_steps.set_title(title, fontsize=9, loc="left")
        by_steps.set_ylabel("return, last 100 games", fontsize=8)
        by_steps.legend(frameon=False, fontsize=7)
    save(figure, file)


def _draw_seeds(row: Row, have: list[Result], by_steps: Any, by_minutes: Any) -> None:
    """Draw one line for each seed, in a colour for each label."""
    mine = [result for result in have if result["row"] == row.name]
    labels = sorted({result["label"] for result in mine})
    for result in mine:
        curve, colour = result["curve"], f"C{labels.index(result['label'])}"
        named = f"{result['label'] or 'now'} ({commit(result)})" if result["seed"] == mine[0]["seed"] else None
        for panel, xs in ((by_steps, [step / 1e6 for step in curve.steps]), (by_minutes, curve.minutes)):
            panel.plot(xs, curve.returns, color=colour, linewidth=1.1, alpha=0.8, label=named)
    for panel in (by_steps, by_minutes):
        if row.target is not None:
            panel.axhline(row.target, color="0.4", linestyle="--", linewidth=0.9)


def _draw_means(title: str, rows: list[Row], have: list[Result], by_steps: Any, by_minutes: Any) -> None:
    """Draw one line for each row: the mean of its seeds at the same steps, as far as all of them came."""
    for number, row in enumerate(rows):
        curves = [result["curve"] for result in have if result["row"] == row.name and result["curve"].returns]
        if not curves:
            continue
        steps = np.linspace(max(c.steps[0] for c in curves), min(c.steps[-1] for c in curves), 200)
        returns = np.mean([np.interp(steps, c.steps, c.returns) for c in curves], axis=0)
        minutes = np.mean([np.interp(steps, c.steps, c.minutes) for c in curves], axis=0)
        style = {"color": f"C{number % 10}", "linestyle": "-" if number < 10 else "--", "linewidth": 1.2}
        for panel, xs in ((by_steps, steps / 1e6), (by_minutes, minutes)):
            panel.plot(xs, returns, label=row.name.removeprefix(f"{title}-"), **style)
