from __future__ import annotations

import csv
import errno
import os
import re
import subprocess
import sys
import threading
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from beast.report import reports as module
from beast.report.reports import Reports
from beast.store.unrolls import Episode

LAGS = torch.tensor([[0, 1], [2, 5]])


def make(folder: Path | None, **changes: Any) -> Reports:
    return Reports(folder, **{"total_steps": 1_000, "action_repeat": 4, "live": False, **changes})


def say(reports: Reports, step: int, **changes: Any) -> dict[str, float]:
    arguments = {"updates": step // 10, "learning_rate": 0.5, "stages": {"environment": 1.0 * step, "wait": 3.0 * step}}
    return reports.report(step=step, **{**arguments, **changes})


def game(value: float, steps: int = 10, **metrics: float) -> Episode:
    return Episode(value, steps, metrics)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "logs.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Time that passes only when told to."""
    now = [1000.0]
    fake = types.SimpleNamespace(
        monotonic=lambda: now[0], time=lambda: now[0], strftime=lambda _: "2001-02-03 04:05:06"
    )
    monkeypatch.setattr(module, "time", fake)

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


# -- maths ------------------------------------------------------------------------------------------------------------


def test_a_row_holds_all_figures(tmp_path: Path, clock: Callable[[float], None]) -> None:
    reports = make(tmp_path)
    reports.add_update({"total_loss": torch.tensor(2.0), "grad_norm": torch.tensor(8.0)}, LAGS)
    reports.add_update({"total_loss": torch.tensor(4.0), "grad_norm": torch.tensor(8.0)}, LAGS + 1)
    reports.add_episodes([game(-3.0, 20, goals=1.0), game(5.0, 40, goals=2.0)])
    clock(10.0)
    row = say(reports, 200, extra={"eval_return_mean": 7.0})
    assert row == {
        "time": 10.0, "step": 200, "frames": 800, "updates": 20, "sps": 20.0, "fps": 80.0,
        "mean_episode_return": 1.0, "mean_episode_steps": 30.0, "episodes": 2, "total_loss": 3.0, "grad_norm": 8.0,
        "learning_rate": 0.5, "policy_lag_mean": 2.5, "policy_lag_max": 6, "share_environment": 0.25,
        "share_wait": 0.75, "env/goals": 1.5, "eval_return_mean": 7.0,
    }  # fmt: skip
    assert [{name: float(cell) for name, cell in row.items()} for row in rows(tmp_path)] == [row]
    assert list(row) == list(rows(tmp_path)[0])


def test_losses_lag_shares_and_speed_are_of_the_time_since_the_last_report(clock: Callable[[float], None]) -> None:
    reports = make(None)
    reports.add_update({"total_loss": torch.tensor(2.0)}, LAGS)
    clock(1.0)
    say(reports, 100, stages={"environment": 10.0, "wait": 0.0})
    reports.add_update({"total_loss": torch.tensor(7.0)}, torch.tensor([[1]]))
    clock(2.0)
    row = say(reports, 150, stages={"environment": 11.0, "wait": 3.0})
    assert (row["total_loss"], row["policy_lag_mean"], row["policy_lag_max"]) == (7.0, 1.0, 1)
    assert (row["share_environment"], row["share_wait"]) == (0.25, 0.75)
    assert (row["sps"], row["time"]) == (25.0, 3.0)
    clock(1.0)
    row = say(reports, 150, stages={"environment": 11.0, "wait": 3.0})
    assert not {"total_loss", "policy_lag_mean", "share_wait"} & set(row)
    assert row["sps"] == 0.0


def test_returns_and_lengths_are_means_of_the_last_hundred_games() -> None:
    reports = make(None)
    reports.add_episodes([game(1000.0, 1000)] * 70)
    reports.add_episodes([game(float(i), i) for i in range(100)])
    row = say(reports, 10)
    assert (row["mean_episode_return"], row["mean_episode_steps"], row["episodes"]) == (49.5, 49.5, 170)
    assert say(reports, 20)["mean_episode_return"] == 49.5  # also when none ended since (trap 5)


def test_own_metrics_are_means_of_the_last_hundred_games_that_had_them() -> None:
    reports = make(None)
    reports.add_episodes([game(0.0, goals=1000.0)] + [game(0.0, goals=4.0)] * 60)
    reports.add_episodes([game(0.0, goals=float("nan"))] * 200 + [game(0.0, goals=8.0)] * 40)
    assert say(reports, 10)["env/goals"] == pytest.approx((60 * 4 + 40 * 8) / 100)


def test_before_any_game_or_update_nothing_is_invented(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports = make(tmp_path)
    row = say(reports, 0, stages={"environment": 0.0})
    assert "mean_episode_return" not in row
    assert rows(tmp_path)[0]["mean_episode_return"] == ""
    output = capsys.readouterr().out
    assert "return - (0 ep) | loss - | lag - max -" in output
    assert "nan" not in output.lower()
    assert "nan" not in (tmp_path / "logs.csv").read_text().lower()
    assert reports.lag() == {"mean": 0.0, "max": 0}


def test_lag_between_reports() -> None:
    reports = make(None)
    reports.add_update({}, LAGS)
    assert reports.lag() == {"mean": 2.0, "max": 5}
    say(reports, 10)
    assert reports.lag() == {"mean": 2.0, "max": 5}
    reports.add_update({}, torch.tensor([[1]]))
    assert reports.lag() == {"mean": 1.0, "max": 1}


def test_updates_from_many_threads_are_all_counted() -> None:
    reports = make(None)
    stop = threading.Event()

    def learn(number: int) -> None:
        for i in range(400):
            reports.add_update({"total_loss": torch.tensor(float(i)), f"own_{number}": torch.tensor(1.0)}, LAGS)
            reports.add_episodes([game(1.0)])

    def watch() -> None:
        while not stop.is_set():
            reports.state_dict()
            reports.lag()

    watcher = threading.Thread(target=watch)
    learners = [threading.Thread(target=learn, args=(i,)) for i in range(8)]
    for thread in (watcher, *learners):
        thread.start()
    for thread in learners:
        thread.join()
    stop.set()
    watcher.join()
    row = say(reports, 10)
    assert row["total_loss"] == 399 / 2
    assert row["episodes"] == 3200
    assert (row["policy_lag_mean"], row["policy_lag_max"]) == (2.0, 5)
    assert all(row[f"own_{i}"] == 1.0 for i in range(8))


def test_an_update_keeps_neither_graph_nor_the_callers_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = make(None)
    value = torch.tensor(3.0)
    with torch.inference_mode():
        inferred = torch.tensor(1.0)
    activation = torch.tensor(2.0, requires_grad=True) * 1
    in_graph = weakref.ref(activation)  # lives as long as a graph that needs it for the way back

    def forbidden(*_: object) -> float:
        raise AssertionError("a device was waited for")

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "item", forbidden)
        patch.setattr(torch.Tensor, "__float__", forbidden)
        for _ in range(2):
            reports.add_update(
                {"a": value, "b": inferred, "c": activation.square(), "d": torch.tensor(1, dtype=torch.bfloat16)}, LAGS
            )
    value.fill_(100.0)
    del activation
    assert in_graph() is None
    row = say(reports, 10)
    assert (row["a"], row["b"], row["c"], row["d"]) == (3.0, 1.0, 4.0, 1.0)


def test_the_curve_stays_bounded() -> None:
    reports = make(None)
    reports.add_episodes([game(1.0)])
    for step in range(2000):
        say(reports, step)
    history = reports.state_dict()["history"]
    assert len(history) <= module.HISTORY
    assert history[0][0] == 0
    assert history[-1][0] == 1999


# -- files ------------------------------------------------------------------------------------------------------------


def test_rows_are_on_disk_at_once(tmp_path: Path) -> None:
    reports = make(tmp_path)
    for step in (100, 200):
        say(reports, step)
        assert rows(tmp_path)[-1]["step"] == str(step)


def test_large_numbers_keep_their_digits(tmp_path: Path) -> None:
    reports = make(tmp_path, total_steps=200_000_000_000)
    say(reports, 50_123_456_789, stages={})
    assert (rows(tmp_path)[0]["step"], rows(tmp_path)[0]["frames"]) == ("50123456789", "200493827156")


def test_new_columns_may_come_at_any_time(tmp_path: Path) -> None:
    reports = make(tmp_path)
    say(reports, 100)
    reports.add_episodes([game(1.0, goals=2.0)])
    reports.add_update({"total_loss": torch.tensor(2.0)}, LAGS)
    say(reports, 200, extra={"eval_return_mean": 3.0})
    say(reports, 300)
    first, second, third = rows(tmp_path)
    assert (first["step"], first["total_loss"], first["env/goals"], first["eval_return_mean"]) == ("100", "", "", "")
    assert (second["total_loss"], second["env/goals"], second["eval_return_mean"]) == ("2", "2", "3")
    assert (third["step"], third["env/goals"], third["eval_return_mean"]) == ("300", "2", "")
    header, *lines = (tmp_path / "logs.csv").read_text().splitlines()
    assert {line.count(",") for line in lines} == {header.count(",")}
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("events")) == ["logs.csv"]


def test_log_takes_told_lines_with_their_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports = make(tmp_path)
    reports.log("actor-3 was killed\nby someone")
    reports.log("on we go \udcff")  # a byte that no encoding knows
    log = (tmp_path / "log.txt").read_text()
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.fullmatch(rf"{stamp} actor-3 was killed\nby someone\n{stamp} on we go \?\n", log)
    assert "actor-3 was killed\nby someone\n" in capsys.readouterr().out


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reports = make(None)
    reports.log("hello")
    say(reports, 100)
    reports.close()
    assert list(tmp_path.iterdir()) == []


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_the_same_numbers(tmp_path: Path) -> None:
    reports = make(tmp_path)
    reports.add_episodes([game(-3.0, goals=2.0)])
    reports.add_update({"total_loss": torch.tensor(2.0)}, LAGS)
    say(reports, 100)
    say(reports, 200)
    values = scalars(tmp_path)
    assert values["episode/mean_episode_return"] == [(100, -3.0), (200, -3.0)]
    assert values["loss/total_loss"] == [(100, 2.0)]
    assert values["env/goals"] == [(100, 2.0), (200, 2.0)]
    assert values["actors/share_wait"] == [(100, 0.75), (200, 0.75)]


def test_without_tensorboard_there_is_one_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    reports = make(tmp_path)
    say(reports, 100)
    say(reports, 200)
    assert capsys.readouterr().out.count("no TensorBoard events") == 1
    assert len(rows(tmp_path)) == 2
    assert not list(tmp_path.glob("events*"))


# -- resuming ---------------------------------------------------------------------------------------------------------


def test_a_resumed_run_has_the_curve_of_an_unbroken_one(tmp_path: Path, clock: Callable[[float], None]) -> None:
    def live_on(reports: Reports, steps: range) -> None:
        for step in steps:
            reports.add_update({"total_loss": torch.tensor(step / 7)}, LAGS)
            reports.add_episodes([game(float(step))])
            clock(5.0)
            say(reports, step, stages={"environment": 1.0 * step, "wait": 2.0 * step})

    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    live_on(make(unbroken), range(100, 900, 100))
    first = make(broken)
    live_on(first, range(100, 500, 100))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    live_on(first, range(500, 700, 100))  # lost: the last checkpoint was at 400
    with open(broken / "logs.csv", "a") as file:
        file.write("35,700,28")  # and killed in the middle of a line

    second = make(broken, start_step=400)
    assert [row["step"] for row in rows(broken)] == ["100", "200", "300", "400"]
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    live_on(second, range(500, 900, 100))
    assert rows(broken) == rows(unbroken)
    assert scalars(broken) == scalars(unbroken)
    assert second.state_dict() == torch.load(tmp_path / "state.pt") | {
        "games": [(float(step), 10) for step in range(100, 900, 100)],
        "episodes": 8,
        "elapsed": 40.0,
        "history": [(step, (step + 100) / 2) for step in range(100, 900, 100)],
    }


def test_a_resumed_run_may_have_new_columns_and_an_empty_log(tmp_path: Path) -> None:
    say(make(tmp_path), 100)
    reports = make(tmp_path, start_step=100)
    say(reports, 200, extra={"new": 1.0})
    assert [row["new"] for row in rows(tmp_path)] == ["", "1"]
    (tmp_path / "logs.csv").write_text("")
    say(make(tmp_path, start_step=200), 300)
    assert [row["step"] for row in rows(tmp_path)] == ["300"]


def test_truncation_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    say(make(tmp_path), 100)
    before = (tmp_path / "logs.csv").read_bytes()

    def crash(*_: object) -> None:
        raise OSError(errno.EIO, "power gone")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="power gone"):
        make(tmp_path, start_step=50)
    assert (tmp_path / "logs.csv").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith("events")] == ["logs.csv"]


# -- a full disk ------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if "r" not in mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        return open(path, mode, *arguments, **named)

    reports = make(tmp_path)
    say(reports, 100)
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", full)
        reports.log("a line")
        say(reports, 200)
        say(reports, 300, extra={"new": 1.0})
    output = capsys.readouterr().out
    assert output.count("No space left on device") == 1
    assert "step 300 of 1,000" in output
    say(reports, 400, extra={"new": 2.0})
    assert [(row["step"], row["new"]) for row in rows(tmp_path)] == [("100", ""), ("400", "2")]
    assert [step for step, _ in scalars(tmp_path)["speed/sps"]] == [100, 400]


SMALL_DISK = """
import resource, signal, sys
from pathlib import Path
from beast.report.reports import Reports
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
reports = Reports(Path(sys.argv[1]), total_steps=1000, action_repeat=1, live=False)
def say(steps):
    for step in steps:
        reports.report(step=step, updates=step, learning_rate=0.5, stages={})
say(range(3))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
say(range(3, 100))
reports.log("word " * 10_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
say(range(100, 103))
reports.log("end")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes")
@pytest.mark.parametrize("limit", [1000, 1001, 1537])
def test_what_a_full_disk_cut_short_is_taken_back(tmp_path: Path, limit: int) -> None:
    """The kernel itself writes half a line, then refuses."""
    command = [sys.executable, "-c", SMALL_DISK, str(tmp_path), str(limit)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.count("cannot write logs") == 1
    header, *lines = (tmp_path / "logs.csv").read_text().splitlines()
    assert {line.count(",") for line in lines} == {header.count(",")}
    steps = [int(row["step"]) for row in rows(tmp_path)]
    seen = [step for step, _ in scalars(tmp_path)["speed/sps"]]
    for kept in (steps, seen):
        assert kept == sorted(set(kept))
        assert kept[:3] == [0, 1, 2]
        assert kept[-3:] == [100, 101, 102]
        assert len(kept) < 103
    log = (tmp_path / "log.txt").read_text()
    assert log.endswith(" end\n")
    assert "word" not in log
