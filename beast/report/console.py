"""The console of a run: each `Report` is drawn as a live view in a terminal, or printed as one line in a pipe."""

from __future__ import annotations

import errno
import itertools
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import IO, TextIO

from rich.columns import Columns
from rich.console import Console, ConsoleRenderable, Group, RenderableType
from rich.control import Control
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from beast.processes.launch import launch
from beast.report.report import Report

WIDTH = 110  # the live view's largest width, in columns
REFRESH = 0.5  # seconds between two drawings of the live view
SHADES = (("█", "cyan"), ("▓", "blue"), ("▒", "magenta"), ("░", "bright_black"))  # distinct without colours
SPARKS = "▁▂▃▄▅▆▇█"
QUIET = "bright_black"


def open_console(title: str, start: Report, live: bool | None) -> LiveConsole | PlainConsole:
    """Open a live view or plain lines on standard output.

    Nothing that happens to standard output later (a closed pipe, a lost terminal) raises.

    Args:
        title: heading of the live view.
        start: report that the live view shows until the first one comes.
        live: whether to draw a live view; None draws one if standard output is a terminal that can show it.
    """
    stream = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  # None if the process was started with it closed
    if rank := launch().rank:
        return RankConsole(stream, rank)
    if live is None:
        live = stream.isatty() and os.environ.get("TERM", "dumb") != "dumb" and "utf" in (stream.encoding or "").lower()
    return LiveConsole(title, start, _Terminal(file=stream, highlight=False)) if live else PlainConsole(stream)


def number(value: float | None) -> str:
    """Format a number with three significant digits: `-20.3`, `0.00059`, `1,235`; `-` if it is unknown."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return "not finite"
    return f"{value:,.0f}" if 999.5 <= abs(value) < 1e9 else f"{value:.3g}"


def clock(seconds: float | None) -> str:
    """Format seconds as `12:34`, `5:43:21` or `3 days, 4:05:06`; `-` if they are unknown."""
    return "-" if seconds is None else str(timedelta(seconds=int(seconds))).removeprefix("0:")


def sparkline(points: tuple[tuple[int, float], ...], width: int) -> str:
    """Draw a curve of (step, value) in at most `width` characters, with steps spaced evenly."""
    width = min(width, len(points))
    if width < 2:
        return ""
    start, end = points[0][0], points[-1][0]
    heights = [math.nan] * width
    for step, value in points:
        column = min(width - 1, (step - start) * width // max(end - start, 1))
        heights[column] = value  # the newest of those that share it
    low, high = min(value for _, value in points), max(value for _, value in points)
    curve, spark = "", SPARKS[0]
    for height in heights:
        if not math.isnan(height):
            spark = SPARKS[round((height - low) / ((high - low) or 1.0) * (len(SPARKS) - 1))]
        curve += spark  # a column without a report repeats the previous one
    return curve


@contextmanager
def _never_fail(stream: IO[str]) -> Iterator[None]:
    """Ignore errors in writing to the stream; once it is gone for good, discard what is written to it."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:  # a full disk may have room later
            _mute(stream)
    except ValueError:
        if not stream.closed:
            raise


def _mute(stream: IO[str]) -> None:
    """Redirect the stream's descriptor to the null device, so that Python's last flush at exit does not fail either."""
    with suppress(OSError, ValueError), open(os.devnull, "w") as void:
        os.dup2(void.fileno(), stream.fileno())


class PlainConsole:
    """Plain console output, one line for each report, for pipes and files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lock = stream, threading.Lock()
        self._extra: Mapping[str, float] = {}

    def show(self, report: Report) -> None:
        """Print a report as one line."""
        parts = [
            f"step {report.step:,} of {report.total_steps:,}",
            f"{number(report.sps)} sps {number(report.fps)} fps",
            f"return {number(report.mean_episode_return)} ({report.window} ep)",
            "loss " + (" ".join(f"{name} {value}" for name, value in _short(report.losses).items()) or "-"),
            f"lag {number(report.policy_lag_mean)} max {number(report.policy_lag_max)}",
        ]
        changed = {name: value for name, value in report.extra.items() if self._extra.get(name, 0.0) != value}
        parts += [f"{name} {number(value)}" for name, value in {**report.env, **changed}.items()]
        parts.append(f"{clock(report.elapsed)} gone, {clock(report.left)} left")
        self._extra = report.extra
        self.log(" | ".join(parts))

    def log(self, line: str) -> None:
        """Print a line at once. Safe to call from several threads."""
        encoding = self._stream.encoding or "utf-8"
        line = line.encode(encoding, "backslashreplace").decode(encoding)
        with self._lock, _never_fail(self._stream):
            self._stream.write(line + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Do nothing: plain lines leave nothing to restore."""


class RankConsole(PlainConsole):
    """The console of one of torchrun's ranks that is not the first: no reports, and log lines that name it."""

    def __init__(self, stream: TextIO, rank: int) -> None:
        """Take the stream to write to and the rank's number."""
        super().__init__(stream)
        self._rank = rank

    def show(self, report: Report) -> None:
        """Leave reports to the first rank."""

    def log(self, line: str) -> None:
        """Print it now. Safe from several threads."""
        super().log(f"rank {self._rank}: {line}")


class _Terminal(Console):
    """A terminal whose loss the run survives; Rich would end the program."""

    def on_broken_pipe(self) -> None:
        _mute(self.file)


class _Steady(Live):
    """A live view that overwrites the last picture line by line; Rich erases it first, which flickers."""

    _width = 0

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        processed = super().process_renderables(renderables)
        back, width, self._width = processed[0], self._width, self.console.width
        only_view = all(isinstance(item, Control) for item in renderables)  # no log line is printed above the view
        if isinstance(back, Control) and only_view and width == self._width:
            back.segment = back.segment._replace(text=back.segment.text.replace("\x1b[2K", ""))
        return processed


class LiveConsole:
    """A live view at the bottom of the terminal that redraws itself, with log lines printed above it.

    Args:
        title: heading of the view.
        start: report to show until the first one comes.
        terminal: where to draw.
    """

    def __init__(self, title: str, start: Report, terminal: Console) -> None:
        self._title, self._report, self._reported, self._terminal = title, start, time.monotonic(), terminal
        self._closing = threading.Event()
        self._live = _Steady(console=terminal, get_renderable=self._view, auto_refresh=False, vertical_overflow="crop")
        with _never_fail(terminal.file):
            self._live.start()
            terminal.show_cursor(True)  # a killed process then leaves no hidden cursor
        self._drawer = threading.Thread(target=self._draw, name="console", daemon=True)
        self._drawer.start()

    def show(self, report: Report) -> None:
        """Draw this report from now on; a value that it does not know keeps what the last report said."""
        old = {name: getattr(self._report, name) for name in ("losses", "policy_lag_mean", "policy_lag_max", "shares")}
        stands = {name: value for name, value in old.items() if getattr(report, name) in (None, {})}
        self._report, self._reported = replace(report, **stands), time.monotonic()

    def log(self, line: str) -> None:
        """Print a line above the view. Safe to call from several threads."""
        with _never_fail(self._terminal.file):
            self._terminal.print(Text(line), soft_wrap=True)

    def close(self) -> None:
        """Draw the view once more and leave it on the screen."""
        self._closing.set()
        self._drawer.join()
        with _never_fail(self._terminal.file):
            self._live.stop()

    def _draw(self) -> None:
        while not self._closing.wait(REFRESH):
            with _never_fail(self._terminal.file):
                self._live.refresh()

    def _view(self) -> RenderableType:
        width = min(self._terminal.width, WIDTH) - 2  # one column of margin on each side
        report, room = self._report, width - 9  # the columns right of the labels
        since = 0.0 if self._closing.is_set() else time.monotonic() - self._reported
        left = report.left and max(0.0, report.left - since)
        rows = Table.grid(padding=(0, 1))
        rows.add_column(style=QUIET, width=8)
        rows.add_column(width=room)

        def row(label: str, *content: RenderableType) -> None:
            rows.add_row(label, Group(*content))

        row("steps", _words(f"{report.step:,}", f" of {report.total_steps:,}"))
        row("speed", _words(number(report.sps), " steps/s   ", number(report.fps), " frames/s"))
        row("time", _words(clock(report.elapsed + since), " gone   ", clock(left), " left"))
        row("")
        means = f" over {report.window} games of {number(report.mean_episode_steps)} steps, {report.episodes:,} so far"
        row("return", _words(number(report.mean_episode_return), means if report.window else " no game has ended yet"))
        row("", Text(sparkline(report.history, room), "green"))
        row("")
        row("loss", _cells(_short(report.losses)))
        lag = number(report.policy_lag_mean), " updates, at most ", number(report.policy_lag_max)
        row("lag", _words(*lag, "   learning rate ", number(report.learning_rate)))
        for label, values in (("env", report.env), ("also", report.extra)):
            if values:
                row(label, _cells({name: number(value) for name, value in values.items()}))
        row("")
        row("actors", *_stages(report.shares, room))

        done = min(1.0, report.step / max(report.total_steps, 1))
        bar = ProgressBar(1.0, done, width=width - 8, complete_style="cyan", finished_style="cyan")
        progress = Table.grid()
        progress.add_row(bar, Text(f"{100 * done:6.1f} %", "bold"))
        return Padding(Group(Text(self._title, "bold"), progress, "", rows), (1, 1, 0, 1))


def _short(losses: Mapping[str, float]) -> dict[str, str]:
    # Two would share a name: of the entropy the value says more than its share of the loss.
    shown = {
        name: value
        for name, value in losses.items()
        if name.removesuffix("_loss") not in losses or (name in losses and not name.endswith("_loss"))
    }
    return {name.removesuffix("_loss"): number(value) for name, value in shown.items()}


def _words(*words: str) -> Text:
    """Style a line in which numbers and words alternate."""
    return Text.assemble(*zip(words, itertools.cycle(("", QUIET))))


def _cells(values: Mapping[str, str]) -> RenderableType:
    """Lay out names and numbers in columns that stay in place when the numbers change."""
    widest = max(map(len, values), default=0)
    cells = [Text.assemble((f"{name:<{widest}} ", QUIET), f"{value:<9}") for name, value in values.items()]
    return Columns(cells, equal=True, padding=(0, 2)) if cells else Text("-")


def _stages(shares: Mapping[str, float], width: int) -> list[Text]:
    """Draw a bar of `width` characters divided by the shares, and its legend."""
    ends = [round(width * end) for end in itertools.accumulate(shares.values(), initial=0.0)]
    bar, legend = Text(), Text()
    for (stage, share), start, end, (shade, style) in zip(shares.items(), ends, ends[1:], itertools.cycle(SHADES)):
        bar.append(shade * (end - start), style)
        legend.append(f"{shade} ", style).append(f"{stage} ", QUIET).append(f"{share:.0%}   ")
    return [bar, legend]
