"""`plot`: curves of runs, and when they passed what."""

from __future__ import annotations

import json

import pytest
from conftest import assert_one_line

pytest.importorskip("matplotlib")


def test_curves_of_runs_are_drawn_with_when_they_passed_what(call, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"git_commit": "abc", "machine": {"cores": 2}, "flags": {"seed": 1}}))
    table = [
        "time,frames,sps,episodes,mean_episode_return",
        "60,1e6,100,50,30.0",
    ]  # fewer than a hundred games: not yet
    table += ["120,2e6,300,100,-5.0", "180,3e6,200,150,1.0", "240,4e6,0,200,19.5", "300,5e6,250,250,12.0"]
    (run / "logs.csv").write_text("\n".join(table) + "\n")
    done = call("plot", run, "--labels", "mine", "--levels", 0, 18, 20, "--out", tmp_path / "plots" / "curve.png")
    assert (done.code, done.err) == (0, "")
    (found,) = json.loads((tmp_path / "plots" / "curve.json").read_text())
    assert found["first_at_or_above"] == {"0": {"frames": 3.0, "minutes": 3.0}, "18": {"frames": 4.0, "minutes": 4.0}}
    assert found["best_return"] == 19.5
    assert found["last"] == {"frames": 5.0, "minutes": 5.0, "return": 12.0}
    assert (found["label"], found["git_commit"], found["median_sps"]) == ("mine", "abc", 250)
    assert (tmp_path / "plots" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_one_line(call, tmp_path):
    assert_one_line(call("plot", "nothing"), "no run 'nothing'")
    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    assert_one_line(call("plot", "run"), "cannot be drawn", "logs.csv")
    (run / "logs.csv").write_text("time,frames,sps,episodes,mean_episode_return\n60,1e6,100,50,30.0\n")
    assert_one_line(call("plot", "run"), "no curve yet", "100 full games")
    (run / "logs.csv").write_text("time,frames,sps,episodes,mean_episode_return\n60,1e6,100,150,30.0\n")
    assert_one_line(call("plot", "run"), "cannot be drawn", "git_commit")
    assert_one_line(call("plot", "run", "--labels", "a", "b"), "1 runs need as many labels")
    (run / "config.json").write_text('{"git_commit": "abc", "machine": {}, "flags": {}}')
    assert_one_line(call("plot", "run", "--out", "curve.nothing"), "--out curve.nothing")
    assert call("plot", "run").code == 0
