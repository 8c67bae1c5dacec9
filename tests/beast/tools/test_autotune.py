"""`profile --autotune`: what is tried, what is kept, and the command that it ends with."""

from __future__ import annotations

import json
import shlex

import pytest
from conftest import assert_one_line

from beast.core.errors import ConfigError
from beast.settings.config import Config
from beast.settings.flags import Parser, to_arguments
from beast.tools import autotune
from beast.tools.autotune import DIMENSIONS, PointFailed, Search


@pytest.fixture
def machine(monkeypatch):
    """Two cores whose speed is a function of the flags; remembers what ran."""
    ran = []

    def install(speed):
        def profile_of(values, *own):
            ran.append(dict(values))
            flags = Config.from_flat(values).flat()
            whole = {"sps": speed(flags), "pss_mb": 1.0, "policy_lag": {"mean": 0.5}}
            dtype, threads = flags["precision"].replace("auto", "bfloat16"), flags["num_learner_threads"] or 2
            return {"flags": flags, "dtype": dtype, "learner_threads": threads, "whole": whole}

        monkeypatch.setattr(autotune, "profile_of", profile_of)
        return ran

    monkeypatch.setattr(autotune, "usable_cores", lambda: 2)
    monkeypatch.setattr("beast.settings.config.usable_cores", lambda: 2)
    return install


def test_the_search_climbs_each_flag_as_long_as_it_gets_faster(machine):
    def speed(flags):
        return (
            1000.0
            - abs(flags["num_actors"] - 192)
            + 100 * (flags["trainer"] == "polybeast")
            - 5 * abs(flags["batch_size"] - 8)
        )

    ran = machine(speed)
    best = Search({}, 1e9).run()
    assert best.changes == {"num_actors": 192, "trainer": "polybeast", "batch_size": 8}
    assert len(ran) == len({json.dumps(flags, sort_keys=True) for flags in ran})  # nothing twice
    assert {name for flags in ran for name in flags} == set(DIMENSIONS)
    assert {flags["trainer"] for flags in ran if "trainer" in flags} == {"polybeast"}  # a3c does not learn the same


def test_less_than_the_noise_is_no_gain(machine):
    ran = machine(lambda flags: 1000.0 + 20 * (flags["trainer"] == "polybeast"))
    assert Search({}, 1e9).run().changes == {}
    assert {"trainer": "polybeast"} in ran


def test_flags_that_were_given_stay(machine):
    ran = machine(lambda flags: float(flags["num_actors"]))
    given = {"num_actors": 24, "trainer": "polybeast", "use_lstm": True}
    Search(given, 1e9).run()
    assert len(ran) > 1
    assert all(flags | given == flags for flags in ran)


def test_no_point_is_begun_that_would_overrun_but_two_are_tried(machine):
    ran = machine(lambda flags: 1.0)
    Search({}, 0.0).run()
    assert len(ran) == 2


def test_a_point_that_fails_is_shown_and_passed_over(machine, monkeypatch, capsys):
    machine(lambda flags: 1.0)
    works = autotune.profile_of

    def profile_of(values, *own):
        if values.get("trainer") == "polybeast":
            raise PointFailed("no luck")
        return works(values, *own)

    monkeypatch.setattr(autotune, "profile_of", profile_of)
    search = Search({}, 1e9)
    assert search.run().changes == {}
    assert [point.error for point in search.points if point.error] == ["no luck"]
    assert any("failed" in line and "no luck" in line for line in capsys.readouterr().out.splitlines())


def test_settings_that_do_not_run_are_the_users_error(machine, monkeypatch):
    monkeypatch.setattr(autotune, "profile_of", lambda values, *own: profile_fails())

    def profile_fails():
        raise PointFailed("no such thing")

    with pytest.raises(ConfigError, match="no such thing"):
        Search({}, 1e9).run()


def test_flags_written_out_are_read_back():
    values = {"env_kwargs": {"rows": 8}, "use_lstm": True, "full_action_set": False, "learning_rate": 1e-4,
              "clip_rho_threshold": None, "num_actors": 7, "env": "Catch-v0"}  # fmt: skip
    parser = Parser()
    for group in Config.sections("impala", None).values():
        parser.add_dataclass(group)
    assert parser.parse(shlex.split(shlex.join(to_arguments(values)))) == values


def test_autotune_runs_real_points_and_ends_with_a_command_to_paste(call, tmp_path):
    flags = ["--env", "Catch-v0", "--num_actors", 4, "--num_actor_processes", 1]
    done = call("profile", "--autotune", "--seconds", 4, *flags, "--json", "tuned.json")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "tuned.json").read_text())
    assert len(found["points"]) >= 2
    for point in found["points"]:
        assert not point["error"]
        assert f"{point['sps']:,.0f}" in done.out
    assert found["best"] in found["points"]
    assert found["best"]["sps"] >= found["points"][0]["sps"]
    assert found["command"] in done.out
    assert found["command"].startswith("python run.py --env Catch-v0 --num_actors 4 --num_actor_processes 1")
    assert "change learning" in done.out


def test_autotune_ends_with_the_error_of_flags_that_do_not_run(call):
    outcome = call("profile", "--autotune", "--env", "Catch-v0", "--model", "nonsense")
    assert_one_line(outcome._replace(out=""), "nonsense")
