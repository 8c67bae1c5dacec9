"""The outputs of a run's reports: `logs.csv`, TensorBoard events, `log.txt` and the console."""

from __future__ import annotations

import csv
import errno
import io
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from beast.report.console import open_console
from beast.report.files import write_atomically
from beast.report.report import Report
from beast.report.stall import Stall
from beast.store.unrolls import Episode

WINDOW = 100  # full games over which returns are averaged
HISTORY = 512  # most points of the console's curve
PACE = 30  # reports from which the remaining time is estimated


class Reports:
    """The outputs of a run's reports: `logs.csv`, TensorBoard events, `log.txt` and the console.

    If files cannot be written (a full disk), this is logged once, each report tries again, and the run continues.

    Args:
        folder: the run's folder; None writes no files.
        total_steps: agent steps at which the run ends.
        action_repeat: frames in an agent step.
        start_step: step at which a resumed run starts; later rows of its logs are dropped, as if it had never stopped.
        live: True draws a live view, False prints lines, None draws a live view if standard output is a terminal.
        title: heading of the live view.
        stall: watches whether the run still learns; what it says is logged.

    Raises:
        OSError: if the logs of a resumed run cannot be read or rewritten.
    """

    def __init__(
        self, folder: Path | None, *, total_steps: int, action_repeat: int, start_step: int = 0,
        live: bool | None = None, title: str = "", stall: Stall | None = None,
    ) -> None:  # fmt: skip
        self._stall = stall
        self._total_steps, self._action_repeat = total_steps, action_repeat
        self._files: list[_Table | _Events] = []
        self._log, self._disk_failed = Path(os.devnull), False
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._files = [_Table(folder / "logs.csv", start_step), _Events(folder, start_step, self.log)]
            self._log = folder / "log.txt"

        self._lock = threading.Lock()  # guards what learner threads add to
        self._sums: dict[str, tuple[torch.Tensor | float, int]] = {}  # sum and count; tensors stay on their device
        self._lags = (0, 0, 0)  # count, sum, maximum
        self._last_lag: dict[str, float] = {"mean": 0.0, "max": 0}
        self._games: deque[tuple[float, int]] = deque(maxlen=WINDOW)  # return, steps
        self._env: dict[str, deque[float]] = {}
        self._episodes = 0

        self._started = time.monotonic()
        self._marks = deque([(self._started, start_step)], maxlen=PACE)
        self._stages: dict[str, float] = {}
        self._history: list[tuple[int, float]] = []
        self._console = open_console(title, Report(total_steps, start_step), live)

    # -- what happened ------------------------------------------------------------------------------------------------

    def add_episodes(self, episodes: list[Episode]) -> None:
        """Add full games that ended. A metric that an environment did not give (NaN) does not count in that metric's mean."""
        with self._lock:
            self._episodes += len(episodes)
            for episode in episodes:
                self._games.append((episode.episode_return, episode.episode_steps))
                for name, value in episode.metrics.items():
                    if not math.isnan(value):
                        self._env.setdefault(name, deque(maxlen=WINDOW)).append(value)

    def add_update(self, metrics: dict[str, torch.Tensor], policy_lags: torch.Tensor) -> None:
        """Add one update's metrics, which stay on their device, and the policy lags of its steps.

        Safe to call from several threads; never waits for a device.

        Args:
            metrics: scalars by name.
            policy_lags: int64 on the CPU, in updates; may be empty.
        """
        with self._lock:
            for name, value in metrics.items():
                total, count = self._sums.get(name, (0.0, 0))
                self._sums[name] = total + value.detach().float(), count + 1
            if policy_lags.numel():
                number, lags, most = self._lags
                most = max(most, int(policy_lags.max()))
                self._lags = number + policy_lags.numel(), lags + int(policy_lags.sum()), most

    def lag(self) -> dict[str, float]:
        """Return `mean` and `max` of the policy lag in updates since the last report; the last values if no update was made."""
        with self._lock:
            return _mean_max(*self._lags) or self._last_lag

    @property
    def window_full(self) -> bool:
        """Return whether the means cover `WINDOW` games already."""
        return len(self._games) == WINDOW

    # -- what is said about it ----------------------------------------------------------------------------------------

    def report(
        self, *, step: int, updates: int, learning_rate: float, stages: dict[str, float],
        extra: dict[str, float] | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """Write one row to every file and show it on the console. Call it from one thread.

        Args:
            step: agent steps learned from so far.
            updates: updates made so far.
            learning_rate: the optimiser's, now.
            stages: the actors' seconds by stage since the start.
            extra: further columns.

        Returns:
            The row, without the values that are not known yet.
        """
        with self._lock:
            sums, lag = self._sums, _mean_max(*self._lags)
            self._sums, self._lags, self._last_lag = {}, (0, 0, 0), lag or self._last_lag
            games, episodes = list(self._games), self._episodes
            env = {name: sum(values) / len(values) for name, values in self._env.items()}
        now = (time.monotonic(), step)
        sps, pace = _pace(self._marks[-1], now), _pace(self._marks[0], now)
        self._marks.append(now)
        mean_return, mean_steps = (sum(x) / len(x) for x in zip(*games, strict=True)) if games else (None, None)
        if mean_return is not None:
            thinned = self._history[:: 2 if len(self._history) >= HISTORY else 1]
            self._history = [*thinned, (step, mean_return)]
        report = Report(
            total_steps=self._total_steps,
            step=step,
            frames=step * self._action_repeat,
            updates=updates,
            elapsed=now[0] - self._started,
            left=max(0, self._total_steps - step) / pace if pace > 0 else None,
            sps=sps,
            fps=sps * self._action_repeat,
            episodes=episodes,
            window=len(games),
            mean_episode_return=mean_return,
            mean_episode_steps=mean_steps,
            history=tuple(self._history),
            losses={
                name: float(total) / count for name, (total, count) in sums.items()
            },  # float() waits for the device
            learning_rate=learning_rate,
            policy_lag_mean=lag.get("mean"),
            policy_lag_max=lag.get("max"),
            shares=_shares(self._stages, stages),
            env=env,
            extra=extra or {},
        )
        self._stages = dict(stages)
        for file in self._files:
            self._try(file.write, report)
        self._console.show(report)
        returns = [episode_return for episode_return, _ in games]
        if self._stall and (line := self._stall.look(report.losses.get("entropy"), returns, episodes)):
            self.log(line)
        return {name: value for name, value in _row(report).items() if value is not None}

    def log(self, line: str) -> None:
        """Show one or more lines on the console and append them to `log.txt`. Safe to call from several threads."""
        self._console.log(line)
        self._try(_append, self._log, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n".encode(errors="replace"))

    def close(self) -> None:
        """Restore the terminal."""
        self._console.close()

    def _try(self, write: Callable[..., None], *arguments: Any) -> None:
        try:
            write(*arguments)
        except OSError as error:
            if not self._disk_failed:
                self._disk_failed = True
                self._console.log(f"cannot write logs ({error}); training goes on, each report tries again")

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run continues with, as plain types: the last games, their count, seconds so far, the curve."""
        with self._lock:
            return {
                "games": list(self._games),
                "env": {name: list(values) for name, values in self._env.items()},
                "episodes": self._episodes,
                "elapsed": time.monotonic() - self._started,
                "history": list(self._history),
                **({"stall": self._stall.state_dict()} if self._stall else {}),
            }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the state of an earlier part of the run. Call it before the first report."""
        with self._lock:
            self._games.extend((game[0], game[1]) for game in state["games"])
            self._env = {name: deque(values, maxlen=WINDOW) for name, values in state["env"].items()}
            self._episodes, self._history = state["episodes"], list(state["history"])
            self._started -= state["elapsed"]
            if self._stall:
                self._stall.load_state_dict(state.get("stall"))


def _mean_max(count: int, total: int, most: int) -> dict[str, float]:
    return {"mean": total / count, "max": most} if count else {}


def _pace(before: tuple[float, int], after: tuple[float, int]) -> float:
    """Return the steps per second between two readings (seconds, steps)."""
    return (after[1] - before[1]) / max(after[0] - before[0], 1e-3)


def _shares(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Return each stage's share of the time spent between two readings, of the stages that ever took any."""
    spent = {stage: max(0.0, seconds - before.get(stage, 0.0)) for stage, seconds in after.items() if seconds}
    total = sum(spent.values())
    return {stage: seconds / total for stage, seconds in spent.items()} if total > 0 else {}


def _row(report: Report) -> dict[str, float | None]:
    return {name: value for section in report.sections().values() for name, value in section.items()}


def _append(path: Path, data: bytes) -> None:
    """Append all data or none: after a failure (a full disk) the file is cut to its former length and stays readable."""
    with open(path, "ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise


class _Table:
    """A CSV file that can gain columns at any time; every line has all of them."""

    def __init__(self, path: Path, last_step: int) -> None:
        self._path = path
        self._columns: list[str] = []
        if rows := self._read():
            self._rewrite(list(rows[0]), [row for row in rows if int(row["step"]) <= last_step])

    def write(self, report: Report) -> None:
        row = {k: format(v, "d" if isinstance(v, int) else ".7g") for k, v in _row(report).items() if v is not None}
        if set(row) <= set(self._columns):
            _append(self._path, _lines(self._columns, [row]))
        else:
            self._rewrite(list(dict.fromkeys([*_row(report), *self._columns])), [*self._read(), row])

    def _read(self) -> list[dict[str, str]]:
        if not self._path.exists():
            return []
        whole, _, _ = self._path.read_text("utf-8", "replace").rpartition("\n")  # a crash may have cut the last line
        lines: list[list[str]] = []
        for line in whole.splitlines():
            with suppress(csv.Error):  # a damaged line is skipped
                lines += csv.reader([line])
        rows = [dict(zip_longest(lines[0], line[: len(lines[0])], fillvalue="")) for line in lines[1:]]
        return [row for row in rows if row.get("step", "").isdecimal() and len(row["step"]) < 20]

    def _rewrite(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        data = _lines(columns, [dict(zip(columns, columns, strict=True)), *rows])
        write_atomically(self._path, lambda file: file.write(data))
        self._columns = columns


def _lines(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> bytes:
    text = io.StringIO()
    csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


class _Events:
    """TensorBoard scalars over agent steps, written at each report, so that a killed run keeps them.

    TensorBoard's own SummaryWriter writes in another thread, which dies with a traceback on a full disk.
    """

    def __init__(self, folder: Path, start_step: int, log: Callable[[str], None]) -> None:
        self._path = folder / f"events.out.tfevents.{time.time():.6f}.{os.getpid()}"
        self._start_step, self._log, self._usable, self._begun = start_step, log, True, False

    def write(self, report: Report) -> None:
        if not self._usable:
            return
        try:  # imported here because it takes long
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.record_writer import RecordWriter
        except Exception as error:  # its dependencies may raise anything, and a run does not need it
            self._usable = False
            self._log(f"no TensorBoard events ({type(error).__name__}: {error})".splitlines()[0])
            return
        events = []
        if not self._begun:
            # The second event tells TensorBoard to drop what an earlier part of the run wrote from that step on.
            start = SessionLog(status=SessionLog.START)
            events = [Event(file_version="brain.Event:2"), Event(step=self._start_step + 1, session_log=start)]
        values = [
            Summary.Value(tag=name if "/" in name else f"{section}/{name}", simple_value=value)
            for section, entries in report.sections().items()
            for name, value in entries.items()
            if value is not None
        ]
        events.append(Event(step=report.step, summary=Summary(value=values)))
        data = io.BytesIO()
        for event in events:
            event.wall_time = time.time()
            RecordWriter(data).write(event.SerializeToString())
        _append(self._path, data.getvalue())
        self._begun = True
