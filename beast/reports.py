"""Everything a run says about itself: `logs.csv`, TensorBoard events, `log.txt`, the console."""

from __future__ import annotations

import csv
import errno
import io
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from beast.checkpoint import write_atomically
from beast.console import Report, open_console
from beast.unrolls import Episode

WINDOW = 100  # full games that the means are taken over
HISTORY = 512  # points of the console's curve
PACE = 30  # reports that the time left is estimated from


class Reports:
    """Everything a run says about itself: logs.csv, TensorBoard events, log.txt, the console.

    Files that cannot be written (a full disk) are told about once and tried again at each report; the run goes on.

    Args:
        folder: of the run; None writes no files.
        total_steps: agent steps at which the run ends.
        action_repeat: frames in an agent step.
        start_step: of a resumed run; later rows of its logs are dropped, the curve is the one of an unbroken run.
        live: a view that redraws itself, or plain lines; None: the view if stdout is a terminal.
        title: of the live view.

    Raises:
        OSError: if the logs of a resumed run cannot be read or rewritten.
    """

    def __init__(
        self, folder: Path | None, *, total_steps: int, action_repeat: int, start_step: int = 0,
        live: bool | None = None, title: str = "",
    ) -> None:  # fmt: skip
        self._total_steps, self._action_repeat = total_steps, action_repeat
        self._sinks: list[_Table | _Events] = []
        self._log = Path(os.devnull)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._sinks = [_Table(folder / "logs.csv", start_step), _Events(folder, start_step, self.tell)]
            self._log = folder / "log.txt"
        self._disk_failed = False

        self._lock = threading.Lock()  # of all that learner threads add to
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}
        self._lags = _Lags()
        self._last_lags = _Lags()
        self._returns: deque[float] = deque(maxlen=WINDOW)
        self._lengths: deque[int] = deque(maxlen=WINDOW)
        self._env: dict[str, deque[float]] = {}
        self._episodes = 0

        self._started = time.monotonic()
        self._marks = deque([(self._started, start_step)], maxlen=PACE)
        self._stages: dict[str, float] = {}
        self._history: list[tuple[int, float]] = []
        start = Report(total_steps, start_step, start_step * action_repeat)
        self._console = open_console(title, start, live)

    # -- what happened ------------------------------------------------------------------------------------------------

    def add_episodes(self, episodes: list[Episode]) -> None:
        """Full games that ended. A metric that an environment did not give (NaN) is left out of that metric's mean."""
        with self._lock:
            self._episodes += len(episodes)
            for episode in episodes:
                self._returns.append(episode.episode_return)
                self._lengths.append(episode.episode_steps)
                for name, value in episode.metrics.items():
                    if not math.isnan(value):
                        self._env.setdefault(name, deque(maxlen=WINDOW)).append(value)

    def add_update(self, metrics: dict[str, torch.Tensor], policy_lags: torch.Tensor) -> None:
        """One update's scalars, left on their device, and the lags (int64, on the CPU, in updates) of its steps.

        Safe from several threads; never waits for a device.
        """
        with self._lock:
            for name, value in metrics.items():
                self._sums[name] = self._sums.get(name, 0.0) + value.detach().float()
                self._counts[name] = self._counts.get(name, 0) + 1
            self._lags.add(policy_lags)

    def lag(self) -> dict[str, float]:
        """`mean` and `max` of the policy lag in updates, since the last report that an update came after."""
        with self._lock:
            lags = self._lags if self._lags.count else self._last_lags
            return {"mean": lags.mean or 0.0, "max": lags.max or 0}

    # -- what is said about it ----------------------------------------------------------------------------------------

    def report(
        self, *, step: int, updates: int, learning_rate: float, stages: dict[str, float],
        extra: dict[str, float] | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """One row: to every file and the console. Call it from one thread.

        Args:
            step, updates: learned from and made so far.
            stages: the actors' seconds by stage since the start.
            extra: further columns.

        Returns:
            The row; what is not known (yet) is not in it.
        """
        with self._lock:
            sums, counts, lags = self._sums, self._counts, self._lags
            self._sums, self._counts, self._lags = {}, {}, _Lags()
            self._last_lags = lags if lags.count else self._last_lags
            episodes, window = self._episodes, len(self._returns)
            mean_return, mean_length = _mean(self._returns), _mean(self._lengths)
            env = {name: sum(values) / len(values) for name, values in self._env.items()}
        now = time.monotonic()
        pace = _pace(self._marks[0], (now, step))
        sps = _pace(self._marks[-1], (now, step))
        self._marks.append((now, step))
        if mean_return is not None:
            self._history = [
                *(self._history if len(self._history) < HISTORY else self._history[::2]),
                (step, mean_return),
            ]
        report = Report(
            total_steps=self._total_steps,
            step=step,
            frames=step * self._action_repeat,
            updates=updates,
            elapsed=now - self._started,
            left=max(0, self._total_steps - step) / pace if pace > 0 else None,
            sps=sps,
            fps=sps * self._action_repeat,
            episodes=episodes,
            window=window,
            mean_episode_return=mean_return,
            mean_episode_steps=mean_length,
            history=tuple(self._history),
            losses={name: float(sums[name]) / counts[name] for name in sums},  # here the device is waited for
            learning_rate=learning_rate,
            policy_lag_mean=lags.mean,
            policy_lag_max=lags.max,
            shares=_shares(self._stages, stages),
            env=env,
            extra=extra or {},
        )
        self._stages = dict(stages)
        for sink in self._sinks:
            self._try(sink.write, report)
        self._console.show(report)
        return {k: v for group in report.groups().values() for k, v in group.items() if v is not None}

    def tell(self, line: str) -> None:
        """One line (or more) for a person, now and in log.txt. Safe from several threads."""
        self._console.tell(line)
        self._try(_append, self._log, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n".encode())

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._console.close()

    def _try(self, write: Callable[..., None], *arguments: Any) -> None:
        try:
            write(*arguments)
        except OSError as error:
            if not self._disk_failed:
                self._disk_failed = True
                self._console.tell(f"cannot write logs ({error}); training goes on, each report tries again")

    # -- resuming -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What goes on in a resumed run: the last games, their count, seconds so far, the curve. Plain types only."""
        with self._lock:
            return {
                "returns": list(self._returns),
                "lengths": list(self._lengths),
                "env": {name: list(values) for name, values in self._env.items()},
                "episodes": self._episodes,
                "elapsed": time.monotonic() - self._started,
                "history": list(self._history),
            }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Before the first report."""
        with self._lock:
            self._returns.extend(state["returns"])
            self._lengths.extend(state["lengths"])
            self._env = {name: deque(values, maxlen=WINDOW) for name, values in state["env"].items()}
            self._episodes = state["episodes"]
            self._started -= state["elapsed"]
            self._history = [(step, value) for step, value in state["history"]]


# -- maths ------------------------------------------------------------------------------------------------------------


class _Lags:
    """Mean and maximum of integers, as they come."""

    def __init__(self) -> None:
        self.count, self._sum = 0, 0
        self.max: int | None = None

    def add(self, lags: torch.Tensor) -> None:
        if lags.numel():
            self.count += lags.numel()
            self._sum += int(lags.sum())
            self.max = max(self.max or 0, int(lags.max()))

    @property
    def mean(self) -> float | None:
        return self._sum / self.count if self.count else None


def _mean(values: deque[float] | deque[int]) -> float | None:
    return sum(values) / len(values) if values else None


def _pace(before: tuple[float, int], after: tuple[float, int]) -> float:
    """Steps a second between two (seconds, steps)."""
    return (after[1] - before[1]) / max(after[0] - before[0], 1e-3)


def _shares(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Of the time that passed in all stages between two readings, each one's part; empty if none passed."""
    spent = {stage: max(0.0, seconds - before.get(stage, 0.0)) for stage, seconds in after.items()}
    total = sum(spent.values())
    return {stage: seconds / total for stage, seconds in spent.items()} if total > 0 else {}


# -- files ------------------------------------------------------------------------------------------------------------


def _append(path: Path, data: bytes) -> None:
    """All of it or nothing: what a full disk cut short is taken back, so that the file stays readable."""
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
    """A CSV file that takes new columns at any time; every line has all of them."""

    def __init__(self, path: Path, last_step: int) -> None:
        self._path = path
        self._columns: list[str] = []
        if rows := self._read():
            self._rewrite(list(rows[0]), [row for row in rows if _step(row) <= last_step])

    def write(self, report: Report) -> None:
        row = {name: _cell(value) for group in report.groups().values() for name, value in group.items()}
        if set(row) <= set(self._columns):
            _append(self._path, _lines(self._columns, [row]))
        else:
            self._rewrite(list(dict.fromkeys([*row, *self._columns])), [*self._read(), row])

    def _read(self) -> list[dict[str, str]]:
        if not self._path.exists():
            return []
        whole, _, _ = self._path.read_text("utf-8", "replace").rpartition("\n")  # a crash may have cut the last line
        return list(csv.DictReader(whole.splitlines(), restval=""))

    def _rewrite(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        data = _lines(columns, [dict(zip(columns, columns, strict=True)), *rows])
        write_atomically(self._path, lambda file: file.write(data))
        self._columns = columns


def _lines(columns: list[str], rows: Iterable[Mapping[str, str]]) -> bytes:
    text = io.StringIO()
    csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _step(row: Mapping[str, str]) -> float:
    """Infinite where the row has none, so that it is dropped."""
    step = row.get("step", "")
    return int(step) if step.isdigit() else math.inf


class _Events:
    """TensorBoard's scalars, x = step. Written as they come, so that a killed run keeps them.

    Not through its SummaryWriter: that writes in a thread of its own, which dies with a traceback on a full disk.
    """

    def __init__(self, folder: Path, start_step: int, tell: Callable[[str], None]) -> None:
        self._path = folder / f"events.out.tfevents.{time.time():.6f}.{os.getpid()}"
        self._start_step, self._tell = start_step, tell
        self._begun, self._usable = False, True

    def write(self, report: Report) -> None:
        if not self._usable:
            return
        try:  # here, because importing it takes long
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.record_writer import RecordWriter
        except Exception as error:  # whatever its dependencies raise: a run does not need it
            self._usable = False
            self._tell(f"no TensorBoard events ({type(error).__name__}: {error})".splitlines()[0])
            return
        buffer, now = io.BytesIO(), time.time()
        records = RecordWriter(buffer)
        if not self._begun:
            # Tells TensorBoard to forget what an earlier part of the run wrote from this step on.
            start, step = SessionLog(status=SessionLog.START), self._start_step + 1
            records.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
            records.write(Event(wall_time=now, step=step, session_log=start).SerializeToString())
        values = [
            Summary.Value(tag=name if "/" in name else f"{group}/{name}", simple_value=value)
            for group, entries in report.groups().items()
            for name, value in entries.items()
            if value is not None
        ]
        records.write(Event(wall_time=now, step=report.step, summary=Summary(value=values)).SerializeToString())
        _append(self._path, buffer.getvalue())
        self._begun = True
