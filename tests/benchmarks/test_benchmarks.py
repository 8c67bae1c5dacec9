"""Each benchmark still starts, draws what it found, and the command that runs them all goes on where it stopped."""

from __future__ import annotations

import json

import pytest

from benchmarks import environment, learner, memory, slow_environments, startup, throughput
from benchmarks import run as suite
from benchmarks.run import BENCHMARKS, Benchmark

CATCH = {"env": "Catch-v0", "model": "mlp", "use_lstm": False, "trainer": "monobeast", "num_actors": 4, "device": "cpu",
         "num_actor_processes": 1}  # fmt: skip
QUICK = ["--warm_up", "0.2", "--no_bound"]


def check_drawn(draw, figures, folder):
    draw(figures, folder / "plot.png")
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_environment_measures_every_engine_that_is_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "GAMES", 2)
    monkeypatch.setattr(environment, "ROUNDS", 2)
    figures = environment.measure(0.02)
    assert set(figures["sps_per_core"]) >= {"VectorEnvs (ours)", "AtariVectorEnv", "Gymnasium's wrappers"}
    assert all(50 < sps < 100_000 for sps in figures["sps_per_core"].values())
    assert figures["share_of_bare_emulator"][environment.BARE] == 1.0
    assert ("envpool" in figures["sps_per_core"]) != ("envpool" in figures["not_installed"])
    check_drawn(environment.draw, {"point": figures}, tmp_path)


def test_learner_measures_both_orders_in_memory(tmp_path):
    found = {
        layout: learner.measure("impala_shallow", "float32", 2, layout, 0.01) for layout in learner.LAYOUTS
    }  # fmt: skip
    assert all(1 < figures["us_per_step"] < 1e6 for figures in found.values())
    check_drawn(learner.draw, found, tmp_path)


def test_startup_sees_the_first_update_memory_and_the_end(tmp_path):
    figures = startup.measure(CATCH, 0.0)
    assert figures["first_update_s"] > 0.5
    assert 50 < figures["pss_mb"] < 5000
    assert figures["processes"] >= 3  # this one, the fork server, an actor
    assert 0 < figures["stop_s"] < 60
    check_drawn(startup.draw, {"point": figures}, tmp_path)


def test_memory_watches_a_training_run_and_a_profile(tmp_path):
    flags = [
        "--env",
        "Catch-v0",
        "--num_actors",
        "4",
        "--num_actor_processes",
        "1",
        "--batch_size",
        "2",
        "--device",
        "cpu",
    ]
    figures = memory.training(memory.ROOT, tmp_path, flags, 20) | memory.profile(memory.ROOT, tmp_path, flags, 0.5)
    assert 50 < figures["learner_pss_mb"] <= figures["learner_rss_mb"] < 5000
    assert figures["learner_pss_mb"] < figures["all_pss_mb"]
    assert figures["training_sps"] > 0
    assert figures["profile_sps"] > 0
    found = [{"side": "ours", "precision": "float32"} | figures | {"training_sps": sps} for sps in (1.0, 9.0, 5.0)]
    assert memory.medians(found) == [found[2]]


def test_throughput_is_what_profile_says(tmp_path):
    figures = throughput.measure(CATCH, 0.5, *QUICK)
    assert figures["whole"]["sps"] > 0
    assert figures["command"].startswith("python run.py profile --env Catch-v0")
    check_drawn(throughput.draw, {"point": figures}, tmp_path)


def test_throughput_asks_for_every_model_trainer_and_number_of_actors_once():
    names = list(throughput.points(1.0))
    assert len(names) == len(set(names))
    for flags in throughput.settings():
        assert set(flags) == {"env", "trainer", "model", "use_lstm", "num_actors", "batch_size", "device"}
    seen = [
        tuple(flags[key] for key in ("trainer", "model", "use_lstm", "num_actors")) for flags in throughput.settings()
    ]
    for trainer in throughput.TRAINERS:
        assert all((trainer, model, lstm, 48) in seen for model in throughput.MODELS for lstm in (False, True))
        assert all((trainer, "atari_shallow", False, actors) in seen for actors in throughput.ACTORS)


def test_signalling_runs_as_a_point():
    (measure,) = BENCHMARKS["signalling"].points(0.05).values()
    assert measure()["results"]["pipes"]["round_trips_per_s"] > 0


def test_slow_environments_are_trained_on():
    task = slow_environments.tasks()["even"]
    assert slow_environments.measure("monobeast", task, 0.5, ["--num_actors", "4", *QUICK]) > 0


@pytest.fixture
def counted(monkeypatch, tmp_path):
    """A benchmark of three points that count how often they are measured; each may be told to fail."""
    counts, errors = dict.fromkeys("abc", 0), {}

    def measure(name):
        counts[name] += 1
        if name in errors:
            raise errors[name]
        return {"value": 1.5}

    def points(seconds):
        return {name: lambda name=name: measure(name) for name in counts}

    def draw(figures, file):
        file.write_text(" ".join(figures))

    monkeypatch.setitem(BENCHMARKS, "counted", Benchmark(points, draw))
    return counts, errors


def run(folder, *flags):
    return suite.main(["--only", "counted", "--out", str(folder), *flags])


def test_finished_points_are_not_measured_again_unless_asked(counted, tmp_path):
    counts, _ = counted
    assert [run(tmp_path), run(tmp_path)] == [0, 0]
    assert counts == {"a": 1, "b": 1, "c": 1}
    assert run(tmp_path, "--again") == 0
    assert counts == {"a": 2, "b": 2, "c": 2}
    (file,) = tmp_path.glob("counted_*cores*.json")
    for point in json.loads(file.read_text())["points"].values():
        assert point["figures"] == {"value": 1.5}
        assert point["machine"]["cores"] >= 1
        assert point["git_commit"]
        assert point["command"].startswith("python -m benchmarks.run --only counted")
    assert file.with_suffix(".png").read_text() == "a b c"


def test_an_interrupted_suite_goes_on_where_it_stopped(counted, tmp_path):
    counts, errors = counted
    errors["b"] = KeyboardInterrupt()
    assert run(tmp_path) == 130
    errors.clear()
    assert run(tmp_path) == 0
    assert counts == {"a": 1, "b": 2, "c": 1}


def test_a_point_that_fails_does_not_hold_the_others_and_is_tried_again(counted, tmp_path, capsys):
    counts, errors = counted
    errors["a"] = RuntimeError("no luck")
    assert run(tmp_path) == 1
    assert "no luck" in capsys.readouterr().out
    errors.clear()
    assert run(tmp_path) == 0
    assert counts == {"a": 2, "b": 1, "c": 1}


def test_results_of_another_machine_are_left_alone(counted, tmp_path, monkeypatch, capsys):
    counts, _ = counted
    assert run(tmp_path) == 0
    here = suite.system.describe_machine()
    monkeypatch.setattr(suite.system, "describe_machine", lambda: here | {"cpu": "another one"})
    assert run(tmp_path) == 2
    assert "another --out" in capsys.readouterr().err
    assert counts == {"a": 1, "b": 1, "c": 1}


def test_unknown_benchmarks_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        suite.main(["--only", "nonsense", "--out", str(tmp_path)])
    assert end.value.code == 2
    assert "throughput" in capsys.readouterr().err
