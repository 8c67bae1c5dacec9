"""The command line: help, flags, presets, what a run writes down about itself."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, assert_one_line
from gymnasium import spaces

import beast
from beast import commands
from beast.core.errors import ConfigError
from beast.envs.choice import EnvChoice
from beast.run import resolve
from beast.run.resolve import resolve_config
from beast.settings.config import Config
from beast.settings.flags import MOST_USED, field_docs
from beast.settings.presets import PRESETS, WIDEST

PICTURE = spaces.Box(0, 255, (60, 80, 3), np.uint8)
SERIAL = ["--env", "Catch-v0", "--num_actors", 4, "--batch_size", 4, "--num_actor_processes", 0, "--total_steps", 160]


def fields(model: str | None = None) -> dict[str, Any]:
    return {
        field.name: field for group in Config.sections("impala", model).values() for field in dataclasses.fields(group)
    }


def parse(*arguments: str) -> dict[str, Any]:
    return commands.train_parser("run.py", "", list(arguments)).parse(list(arguments))


# -- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[], ["train"], ["profile"]], ids=lambda c: (c or ["none"])[0])
def test_help_shows_every_flag_of_every_group(call, command):
    done = call(*command, "--model", "mlp", "--help-all")
    assert done.code == 0
    assert not done.err
    for group in Config.sections(**WIDEST).values():
        assert group.__doc__.splitlines()[0] + ":" in done.out
        docs = field_docs(group)
        for field in dataclasses.fields(group):
            assert re.search(rf"^  --{field.name}\b", done.out, re.M), field.name
            assert docs[field.name].split()[0] in done.out
    for name, values in PRESETS.items():
        assert re.search(rf"^  {name} ", done.out, re.M)
        for flag, value in values.items():
            typed = str(value).lower() if value is None or isinstance(value, bool) else str(value)
            assert re.search(rf"(^| ){flag}={re.escape(typed)}( |$)", done.out, re.M), flag


def test_every_flag_has_a_help_text():
    for group in Config.sections(**WIDEST).values():
        assert field_docs(group).keys() >= {field.name for field in dataclasses.fields(group)}


@pytest.mark.parametrize("command", [[], ["profile"], ["evaluate"]], ids=lambda c: (c or ["train"])[0])
def test_every_flag_of_the_help_has_a_text_of_its_own(call, command):
    """An entry begins in the third column; its text begins further right, on the same line or the next one."""
    done = call(*command, "--model", "mlp", "--help" if command == ["evaluate"] else "--help-all")
    entries = re.split(r"\n(?=  -)", done.out.partition("\npresets")[0])[1:]
    assert len(entries) >= 6
    for entry in entries:
        flags, text = re.match(r"  (\S.*?)(?:  +|\n +)(\S.*)", entry, re.S).groups()
        assert len(text.split()) >= 3, flags


def test_every_setting_is_explained_by_whole_sentences():
    groups = [*Config.sections("examples.custom_algorithm", "mlp").values(), *Config.sections(**WIDEST).values()]
    for group in groups:
        for name, text in field_docs(group).items():
            assert text[:1].isupper(), name
            assert text.endswith((".", ".)")), name
            assert len(text.split()) >= 4, name


def test_the_short_help_shows_the_flags_used_most_first(call):
    done = call("--help")
    assert re.findall(r"^  --(\w+)", done.out, re.M)[: len(MOST_USED)] == list(MOST_USED)
    assert "--help-all" in done.out
    assert "--entropy_cost" not in done.out
    own = call("profile", "--help").out
    assert own.index("--autotune") < own.index("--env")
    assert "--entropy_cost" not in own


def test_the_help_shows_what_presets_make_of_a_default(call):
    out = " ".join(call("--help-all").out.split())
    named = ", ".join(f"{name}: {values['num_actors']}" for name, values in PRESETS.items() if "num_actors" in values)
    assert f"[48; {named}]" in out
    assert "[50,000,000; classic: 500,000, " in out
    assert "[PongNoFrameskip-v4]" in out


def test_help_of_evaluate_names_no_training_flag(call):
    done = call("evaluate", "--help")
    assert done.code == 0
    for flag in ("checkpoint", "episodes", "deterministic", "seed", "video", "json"):
        assert f"--{flag}" in done.out
    assert "--num_actors" not in done.out


def test_help_comes_with_the_flags_of_the_algorithm_that_is_named(call):
    assert "--kl_cost" not in call("--help-all").out
    assert "--kl_cost" in call("--algorithm", "examples.custom_algorithm", "--help-all").out


def test_help_comes_with_the_flags_of_the_model_that_is_named(call):
    assert "--hidden_size" not in call("--model", "atari_shallow", "--help-all").out
    assert "--hidden_size" in call("--model", "mlp", "--help-all").out


def test_flags_that_a_preset_may_need_can_be_typed_before_one_is_chosen(call):
    assert {"--passes", "--hidden_size"} <= set(call("--help-all").out.split())
    config, _ = resolve_config({"env": "CartPole-v1", "hidden_size": 8})
    assert config.model.hidden_size == 8
    with pytest.raises(ConfigError, match="hidden_size"):
        resolve_config({"env": "Catch-v0", "env_kwargs": {"rows": 40, "columns": 40}, "hidden_size": 8})


@pytest.mark.parametrize("flags", [{}, {"algorithm": "impala"}, {"model": "multi_input"}])
def test_a_preset_gives_no_setting_that_what_was_asked_for_does_not_have(monkeypatch, flags):
    settings = {"algorithm": "appo", "passes": 3, "normalise_observations": True, "hidden_size": 8}
    monkeypatch.setitem(PRESETS, "control", settings)
    config, _ = resolve_config({"env": "CartPole-v1", **flags})
    had = config.flat()
    assert had["normalise_observations"]
    assert had.get("passes") == (None if "algorithm" in flags else 3)
    assert had.get("hidden_size") == (None if "model" in flags else 8)
    config, _ = resolve_config({"env": "Catch-v0", "preset": "control"})
    assert not config.learner.normalise_observations  # whole numbers alone


def test_settings_that_a_begun_run_does_not_have_are_no_presets(monkeypatch):
    monkeypatch.setitem(PRESETS, "control", {"normalise_observations": True, "num_actors": 3})
    begun = {"env": "CartPole-v1", "num_actors": 5, "preset": "control", "model": "mlp"}
    assert resolve_config(begun)[0].learner.normalise_observations
    config, _ = resolve_config(begun, complete=True)
    assert (config.actors.num_actors, config.learner.normalise_observations) == (5, False)


# -- typos ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("--num_actor", "--num_actors"),
        ("--batchsize", "--batch_size"),
        ("--learning-rat=1", "--learning_rate"),
        ("--use_lsmt", "--use_lstm"),
        ("--totalsteps", "--total_steps"),
    ],
)
def test_a_typo_names_the_nearest_flag(call, wrong, right):
    assert_one_line(call(wrong), wrong.split("=")[0].replace("-rat", "_rat"), f"did you mean {right}?")


def test_a_typo_in_evaluate_names_the_nearest_flag(call):
    assert_one_line(call("evaluate", "--checkpoint", "x", "--episode", "3"), "did you mean --episodes?")


def test_a_typo_in_the_command_names_the_nearest_one(call):
    assert_one_line(call("evalute"), "did you mean evaluate?")
    assert_one_line(call("CartPole-v1"), "unknown command", "train, evaluate, profile")


def test_what_is_no_flag_at_all_is_named(call):
    assert_one_line(call("train", "Pong"), "unknown argument Pong")


def test_flags_are_never_abbreviated(call):
    assert_one_line(call("--unroll", "5"), "did you mean --unroll_length?")


# -- values -----------------------------------------------------------------------------------------------------------


def test_dashes_and_underscores_are_the_same():
    assert parse("--num-actors", "4") == parse("--num_actors", "4") == parse("--num-actors=4") == {"num_actors": 4}
    assert parse("--no-use-lstm") == parse("--no_use_lstm") == {"use_lstm": False}
    assert parse("--env", "a-b:c", "--xpid", "my-run") == {"env": "a-b:c", "xpid": "my-run"}  # values stay as they are


@pytest.mark.parametrize("text", ["50000000", "50_000_000", "5e7", "5.0e7"])
def test_whole_numbers_may_be_written_in_several_ways(text):
    assert parse("--total_steps", text) == {"total_steps": 50_000_000}


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--use_lstm"], True),
        (["--use_lstm", "true"], True),
        (["--use_lstm=1"], True),
        (["--use_lstm", "False"], False),
        (["--use_lstm=0"], False),
        (["--no_use_lstm"], False),
        (["--no_use_lstm=false"], True),
    ],
)
def test_switches(arguments, value):
    assert parse(*arguments) == {"use_lstm": value}


def test_only_given_flags_are_values():
    assert parse() == {}
    assert parse("--env_kwargs", '{"rows": 8}') == {"env_kwargs": {"rows": 8}}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--num_actors", "0"], ["--num_actors", "at least 1", "0"]),
        (["--num_actors", "four"], ["--num_actors", "whole number", "four"]),
        (["--total_steps", "1.5"], ["--total_steps", "whole number", "1.5"]),
        (["--total_steps", "inf"], ["--total_steps", "whole number", "inf"]),
        (["--total_steps", "-5"], ["--total_steps", "at least 1", "-5"]),
        (["--num_actors"], ["--num_actors", "expected one argument"]),
        (["--algorithm"], ["--algorithm", "expected one argument"]),
        (["--num_actors", "2", "--num_actor_processes", "3"], ["--num_actor_processes (3)", "--num_actors (2)"]),
        (["--use_lstm=maybe"], ["--use_lstm", "true or false", "maybe"]),
        (["--env_kwargs", "[1]"], ["--env_kwargs", "JSON object"]),
        (["--env_kwargs", "{rows: 8}"], ["--env_kwargs", "JSON object"]),
        (["--learning_rate", "nan"], ["--learning_rate", "number", "nan"]),
        (["--learning_rate", "0"], ["--learning_rate", "positive"]),
        (["--epsilon", "0"], ["--epsilon", "positive"]),
        (["--alpha", "1"], ["--alpha", "[0, 1)"]),
        (["--grad_norm_clipping", "-1"], ["--grad_norm_clipping", "negative"]),
        (["--rmsprop_form", "jax"], ["--rmsprop_form", "torch or tf"]),
        (["--discounting", "1.01"], ["--discounting", "[0, 1]"]),
        (["--reward_clipping", "some"], ["--reward_clipping", "abs_one", "some"]),
        (["--clip_rho_threshold", "0"], ["--clip_rho_threshold", "positive"]),
        (["--precision", "float16"], ["--precision", "bfloat16", "float16"]),
        (["--trainer", "polybeest"], ["--trainer", "polybeast", "polybeest"]),
        (["--preset", "atary"], ["--preset", "atari", "atary"]),
        (["--seed", "-1"], ["--seed", "at least 0"]),
        (["--checkpoint_every", "0"], ["--checkpoint_every", "positive"]),
        (["--eval_episodes", "0"], ["--eval_episodes", "at least 1"]),
        (["--xpid", "../elsewhere"], ["--xpid", "'../elsewhere'"]),
        (["--xpid", ".."], ["--xpid", "'..'"]),
        (["--xpid", "latest"], ["--xpid", "'latest'"]),
        (["--xpid", ""], ["--xpid", "''"]),
    ],
    ids=lambda value: "_".join(value).strip("-") if isinstance(value, list) else None,
)
def test_bad_values_are_one_line_with_what_is_allowed(call, tmp_path, arguments, words):
    assert_one_line(call(*arguments, "--savedir", tmp_path / "runs"), *words)
    assert not (tmp_path / "runs").exists()


def test_bad_input_ends_the_process_with_status_2():
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "--num_actor", "4"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "run.py: error: unknown argument --num_actor; did you mean --num_actors?\n"


def test_messages_name_what_was_typed():
    done = subprocess.run(
        [sys.executable, "-m", "beast", "--num_actor", "4"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "python -m beast: error: unknown argument --num_actor; did you mean --num_actors?\n"


def test_the_version_is_said(call):
    assert call("--version") == (0, f"beast {beast.__version__}\n", "")


@pytest.mark.parametrize("arguments", [["--episodes", 0], ["--seed", -1], ["--json"], ["--episodes", "all"]])
def test_evaluate_checks_its_own_flags(call, arguments):
    assert_one_line(call("evaluate", "--checkpoint", "somewhere", *arguments), arguments[0])
    assert_one_line(call("evaluate"), "--checkpoint")


# -- presets ----------------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_papers_for_atari():
    assert PRESETS["paper"] == {}
    config = Config.from_flat({})
    papers = {
        "unroll_length": 20,
        "batch_size": 32,
        "discounting": 0.99,
        "baseline_cost": 0.5,
        "entropy_cost": 0.01,
        "reward_clipping": "abs_one",
        "learning_rate": 6e-4,
        "alpha": 0.99,
        "momentum": 0.0,
        "epsilon": 0.01,
        "grad_norm_clipping": 40.0,
        "num_actors": 48,
        "total_steps": 50_000_000,
        "clip_rho_threshold": 1.0,
        "clip_c_threshold": 1.0,
    }
    assert {name: config.flat()[name] for name in papers} == papers


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_made_of_flags_and_passes_the_checks(preset):
    config = Config.from_flat(WIDEST | PRESETS[preset])
    assert PRESETS[preset].items() <= config.flat().items()


def test_the_environment_chooses_preset_and_model():
    config, task = resolve_config({"env": "CartPole-v1"})
    assert config.run.preset == "control"
    assert PRESETS["control"].items() <= config.flat().items()
    assert config.learner.model == task.model.model == "mlp"
    for env, preset in (("Pendulum-v1", "continuous"), ("Catch-v0", "classic"), ("Blackjack-v1", "control")):
        config, _ = resolve_config({"env": env})
        assert (config.run.preset, config.learner.model) == (preset, "mlp")
        settings = dict(PRESETS[preset])
        if env == "Blackjack-v1":  # there is nothing to normalise
            settings["normalise_observations"] = False
        assert {name: config.flat()[name] for name in settings} == settings
    config, task = resolve_config({"env": "PongNoFrameskip-v4"})
    assert config.run.preset == "atari"
    assert (config.actors.num_actors, config.learner.batch_size) == (48, 8)
    assert config.learner.model == "atari_shallow"


@pytest.mark.parametrize(
    ("parts", "preset"),
    [
        ({"picture": PICTURE}, "atari"),
        ({"left": PICTURE, "right": PICTURE}, "atari"),
        ({"picture": PICTURE, "ammunition": spaces.Box(-np.inf, np.inf, (1,))}, "small"),
        ({"picture": PICTURE, "map": spaces.Box(0, 255, (10, 10, 3), np.uint8)}, "small"),
    ],
)
def test_pictures_alone_get_the_preset_atari_if_actions_are_choices(parts, preset):
    assert resolve._preset_for(EnvChoice("own"), spaces.Dict(parts), continuous=False) == preset
    assert resolve._preset_for(EnvChoice("own"), spaces.Dict(parts), continuous=True) == "small"


def test_what_is_given_wins_over_the_preset():
    learning_rate = 12.5 * PRESETS["control"]["learning_rate"]
    config, _ = resolve_config({"env": "CartPole-v1", "learning_rate": learning_rate, "num_actors": 3})
    assert config.optimiser.learning_rate == learning_rate
    assert config.actors.num_actors == 3
    assert config.loss.reward_clipping == PRESETS["control"]["reward_clipping"]
    config, _ = resolve_config({"env": "CartPole-v1", "preset": "minigrid"})
    assert PRESETS["minigrid"].items() <= config.flat().items()


def test_the_needed_number_of_buffers_is_that_of_the_preset():
    classic, _ = resolve_config({"env": "Catch-v0"})
    least = classic.actors.num_actors + classic.learner.batch_size
    config, _ = resolve_config({"env": "Catch-v0", "num_buffers": least})
    assert config.num_buffers == least
    with pytest.raises(ConfigError, match=f"= {least} are needed"):
        resolve_config({"env": "Catch-v0", "num_buffers": least - 1})


def test_settings_survive_being_written_down():
    config, _ = resolve_config({"env": "Catch-v0", "env_kwargs": {"rows": 8}, "use_lstm": True})
    assert Config.from_flat(json.loads(json.dumps(config.flat()))) == config
    with pytest.raises(ConfigError, match="unknown settings: colour"):
        Config.from_flat({"colour": "red"})


def test_num_actor_processes_default_to_the_usable_cores(monkeypatch):
    monkeypatch.setattr("beast.settings.config.usable_cores", lambda: 6)
    assert Config.from_flat({}).actors.processes == 6
    assert Config.from_flat({"num_actors": 4}).actors.processes == 4
    monkeypatch.setattr("beast.settings.config.usable_cores", lambda: 64)
    assert Config.from_flat({}).actors.processes == 48


# -- what a run writes down -------------------------------------------------------------------------------------------


def test_config_json_holds_all_that_repeats_the_run_and_no_secret(call, tmp_path, monkeypatch):
    monkeypatch.setenv("A_TOKEN", "s3cr3t-token")
    done = call(*SERIAL, "--xpid", "noted", "--env_kwargs", '{"rows": 7}', "--seed", 5)
    assert done.code == 0, done.err
    folder = tmp_path / "runs" / "noted"
    written = json.loads((folder / "config.json").read_text())
    assert written["flags"].keys() == fields("mlp").keys()
    assert written["flags"]["env_kwargs"] == {"rows": 7}
    assert written["flags"]["preset"] == "classic"
    assert written["flags"]["model"] == "mlp"
    assert {"torch", "numpy", "gymnasium", "ale-py", "beast"} <= written["versions"].keys()
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", written["git_commit"])
    assert written["machine"]["cores"] >= 1
    again, _ = resolve_config(written["flags"])
    assert again.flat() == written["flags"]
    for file in folder.rglob("*"):
        assert not file.is_file() or b"s3cr3t-token" not in file.read_bytes()


def test_a_run_is_named_by_environment_and_time_and_latest_points_to_it(call, tmp_path):
    done = call(*SERIAL, "--env", "examples.custom_environment:make_env")
    assert done.code == 0, done.err
    (folder,) = (path for path in (tmp_path / "runs").iterdir() if not path.is_symlink())
    assert re.fullmatch(r"examples\.custom-environment-make-env-\d{8}-\d{6}", folder.name)
    assert (tmp_path / "runs" / "latest").resolve() == folder


def test_runs_that_start_in_the_same_second_have_folders_of_their_own(call, tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda *_: "20260102-030405")
    for _ in range(3):
        done = call(*SERIAL)
        assert done.code == 0, done.err
    names = sorted(path.name for path in (tmp_path / "runs").iterdir() if not path.is_symlink())
    assert names == [f"Catch-v0-20260102-030405{suffix}" for suffix in ("", "_2", "_3")]


def test_a_name_is_used_once(call, tmp_path):
    assert call(*SERIAL, "--xpid", "once").code == 0
    before = sorted((tmp_path / "runs" / "once").rglob("*"))
    assert_one_line(call(*SERIAL, "--xpid", "once"), "runs/once", "--resume once")
    assert sorted((tmp_path / "runs" / "once").rglob("*")) == before


def test_nothing_is_saved_if_so_wished(call, tmp_path):
    done = call(*SERIAL, "--xpid", "bare", "--disable_checkpoint")
    assert done.code == 0
    assert "nothing saved" in done.out
    assert not (tmp_path / "runs" / "bare" / "checkpoints").exists()
    assert (tmp_path / "runs" / "bare" / "logs.csv").exists()
    assert_one_line(call("--resume", "bare"), "no checkpoint")
    assert_one_line(call("evaluate", "--checkpoint", "bare"), "no checkpoint")


def test_profile_saves_nothing_and_says_where_the_time_goes(start, tmp_path):
    done = start(
        "profile", "--env", "Catch-v0", "--num_actors", 4, "--batch_size", 4, "--seconds", 1, "--json", "figures.json"
    ).finish()  # fmt: skip
    assert done.code == 0, done.story()
    assert json.loads((tmp_path / "figures.json").read_text())
    assert not (tmp_path / "runs").exists()
