"""The suite of learning: it goes on after a kill, stops early, leaves out what is not installed, and draws its page."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, wait_until

from beast.run.folder import git_commit
from beast.run.resolve import resolve_config
from beast.settings.config import Config, is_name
from beast.settings.presets import WIDEST
from benchmarks.learning import __main__ as suite
from benchmarks.learning import page, results
from benchmarks.learning.results import Curve, Run
from benchmarks.learning.rows import ROWS, SOURCES, Row
from benchmarks.learning.suite import shares_of_cores

ALL = [row for rows in ROWS.values() for row in rows]
LONG = {"num_actor_processes": 0, "num_actors": 4, "batch_size": 4, "report_every": 0.2}


@pytest.fixture
def table(own_module, monkeypatch):
    """Writes a module with these rows, whose name `arguments` gives."""

    def write(*rows: Row) -> None:
        lines = ["from benchmarks.learning.rows import Row", f"ROWS = {{'toys': ({', '.join(map(repr, rows))},)}}"]
        monkeypatch.delitem(sys.modules, own_module("own_rows", "\n".join(lines)), raising=False)
        importlib.invalidate_caches()

    return write


def arguments(folder: Path, *more: str) -> list[str]:
    own = {"--table": "own_rows", "--out": folder / "out", "--savedir": folder / "runs", "--episodes": 2,
           "--page_file": folder / "docs" / "page.md"}  # fmt: skip
    return [str(part) for pair in own.items() for part in pair] + list(more)


def run_of(row: Row, folder: Path) -> Run:
    return Run(row, 1, "", folder / "out", folder / "runs")


def write_result(folder: Path, row: Row, seed: int = 1, label: str = "", mean: float = 1.0, done: bool = True) -> None:
    """A result as `results.write` leaves it, with a curve of five points."""
    run = Run(row, seed, label, folder / "out", folder / "runs")
    run.folder.mkdir(parents=True)
    machine = {"cpu": "a processor", "cores": 2, "gpu": None, "torch": "2.0"}
    flags = {"env": row.env, "savedir": str(folder), "xpid": run.name}
    config = {"flags": flags, "git_commit": "abcdef0123", "machine": machine}
    (run.folder / "config.json").write_text(json.dumps(config))
    lines = [f"{100 * i},{60 * i},{40 * i},{i * mean / 10},9.5,0.1" for i in range(1, 11)]
    header = "step,time,episodes,mean_episode_return,sps,entropy"
    (run.folder / "logs.csv").write_text("\n".join([header, "50,1,0,,9,0.3", *lines]) + "\n")
    score = dict.fromkeys(("mean", "std", "median", "min", "max"), mean) | {"episodes": 100, "returns": [mean] * 100}
    results.write(run, {"drawn": score, "likeliest": score} if done else None)


# -- the table --------------------------------------------------------------------------------------------------------


def test_every_row_can_be_named_has_a_source_and_flags_that_exist():
    assert len({row.name for row in ALL}) == len(ALL)
    for row in ALL:
        assert is_name(row.name)
        assert row.name not in ROWS
        assert row.target is None or row.published.startswith(tuple(SOURCES)), row.name
        Config.from_flat(
            {**WIDEST, "env": row.env, "total_steps": row.steps, "stop_at_return": row.target, **row.flags}
        )


def test_parts_and_rows_are_chosen_by_name():
    assert [row.name for row in suite.selected(ROWS, "atari,CartPole-v1")] == [
        "CartPole-v1", "Pong", "Breakout", "SpaceInvaders"
    ]  # fmt: skip
    assert suite.selected(ROWS, "") == ALL
    with pytest.raises(ValueError, match="'Pung'; did you mean Pong"):
        suite.selected(ROWS, "Pung")


def test_cartpole_without_velocities_shows_where_it_is_and_no_more():
    import gymnasium

    from benchmarks.learning.tasks import without_velocities

    whole, blind = gymnasium.make("CartPole-v1"), without_velocities(gymnasium.make("CartPole-v1"))
    seen, shown = whole.reset(seed=3)[0], blind.reset(seed=3)[0]
    assert shown.tolist() == [seen[0], seen[2]]
    assert blind.observation_space.contains(blind.step(1)[0])


# -- running ----------------------------------------------------------------------------------------------------------


def test_it_stops_early_tells_what_fails_and_does_nothing_twice(table, tmp_path, capfd):
    easy = Row("easy", "Catch-v0", 50_000_000, 1, -1.0, flags=LONG)  # the worst return there is
    table(Row("bad", "NoSuchGame-v3", 100, 1, None), easy)
    assert suite.main(arguments(tmp_path, "--jobs", "2")) == 1
    said = capfd.readouterr()
    assert "easy_seed1: begins" in said.out
    assert "easy_seed1: finished after" in said.out
    assert "bad_seed1: failed with status 1:" in said.err
    assert "NoSuchGame-v3" in said.err
    result = run_of(easy, tmp_path).result()
    assert 0 < result["steps"] < 1_000_000
    assert {how: score["episodes"] for how, score in result["scores"].items()} == {"drawn": 2, "likeliest": 2}
    assert result["git_commit"] == git_commit()
    assert result["machine"]["cores"] <= max(1, len(os.sched_getaffinity(0)) // 2)  # of two jobs
    assert str(tmp_path) not in run_of(easy, tmp_path).json.read_text()  # it is to be committed
    assert "| easy |" in (tmp_path / "docs" / "page.md").read_text()
    assert suite.main(arguments(tmp_path, "--rows", "easy")) == 0
    assert "begins" not in capfd.readouterr().out


def test_killed_it_ends_with_its_runs_and_goes_on_from_their_checkpoints(table, tmp_path, capfd):
    row = Row("long", "Catch-v0", 50_000_000, 1, None, flags={**LONG, "checkpoint_every": 0.01})
    run = run_of(row, tmp_path)
    table(row)

    def steps() -> int:
        return max((int(file.stem[5:]) for file in run.folder.glob("checkpoints/step_*.pt")), default=0)

    suite_itself = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.learning", *arguments(tmp_path)], cwd=ROOT, stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "SUITE_TEST": str(tmp_path)},
    )  # fmt: skip
    try:
        wait_until(steps, "a checkpoint")
    finally:
        suite_itself.kill()
        suite_itself.wait()
    wait_until(lambda: not family(str(tmp_path)), "the run ends with its suite")
    assert suite.main(arguments(tmp_path, "--page")) == 0
    assert "`python -m benchmarks.learning --rows long --seeds 1`" in (tmp_path / "docs" / "page.md").read_text()
    assert run.result() is None

    saved = steps()
    table(replace(row, steps=saved + 400))  # 5 updates more
    assert suite.main(arguments(tmp_path)) == 0
    assert "long_seed1: goes on" in capfd.readouterr().out
    assert "resuming Catch-v0" in (tmp_path / "runs" / "long_seed1.txt").read_text()
    assert run.result()["steps"] == saved + 400


def family(mark: str) -> list[psutil.Process]:
    """The processes that a suite of this test has started and that live."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SUITE_TEST") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def test_rows_whose_package_is_missing_are_left_out_in_one_line(table, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    table(Row("grid", "MiniGrid-Empty-5x5-v0", 100, 1, None))
    assert suite.main(arguments(tmp_path)) == 0
    out = capfd.readouterr().out
    assert out.splitlines()[0] == "grid is left out: pip install 'minigrid'"
    assert "begins" not in out


def test_jobs_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3, 5})
    assert shares_of_cores(1) == [[2, 3, 5]]
    assert shares_of_cores(2) == [[2, 5], [3]]
    assert shares_of_cores(4) == [[2], [3], [5], [2]]


@pytest.mark.parametrize(
    ("given", "said"),
    [(["--rows", "Pung"], "there is no 'Pung'"), (["--seeds", "x"], "seed"), (["--label", "a/b"], "--label 'a/b'")],
)
def test_wrong_arguments_are_refused(table, tmp_path, capfd, given, said):
    table(Row("easy", "Catch-v0", 100, 1, None))
    with pytest.raises(SystemExit) as end:
        suite.main(arguments(tmp_path, *given))
    assert end.value.code == 2
    assert said in capfd.readouterr().err.splitlines()[-1]


def test_the_list_says_what_is_done(table, tmp_path, capfd):
    row = Row("easy", "Catch-v0", 100_000, 3, -1.5)
    table(row)
    write_result(tmp_path, row)
    assert suite.main(arguments(tmp_path, "--list")) == 0
    assert capfd.readouterr().out.split() == [
        "easy",
        "100,000",
        "steps,",
        "target",
        "-1.5;",
        "1",
        "of",
        "3",
        "seeds",
        "done",
    ]


# -- results and the page ---------------------------------------------------------------------------------------------


def test_a_thinned_log_is_short_and_ends_where_the_log_ends(tmp_path):
    log = tmp_path / "logs.csv"
    log.write_text(
        "step,time,episodes,mean_episode_return,sps\n" + "".join(f"{i},{i},{i},0.5,9\n" for i in range(1999))
    )
    lines = results.thinned(log)
    assert len(lines) == results.POINTS
    assert [int(line["step"]) for line in lines][-2:] == [1988, 1998]
    assert results.thinned(tmp_path / "none.csv") == []


def test_a_curve_begins_with_the_hundredth_game_and_knows_its_first_passing(tmp_path):
    write_result(tmp_path, Row("easy", "Catch-v0", 1000, 1, None))
    curve = results.read_curve(tmp_path / "out" / "easy_seed1.csv")
    assert curve == Curve([300, 400, 500, 600, 700, 800, 900, 1000], [3, 4, 5, 6, 7, 8, 9, 10],
                          [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])  # fmt: skip
    assert curve.first_at(0.45) == 500
    assert curve.first_at(1.1) is None


def test_ninety_percent_of_a_negative_target_lies_below_it():
    assert page.enough(500) == 450
    assert page.enough(-100) == pytest.approx(-110)


def test_the_page_has_scores_targets_labels_commits_and_what_goes_on(tmp_path):
    row, other = (
        Row("easy", "Catch-v0", 1000, 2, 0.9, "own: so"),
        Row("never", "Catch-v0", 5, 1, None, "MinAtar: a curve"),
    )
    for seed, mean in ((1, 0.85), (2, 0.5)):
        write_result(tmp_path, row, seed, mean=mean)
    write_result(tmp_path, row, 1, "before", 0.2, done=False)
    page.write({"toys": (row, other), "rest": ()}, tmp_path / "out", tmp_path / "docs" / "page.md")
    text = (tmp_path / "docs" / "page.md").read_text()
    assert "| easy | 1K, 1K | 0.85, 0.5 | 0.85, 0.5 | 0.9 ✓ ✗ | 1K, - | 10, 10 | own: so | abcdef0 |" in text
    assert "| easy, before | 1K | (0.2) | - | 0.9 … | - | 10 | own: so | abcdef0 |" in text
    assert "| never | 5 | not run | | - | | | MinAtar: a curve | |" in text
    assert "2 cores of a processor, no GPU, torch 2.0: abcdef0" in text
    assert "`python -m benchmarks.learning --rows easy --seeds 1 --label before`" in text
    assert "![Curves of toys](../out/toys.png)" in text
    assert (tmp_path / "out" / "toys.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "out" / "rest.png").exists()


def test_the_committed_results_are_whole_and_the_committed_page_is_theirs():
    committed, written = ROOT / "benchmarks" / "results" / "learning", ROOT / "docs" / "learning.md"
    found = results.read_all(committed)
    for result in found:
        assert result["git_commit"]
        assert result["machine"]["cores"]
        assert result["command"].startswith("python -m benchmarks.learning --rows")
        assert result["finished"] == (set(result["scores"]) == {"drawn", "likeliest"})
    assert {result["row"] for result in found} <= {row.name for row in ALL}
    assert (
        page.text(ROWS, found, committed, written) == written.read_text()
    )  # else: python -m benchmarks.learning --page


@pytest.mark.slow
def test_the_environment_of_every_row_can_be_made():
    for row in ALL:
        if suite.missing_package(row) is None:
            config, _ = resolve_config({"env": row.env, "total_steps": row.steps, **row.flags})
            assert config.environment.env == row.env
