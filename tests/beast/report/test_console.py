from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import wait_until
from rich.console import Console

from beast.report import console as module
from beast.report.console import LiveConsole, PlainConsole, clock, number, open_console, sparkline
from beast.report.report import Report

REPORT = Report(
    total_steps=50_000_000, step=1_234_560, frames=4_938_240, updates=7_716, elapsed=754.2, left=20_601.9, sps=2310.4,
    fps=9241.6, episodes=1234, window=100, mean_episode_return=-20.3, mean_episode_steps=812.0,
    history=tuple((step, step / 1e5 - 21) for step in range(0, 1_234_561, 20_000)),
    losses={"total_loss": 123.4, "pg_loss": -4.56, "baseline_loss": 78.9, "entropy_loss": -0.0123, "grad_norm": 1240.1},
    learning_rate=0.000587, policy_lag_mean=1.2, policy_lag_max=3,
    shares={"environment": 0.52, "inference": 0.31, "store": 0.02, "wait": 0.15}, env={"lives": 3.0},
    extra={"restarts": 0.0},
)  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (0, "0"), (-20.3, "-20.3"), (0.000587, "0.000587"), (1.5e-7, "1.5e-07"), (999.4, "999"),
        (999.7, "1,000"), (-1234.5, "-1,234"), (2_310, "2,310"), (3e12, "3e+12"),
        (float("nan"), "not finite"), (float("-inf"), "not finite"),
    ],
)  # fmt: skip
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.9, "00:00"),
        (754.2, "12:34"),
        (20_601, "5:43:21"),
        (36_000, "10:00:00"),
        (270_000, "3 days, 3:00:00"),
    ],
)
def test_clock(seconds: float | None, text: str) -> None:
    assert clock(seconds) == text


def test_sparkline() -> None:
    assert sparkline((), 10) == ""
    assert sparkline(((5, 1.0),), 10) == ""
    assert sparkline(((0, 1.0), (1, 1.0), (2, 1.0)), 10) == "▁▁▁"
    assert sparkline(tuple((i, float(i)) for i in range(8)), 10) == "▁▂▃▄▅▆▇█"
    assert sparkline(tuple((i, float(i)) for i in range(8000)), 8) == "▂▃▄▄▅▆▇█"  # each column's newest
    assert sparkline(((0, 0.0), (1, 7.0), (100, 7.0), (101, 0.0)), 4) == "███▁"  # steps evenly, gaps repeat


# -- plain lines ------------------------------------------------------------------------------------------------------


def plain(*reports: Report) -> list[str]:
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8")
    view = PlainConsole(stream)
    for report in reports:
        view.show(report)
    return stream.buffer.getvalue().decode().splitlines()


def test_a_plain_line() -> None:
    assert plain(REPORT) == [
        "step 1,234,560 of 50,000,000 | 2,310 sps 9,242 fps | return -20.3 (100 ep) | loss total 123 pg -4.56 "
        "baseline 78.9 entropy -0.0123 grad_norm 1,240 | lag 1.2 max 3 | lives 3 | 12:34 gone, 5:43:21 left"
    ]


def test_plain_lines_show_extras_only_when_they_are_new() -> None:
    evaluated = replace(REPORT, extra={"restarts": 1.0, "eval_return_mean": 18.25})
    first, second, third = plain(REPORT, evaluated, evaluated)
    assert "restarts" not in first
    assert "| restarts 1 | eval_return_mean 18.2 |" in second
    assert "restarts" not in third


def test_plain_lines_survive_any_encoding() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    PlainConsole(stream).log("naïve \udcff")
    assert stream.buffer.getvalue() == b"na\\xefve \\udcff\n"


def test_a_closed_stream_is_ignored() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8")
    view = PlainConsole(stream)
    stream.close()
    view.log("nobody reads this")


SCRIPT = """
import sys, time
from beast.report.report import Report; from beast.report.console import open_console
live = {"live": True, "plain": False, "auto": None}[sys.argv[1]]
console = open_console("title", Report(1000), live)
for step in range(30):
    console.show(Report(1000, step=step, losses={"total_loss": 1.0}))
    console.log("still here")
    time.sleep(float(sys.argv[2]))
console.close()
sys.stderr.write("done")
"""


def test_piped_output_is_plain_and_comes_at_once() -> None:
    command = [sys.executable, "-c", SCRIPT, "auto", "0.2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        assert process.poll() is None
        process.kill()
    assert (
        lines[0]
        == "step 0 of 1,000 | - sps - fps | return - (0 ep) | loss total 1 | lag - max - | 00:00 gone, - left\n"
    )
    assert lines[1] == "still here\n"
    assert "\x1b" not in "".join(lines)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
@pytest.mark.parametrize("view", ["plain", "live"])
@pytest.mark.parametrize("stdout", ["closed pipe", "full disk", "none"])
def test_the_run_goes_on_when_nobody_can_read(view: str, stdout: str) -> None:
    """As under `| head`, `> a full disk` and `>&-`."""
    after = {"closed pipe": "| true", "full disk": "> /dev/full", "none": ">&-"}[stdout]
    shell = f'set -o pipefail; "$0" -c "$1" {view} 0.03 {after}'
    command = ["bash", "-c", shell, sys.executable, SCRIPT]
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60)
    assert result.stderr == "done" if stdout != "full disk" else result.stderr.startswith("done")
    if stdout != "full disk":  # there Python's own last flush fails
        assert result.returncode == 0


# -- the live view ----------------------------------------------------------------------------------------------------


class Screen(io.StringIO):
    """A stream that keeps each piece that is written to it: the view is one."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return super().write(text)


class Terminal:
    """A live view whose output is kept, and whose clock stands at `now`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
        self.now = 1000.0
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(module, "REFRESH", 0.01)
        monkeypatch.setenv("TERM", "xterm-256color")
        self.stream = Screen()
        terminal = Console(file=self.stream, force_terminal=True, width=width, height=40, highlight=False)
        self.console = LiveConsole("Pong  resnet", Report(50_000_000), terminal)

    def draw(self) -> str:
        """The view as it is drawn from now on."""
        start = len(self.stream.pieces) + 1  # the next one may have been begun
        wait_until(lambda: len(self.stream.pieces) > start, "a drawing")
        return self.stream.pieces[start]


def visible(output: str) -> list[str]:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output).replace("\r", "").splitlines()


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_view_fits_and_says_everything(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    terminal = Terminal(monkeypatch, width)
    assert "nan" not in terminal.draw().lower()
    terminal.console.show(REPORT)
    lines = visible(terminal.draw())
    terminal.console.close()
    assert {len(line) for line in lines} == {width}  # each covers what was drawn there before
    text = re.sub(r" +", " ", "\n".join(lines))
    for words in (
        "Pong resnet", "2.5 %", "1,234,560 of 50,000,000", "2,310 steps/s 9,242 frames/s", "12:34 gone 5:43:21 left",
        "-20.3 over 100 games of 812 steps, 1,234 so far", "▁▂", "total 123", "pg -4.56", "baseline 78.9",
        "entropy -0.0123", "grad_norm 1,240", "1.2 updates, at most 3", "learning rate 0.000587", "lives 3",
        "█ environment 52% ▓ inference 31% ▒ store 2% ░ wait 15%",
    ):  # fmt: skip
        assert words in text
    assert len(lines) <= 22


def test_redrawing_erases_nothing_and_the_cursor_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch, 80)
    terminal.console.show(REPORT)
    terminal.draw()
    assert "\x1b[2K" not in terminal.draw()
    output = terminal.stream.getvalue()
    assert output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l")
    terminal.console.close()


def test_told_lines_go_above_the_view_word_for_word(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch, 80)
    start = len(terminal.stream.getvalue())
    terminal.console.log("failed: [bold]KeyError[/bold] :smile: " + "x" * 100)
    print("a library speaks")
    terminal.console.close()
    lines = visible(terminal.stream.getvalue()[start:])
    assert "failed: [bold]KeyError[/bold] :smile: " + "x" * 100 in lines
    spoken = [i for i, line in enumerate(lines) if line.endswith("a library speaks")]
    assert spoken
    assert spoken[0] < max(i for i, line in enumerate(lines) if "Pong" in line)


def test_what_was_known_stands_until_something_new_is(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch, 80)
    terminal.console.show(REPORT)
    terminal.console.show(replace(REPORT, losses={}, policy_lag_mean=None, policy_lag_max=None, shares={}))
    text = "\n".join(visible(terminal.draw()))
    terminal.console.close()
    assert "1.2 updates, at most 3" in text
    assert "environment 52%" in text
    assert "-4.56" in text


def test_the_clock_goes_on_between_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch, 80)
    terminal.console.show(REPORT)
    terminal.now += 60.0
    assert "13:34 gone   5:42:21 left" in "\n".join(visible(terminal.draw()))
    terminal.console.close()


class Tty(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("encoding", "term", "kind"),
    [("utf-8", "xterm", LiveConsole), ("ascii", "xterm", PlainConsole), ("utf-8", "dumb", PlainConsole)],
)
def test_a_view_only_where_it_can_be_drawn(
    monkeypatch: pytest.MonkeyPatch, encoding: str, term: str, kind: type
) -> None:
    stream = Tty()
    stream.encoding = encoding
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setitem(os.environ, "TERM", term)
    view = open_console("title", REPORT, None)
    view.close()
    assert isinstance(view, kind)
