"""`beast.train`, `beast.evaluate` and `beast.load`: what a script or a notebook gets, and what it is told when it is wrong."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PATIENCE, ROOT, Program, rows

import beast
from beast.envs import EnvChoice
from beast.run import checkpoint, finding

OLD = ROOT / "tests" / "data" / "checkpoint_4e08ef6"
CATCH = {"env": "Catch-v0", "num_actors": 4, "batch_size": 4, "num_actor_processes": 0, "total_steps": 400}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def no_environment(monkeypatch):
    """Whoever makes an environment fails."""

    def refuse(*of):
        raise AssertionError("an environment was made")

    monkeypatch.setattr(EnvChoice, "make_vector", refuse)
    monkeypatch.setattr(EnvChoice, "make_single", refuse)


def test_importing_it_imports_nothing_else():
    code = (
        "import sys; before = set(sys.modules); import beast; print(sorted(set(sys.modules) - before - {'__future__'})); "
        "assert beast.train.__module__ == 'beast.api' and 'load' in dir(beast); print('torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert said.stdout.splitlines() == [
        "['beast', 'beast.processes', 'beast.processes.paths']",
        "True",
    ], said.stderr


def test_a_run_is_trained_evaluated_and_gone_on_with(tmp_path):
    run = beast.train(**CATCH, xpid="run", savedir=tmp_path / "runs")
    assert run == tmp_path / "runs" / "run"
    assert rows(run)[-1]["step"] == 400
    found = beast.evaluate(run, episodes=3, seed=5)
    assert (found["env"], found["step"], found["episodes"]) == ("Catch-v0", 400, len(found["returns"]))
    assert found["mean"] == np.mean(found["returns"])
    assert found == beast.evaluate("run", episodes=3, seed=5) == beast.evaluate("latest", episodes=3, seed=5)
    assert beast.evaluate("run", episodes=3, max_episode_steps=4)["lengths"] == [4, 4, 4]
    assert beast.train(resume=run, total_steps=800) == run
    assert rows(run)[-1]["step"] == 800
    with pytest.warns(UserWarning, match="is finished: 800 steps"):
        assert beast.train(resume=run) == run


def test_a_policy_is_loaded_without_an_environment(no_environment_after_training):
    before = torch.get_rng_state()
    agent = beast.load("run", deterministic=True)
    assert torch.equal(torch.get_rng_state(), before)
    board = np.zeros((10, 5), np.float32)
    assert agent.act(board) in (0, 1, 2)
    state = checkpoint.load(finding.find("run", "runs"))
    for name, value in agent.policy.model.state_dict().items():
        assert torch.equal(value, state["learner"]["model"][name])


@pytest.fixture
def no_environment_after_training(request):
    beast.train(**CATCH, xpid="run")
    request.getfixturevalue("no_environment")


def test_a_checkpoint_of_the_first_format_is_loaded_too(tmp_path):
    """It holds no spaces: they come from its environment."""
    run = Path(shutil.copytree(OLD, tmp_path / "runs" / "old"))
    agent = beast.load(run)
    assert agent.act(np.zeros(agent.policy.choice.observation_space.shape, np.float32)) in (0, 1, 2)


def test_settings_of_a_models_own_come_from_the_checkpoint(tmp_path, own_module):
    (tmp_path / "own").mkdir()
    own_module(
        "own/sized",
        textwrap.dedent("""
            from dataclasses import dataclass
            import torch
            from torch import nn
            from beast.core.data import ModelOutput

            class Model(nn.Module):
                @dataclass(frozen=True)
                class Config:
                    width: int = 8

                def __init__(self, observation_space, action_space, use_lstm, config):
                    super().__init__()
                    self.fc = nn.Linear(4, config.width)
                    self.heads = nn.Linear(config.width, 3)

                def initial_state(self, batch_size):
                    return ()

                def forward(self, inputs, core_state):
                    out = self.heads(torch.tanh(self.fc(inputs.observation)))
                    return ModelOutput(out[..., :2], out[..., 2]), core_state
        """),
    )
    run = beast.train(**CATCH | {"env": "CartPole-v1"}, model="own.sized", width=24, preset="atari")
    assert beast.load(run).policy.model.fc.out_features == 24


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: beast.train(env="Catch-v0", num_actor=4), beast.ConfigError, "num_actor; did you mean num_actors"),
        (lambda: beast.train(env="Catch-v0", num_actors=0), beast.ConfigError, "--num_actors must be at least 1"),
        (lambda: beast.train(env="Catch-v0", total_steps="many"), beast.ConfigError, "--total_steps must be a whole"),
        (lambda: beast.train(env="Cacth-v0"), beast.EnvError, "Cacth-v0"),
        (lambda: beast.train(env="Catch-v0", model="atari_shallow"), beast.ModelError, "atari_shallow"),
        (lambda: beast.train(**CATCH, callbacks=[object()]), beast.ConfigError, "after_update"),
        (lambda: beast.train(resume="nothing"), beast.CheckpointError, "no run 'nothing'"),
        (lambda: beast.evaluate("nothing"), beast.CheckpointError, "no run 'nothing'"),
        (lambda: beast.evaluate("nothing", episodes=0), beast.ConfigError, "--episodes must be at least 1, got 0"),
        (lambda: beast.evaluate("nothing", epsilon=1), beast.ConfigError, "unknown settings: epsilon"),
        (lambda: beast.load("nothing"), beast.CheckpointError, "no run 'nothing'"),
    ],
)
def test_what_is_wrong_is_raised_in_one_line_and_leaves_nothing(tmp_path, call, error, words):
    with pytest.raises(error, match=words) as raised:
        call()
    assert len(str(raised.value).splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = beast.lod


def test_a_damaged_checkpoint_is_warned_of(tmp_path):
    run = beast.train(**CATCH, xpid="run")
    beast.train(resume=run, total_steps=800)
    newest = checkpoint.newest_first(run)[0]
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="taking step_000000000400.pt instead"):
        beast.load(run)


class TestStrangers:
    @pytest.fixture
    def run(self, tmp_path, own_module, monkeypatch):
        (tmp_path / "own").mkdir()
        own_module("own/theirs", "from beast.envs.catch import Catch as make\nfrom beast.models.mlp import Model\n")

        def run(**flags):
            with monkeypatch.context() as patched:
                patched.setenv("XDG_STATE_HOME", str(tmp_path / "their state"))
                folder = beast.train(**CATCH | flags)
            del sys.modules["own.theirs"]
            return folder

        return run

    def test_their_environment_is_never_imported_to_load_a_policy(self, run):
        beast.load(run(env="own.theirs:make"))
        assert "own.theirs" not in sys.modules

    def test_their_model_is_imported_if_they_are_trusted(self, run):
        folder = run(model="own.theirs")
        with pytest.raises(beast.CheckpointError, match=r"--model own.theirs.*trust=True\) if you trust it$"):
            beast.load(folder)
        assert "own.theirs" not in sys.modules
        assert isinstance(beast.load(folder, trust=True).policy.model, sys.modules["own.theirs"].Model)


class Stopper:
    """A callback that ends the run after some updates, and remembers what it heard."""

    def __init__(self, updates, also=lambda: None):
        self.updates, self.also, self.steps, self.checkpoints = updates, also, [], []

    def after_update(self, step, updates, metrics):
        self.steps.append(step)
        self.also()
        return updates >= self.updates

    def after_checkpoint(self, step, path):
        self.checkpoints.append((step, path))


def test_a_callback_hears_of_a_run_and_may_end_it():
    stopper = Stopper(2)
    run = beast.train(**CATCH | {"total_steps": 100_000}, callbacks=[stopper])
    assert stopper.steps[:2] == [80, 160]
    assert stopper.checkpoints == [(stopper.steps[-1], checkpoint.saved(run)[0])]
    assert stopper.steps[-1] < 1000


def test_another_thread_trains_as_well_but_only_one_at_a_time():
    refused, ended = [], []

    def again():
        try:
            beast.train(**CATCH)
        except beast.ConfigError as error:
            refused.append(str(error))

    def work():
        flags = CATCH | {"num_actor_processes": 1, "total_steps": 100_000}
        ended.append(beast.train(**flags, xpid="run", callbacks=[Stopper(1, again)]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(PATIENCE)
    assert ended == [Path("runs/run")]
    assert "a run is live in this process" in refused[0]
    assert checkpoint.saved(ended[0])
    assert beast.train(**CATCH).is_dir()  # and when it is over the next one may begin


class Script(Program):
    """A user's own program."""

    command = ()


@pytest.fixture
def script(tmp_path):
    programs = []

    def start(text, **settings):
        (tmp_path / "script.py").write_text(textwrap.dedent(text))
        programs.append(Script(("script.py",), tmp_path, {"PYTHONPATH": str(ROOT)}, **settings))
        return programs[-1]

    yield start
    for program in programs:
        program.kill()


ENDLESS = """
    import beast
    print("the script runs")
    try:
        beast.train(env="Catch-v0", num_actors=4, batch_size=4, num_actor_processes=2, xpid="run", report_every=0.2)
    except KeyboardInterrupt:
        print("interrupted")
    agent = beast.load("run")
    print("loaded")
"""


def test_a_script_needs_no_guard_and_hears_of_ctrl_c_when_the_checkpoint_is_written(script, tmp_path):
    program = script(ENDLESS)
    program.wait_for("| loss total")
    program.send(signal.SIGINT, group=True)
    assert program.finish().code == 0, program.story()
    said = program.out.splitlines()
    assert said.count("the script runs") == 1  # no child runs it again
    assert [line for line in said if "go on with: python -m beast --resume runs/run" in line]
    assert said[-2:] == ["interrupted", "loaded"]
    assert not program.err
    assert checkpoint.saved(tmp_path / "runs" / "run")


def test_a_signal_that_ends_a_run_ends_its_script_too(script, tmp_path):
    program = script(ENDLESS)
    program.wait_for("| loss total")
    program.send(signal.SIGTERM)
    assert program.finish().code == -signal.SIGTERM, program.story()
    assert "loaded" not in program.out
    assert checkpoint.saved(tmp_path / "runs" / "run")


def test_what_fails_is_raised_after_the_checkpoint(script, tmp_path):
    (tmp_path / "failing.py").write_text(
        "from beast.envs.catch import Catch\n"
        "class Failing(Catch):\n"
        "    def step(self, action):\n"
        "        self.count = getattr(self, 'count', 0) + 1\n"
        "        if self.count > 200: raise RuntimeError('I am tired')\n"
        "        return super().step(action)\n"
    )
    program = script("""
        import beast
        try:
            beast.train(env="failing:Failing", num_actors=4, batch_size=4, num_actor_processes=1, xpid="run", max_restarts=0)
        except beast.WorkerError as error:
            print("raised:", error)
            print("with:", "I am tired" in error.details)
    """)
    assert program.finish().code == 0, program.story()
    assert "raised: " in program.out
    assert program.out.endswith("with: True\n")
    assert checkpoint.saved(tmp_path / "runs" / "run")
