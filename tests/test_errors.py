"""What goes wrong, and what a user then sees: one line that says what to do, a status, and no process left."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import assert_one_line, assert_own_traceback, wait_until

from beast.report import files
from beast.run import checkpoint, finding

SMALL = ["--num_actors", 2, "--batch_size", 2, "--total_steps", 400]
SERIAL = ["--num_actor_processes", 0]
PROCESSES = ["--num_actor_processes", 2, "--max_restarts", 0]
CATCH = ["--env", "Catch-v0", *SMALL, *SERIAL]


def write_module(folder: Path, name: str, source: str) -> None:
    (folder / f"{name}.py").write_text(textwrap.dedent(source))


ENV = """
    import gymnasium
    import numpy as np

    class Env(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
        action_space = gymnasium.spaces.Discrete(2)
        steps = 0

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            {reset}
            return np.zeros(3, np.float32), {{}}

        def step(self, action):
            self.steps += 1
            if self.steps > 30:
                {step}
            return np.zeros(3, np.float32), 1.0, self.steps % 10 == 0, False, {{}}

    def make():
        {make}
        return Env()
"""


def write_env(folder: Path, name: str, make: str = "pass", reset: str = "pass", step: str = "pass") -> list[str]:
    write_module(folder, name, ENV.format(make=make, reset=reset, step=step))
    return ["--env", f"{name}:make"]


@pytest.fixture(params=["serial", "processes"])
def train(request, start, call):
    """Train with these flags, in this process or with actor processes."""
    if request.param == "serial":
        return lambda *flags: call(*flags, *SERIAL)
    return lambda *flags: start(*flags, *PROCESSES).finish()


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--env", "CartPol-v1"], ["unknown --env CartPol-v1", "did you mean CartPole-v1?"]),
        (["--env", "PongNoFramskip-v4"], ["PongNoFramskip-v4", "did you mean PongNoFrameskip-v4?"]),
        (["--env", "qqqqqqqqqqqq"], ["unknown --env qqqqqqqqqqqq", "my_package.my_module:make_env"]),
        (["--env", "ALE/Pong-v77"], ["ALE/Pong-v77"]),
        (["--env", ""], ["unknown --env"]),
        (["--env", "not_there.at_all:make"], ["not_there", "PYTHONPATH"]),
        (["--env", "examples.custom_environment:make_nothing"], ["has no 'make_nothing'"]),
        (["--env", ":make"], ["--env :make"]),
        (["--env", "os:getcwd"], ["os:getcwd", "gymnasium.Env"]),
        (["--env_kwargs", '{"colour": 1}'], ["Catch-v0", "colour"]),
        (["--model", "impala_deep"], ["no model 'impala_deep'", "impala_resnet"]),
        (["--model", "not_there.model"], ["no model 'not_there.model'"]),
        (["--model", ".relative"], ["no model '.relative'"]),
        (["--model", "json.decoder"], ["json.decoder", "no class Model"]),
        (["--model", "atari_shallow"], ["atari_shallow", "36x36", "10x5", "mlp"]),
        (["--algorithm", "ppo"], ["no algorithm 'ppo'", "impala"]),
        (["--algorithm", ".relative"], ["no algorithm '.relative'"]),
        (["--algorithm", "examples.custom_model"], ["examples.custom_model", "no Config"]),
        (["--device", "gpu"], ["--device", "cuda:N", "'gpu'"]),
        (["--device", "cuda:99"], ["cuda:99", "--device cpu"]),
        (["--precision", "bfloat16"], ["--precision bfloat16", "mlp"]),
        (["--num_buffers", "3"], ["--num_buffers 3 is too small", "= 4 are needed", "leave it out"]),
    ],
    ids=lambda value: "_".join(value).strip("-") if isinstance(value, list) and value[0][0] == "-" else None,
)
def test_unknown_names_and_bad_choices(call, tmp_path, flags, words):
    assert_one_line(call(*CATCH, *flags), *words)
    assert not (tmp_path / "runs").exists()  # nothing was started, nothing is left


@pytest.mark.parametrize("space", ["OneOf([Discrete(2)])", "Graph(Box(0, 1, (2,)), None)", "Sequence(Discrete(2))"])
def test_unsupported_spaces(call, tmp_path, space):
    source = ENV.format(make="pass", reset="pass", step="pass").replace("    import numpy as np", """    import numpy as np
    from gymnasium.spaces import *""")  # fmt: skip
    observed = source.replace("gymnasium.spaces.Box(-1, 1, (3,), np.float32)", space)
    write_module(tmp_path, "odd_observation", observed)
    assert_one_line(call(*CATCH, "--env", "odd_observation:make"), "unsupported observation space", "Dict or Tuple")
    acted = source.replace("gymnasium.spaces.Discrete(2)", space)
    write_module(tmp_path, "odd_action", acted)
    assert_one_line(call(*CATCH, "--env", "odd_action:make"), "unsupported action space", "MultiDiscrete")


def test_unbounded_actions_need_no_wrapper(call, tmp_path):
    source = ENV.format(make="pass", reset="pass", step="pass")
    write_module(
        tmp_path, "unbounded", source.replace("gymnasium.spaces.Discrete(2)", "gymnasium.spaces.Box(-np.inf, 1, (2,))")
    )
    done = call(*CATCH, "--env", "unbounded:make")
    assert done.code == 0, done.err


def test_a_missing_rom(call, monkeypatch):
    from ale_py import vector_env

    def no_rom(*arguments, **settings):
        raise AssertionError("rom not found")

    monkeypatch.setattr(vector_env, "AtariVectorEnv", no_rom)
    assert_one_line(call(*CATCH, "--env", "PongNoFrameskip-v4"), "no ROM for pong", "ale-py")


# -- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(call, tmp_path) -> Path:
    done = call(*CATCH, "--xpid", "r")
    assert done.code == 0, done.err
    return tmp_path / "runs" / "r"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--env", "CartPole-v1"], ["--env CartPole-v1", "Catch-v0"]),
        (["--env_kwargs", '{"rows": 7}'], ["--env_kwargs", "rows"]),
        (["--model", "impala_shallow"], ["--model impala_shallow", "mlp"]),
        (["--use_lstm"], ["--use_lstm"]),
        (["--preset", "minigrid"], ["--preset minigrid", "classic"]),
        (["--rmsprop_form", "tf"], ["--rmsprop_form tf", "torch"]),
        (["--xpid", "other"], ["--xpid other", "--resume"]),
    ],
    ids=lambda value: value[0].strip("-") if value[0][0] == "-" else None,
)
def test_no_run_goes_on_as_another(call, run, flags, words):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert_one_line(call("--resume", "r", "--total_steps", 800, *flags), *words)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_run_that_is_not_there(call, tmp_path):
    assert_one_line(call("--resume", "nothing"), "no run 'nothing'", "there are no runs in runs")
    assert_one_line(call("evaluate", "--checkpoint", "nothing"), "no run 'nothing'")
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "config.json").write_text("{}")
    assert_one_line(call("--resume", "frist"), "no run 'frist'", "in runs are: first")
    assert_one_line(call("--resume", "first"), "first", "no checkpoint")


def test_a_checkpoint_of_another_network(call, run):
    file = finding.find(str(run), "")
    state = checkpoint.load(file)
    state["learner"]["model"]["fc1.weight"] = torch.zeros(7, 7)
    torch.save(state, file)
    assert_one_line(call("evaluate", "--checkpoint", "r"), "step_000000000400.pt holds another model", "fc1.weight")
    assert_one_line(call("--resume", "r", *SERIAL, "--total_steps", 800), "does not fit --model mlp", "fc1.weight")


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:3_000]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"not a checkpoint"),
        lambda file: torch.save({"weights": torch.zeros(2)}, file),
        lambda file: torch.save(3, file),
        lambda file: torch.save({"config": {}, "learner": print}, file),
    ],
    ids=["cut off", "empty", "text", "other dict", "no dict", "code"],
)
def test_a_damaged_checkpoint(call, run, damage):
    damage(finding.find(str(run), "").resolve())
    assert_one_line(call("evaluate", "--checkpoint", "r"), "checkpoints/step_000000000400.pt", "checkpoint")
    assert_one_line(call("--resume", "r", "--total_steps", 800, *SERIAL), "step_000000000400.pt", "checkpoint")


def test_a_damaged_checkpoint_that_was_named_names_the_ones_before_it(call, run):
    assert call("--resume", "r", "--total_steps", 480, *SERIAL).code == 0
    old, new = checkpoint.saved(run)
    new.write_bytes(b"")
    for name in (new, new.with_name("latest.pt")):
        asked = call("--resume", name, "--total_steps", 800, *SERIAL)
        assert_one_line(asked, str(name), "take another one of", f"r/checkpoints: {old.name}")
    done = call("--resume", old, "--total_steps", 800, *SERIAL)
    assert done.code == 0, done.err
    assert call("evaluate", "--checkpoint", "r", "--episodes", 1).code == 0


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"flags": 3}'])
def test_a_damaged_config(call, run, text):
    (run / "config.json").write_text(text)
    assert_one_line(call("--resume", "r", "--total_steps", 800, *SERIAL), "config.json is damaged")
    assert call("evaluate", "--checkpoint", "r", "--episodes", 1).code == 0  # the checkpoint has all it needs


def test_evaluate_says_before_it_plays_what_it_cannot_write(call, run, tmp_path):
    (tmp_path / "file").write_text("")
    for flag, where in (("--json", "file/figures.json"), ("--video", "file/videos")):
        done = call("evaluate", "--checkpoint", "r", flag, where)
        assert_one_line(done, flag, "cannot write to file")
        assert not done.out


def test_a_video_of_what_cannot_be_seen(call, tmp_path):
    shape = '{"shape": [3]}'
    assert call(*CATCH, "--xpid", "dark", "--env", "Synthetic-v0", "--env_kwargs", shape).code == 0
    done = call("evaluate", "--checkpoint", "dark", "--video", "videos")
    assert_one_line(done, "--video", "Synthetic-v0", "render_mode")


# -- disks ------------------------------------------------------------------------------------------------------------


def test_a_savedir_that_is_no_folder(call, tmp_path):
    (tmp_path / "file").write_text("")
    for savedir in ("file", "file/deeper"):
        assert_one_line(call(*CATCH, "--savedir", savedir), f"cannot write to {savedir}", "--savedir")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_savedir_without_permission(call, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert_one_line(call(*CATCH, "--savedir", "closed"), "cannot write to closed", "Permission denied", "--savedir")


def test_a_disk_that_is_full_in_the_middle_costs_no_training(call, tmp_path, monkeypatch):
    """Checkpoints fail for a while; the run tells it, goes on, and saves when there is room again."""
    real, failures = files.write_atomically, []

    def full(path, write):
        if path.suffix == ".pt" and len(failures) < 2:
            failures.append(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, write)

    monkeypatch.setattr(files, "write_atomically", full)
    done = call(*CATCH, "--xpid", "r", "--checkpoint_every", 1e-6)
    assert done.code == 0, done.err
    assert done.out.count("no checkpoint written ([Errno 28] No space left on device") == 2
    assert "finished at step 400 of 400; saved" in done.out


def test_a_disk_that_is_full_at_the_end_is_an_error(call, run, monkeypatch):
    before = checkpoint.saved(run)

    def full(path, write):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(
        files, "write_atomically", lambda path, write: full(path, write) if path.suffix == ".pt" else None
    )
    done = call("--resume", "r", "--total_steps", 800, *SERIAL)
    assert_one_line(done, "the last checkpoint could not be written", "No space left on device")
    assert "failed at step 800 of 800; nothing saved" in done.out
    assert checkpoint.saved(run) == before
    assert checkpoint.load(finding.find("r", "runs"))["learner"]["steps"] == 400


def test_a_disk_that_is_really_too_small(start, tmp_path):
    """Files may grow to 100 KB; the checkpoint is larger (and what is shared with a momentum is smaller than that)."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (230_000, 230_000))

    flags = ["--env", "Catch-v0", *SMALL, *SERIAL, "--momentum", 0.5, "--xpid", "r", "--checkpoint_every", 1e-6]
    program = start(*flags, preexec_fn=limit).finish()
    assert_one_line(program, "the last checkpoint could not be written", "File too large")
    assert "training goes on" in program.out
    assert "failed at step 400 of 400; nothing saved" in program.out
    assert not [path.name for path in (tmp_path / "runs" / "r" / "checkpoints").iterdir()]  # no half of a file


# -- environments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fail", "words"),
    [
        ("shape", ["(1,)", "(3,)", "observation_space", "mend"]),
        ("dtype", ["float64", "uint8", "observation_space", "mend"]),
    ],
)
def test_an_environment_that_breaks_its_contract(train, fail, words):
    kwargs = json.dumps({"fail": fail, "fail_after": 50, "shape": [3]})
    assert_one_line(train("--env", "Synthetic-v0", "--env_kwargs", kwargs, *SMALL), *words)


@pytest.mark.parametrize("where", ["make", "reset", "step"])
def test_an_environment_that_raises_shows_its_own_traceback(train, tmp_path, where):
    flags = write_env(tmp_path, "broken", **{where: "raise LookupError('the map is lost')"})
    done = train(*flags, *SMALL)
    assert_own_traceback(done, "LookupError: the map is lost", "broken.py", "raise LookupError")
    assert done.err.count("Traceback") == 1


def test_an_environment_that_ends_its_process(start, tmp_path):
    flags = write_env(tmp_path, "leaver", step="import os; os._exit(0)")
    program = start(*flags, *SMALL, *PROCESSES).finish()
    assert_one_line(program, "actor process", "exit code 0")


def test_a_module_that_misses_another(call, tmp_path):
    """It is there, but what it imports is not: that is for its own traceback to say."""
    write_module(tmp_path, "needy", "import not_installed_at_all\n")
    for flags in (["--env", "needy:make"], ["--model", "needy.needy"], ["--algorithm", "needy.needy"]):
        done = call(*CATCH, *flags)
        assert done.code != 0
        assert "not_installed_at_all" in done.err.splitlines()[-1]
        assert done.err.splitlines()[-1].startswith("run.py: error: ")


def test_a_function_that_returns_no_environment(call, tmp_path):
    assert_one_line(call(*CATCH, *write_env(tmp_path, "nothing", make="return None")), "gymnasium.Env")


# -- models and losses ------------------------------------------------------------------------------------------------


def test_a_model_that_raises_shows_its_own_traceback(start, tmp_path):
    source = """
        from beast.models.mlp import Model as Mlp

        class Model(Mlp):
            def torso(self, observation):
                raise LookupError("no way through")
    """
    package = tmp_path / "mine"
    package.mkdir()
    write_module(package, "model", source)
    program = start("--env", "Catch-v0", "--model", "mine.model", *SMALL, *PROCESSES).finish()
    assert_own_traceback(program, "LookupError: no way through", "model.py")


def test_popart_with_a_model_whose_value_head_it_does_not_know(call, tmp_path):
    source = """
        import torch
        from beast.models.mlp import Model as Mlp

        class Model(Mlp):
            def __init__(self, *arguments, **settings):
                super().__init__(*arguments, **settings)
                self.baseline = torch.nn.Sequential(self.baseline, torch.nn.Tanh())
    """
    package = tmp_path / "mine"
    package.mkdir()
    write_module(package, "squeezed", source)
    done = call(*CATCH, "--model", "mine.squeezed", "--popart")
    assert_one_line(done, "--popart", "attribute `baseline`", "leave --popart out")
    assert not (tmp_path / "runs").exists()


def test_a_loss_that_raises_shows_its_own_traceback(train, tmp_path):
    package = tmp_path / "mine"
    package.mkdir()
    source = """
        from beast.core.algorithms.impala import Config

        def loss(outputs, batch, distribution, config):
            raise LookupError("no minimum here")
    """
    write_module(package, "loss", source)
    done = train("--env", "Catch-v0", "--algorithm", "mine.loss", *SMALL)
    assert_own_traceback(done, "LookupError: no minimum here", "loss.py")
    assert "nothing saved" in done.out


# -- machines ---------------------------------------------------------------------------------------------------------


def test_actors_that_are_killed_before_they_did_anything(start, tmp_path):
    """A machine that kills every child (out of memory, say) gets no endless restarts."""
    kill = "import os, signal, sys; 'beast.cli' in sys.modules or os.kill(os.getpid(), signal.SIGKILL)"  # in no child
    flags = write_env(tmp_path, "doomed", reset=kill)
    program = start(*flags, *SMALL, "--num_actor_processes", 1, "--max_restarts", 2).finish()
    assert_one_line(program, "was killed by SIGKILL", "restarted 2 times already (--max_restarts)")


def test_an_error_while_ctrl_c_is_handled_is_not_lost(start, tmp_path):
    flags = write_env(tmp_path, "slow", step="import time; time.sleep(0.01)")
    program = start(*flags, *SMALL, *PROCESSES, "--total_steps", 10**9, "--report_every", 0.2)
    wait_until(lambda: "step " in program.out, "a report")
    program.send(signal.SIGINT)
    program.send(signal.SIGTERM)  # at once: it counts as the same
    assert program.finish().code in (130, 143), program.story()
    assert not program.err
