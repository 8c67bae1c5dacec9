"""NaN and infinity, wherever they come from: updates are skipped and counted, the weights never touched by them."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import assert_one_line, rows

from beast.run import checkpoint, finding

SERIAL = ["--num_actor_processes", 0, "--num_actors", 4, "--batch_size", 4, "--report_every", 0.1, "--xpid", "r"]
BEASTS = pytest.mark.parametrize("trainer", ["monobeast", "polybeast"])

ENV = """
    import gymnasium
    import numpy as np

    class Env(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        action_space = gymnasium.spaces.{actions}
        steps = 0

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(3, np.float32), {{}}

        def step(self, action):
            assert self.action_space.contains(action), action
            Env.steps += 1
            observation, reward = np.full(3, 0.5, np.float32), 1.0
            if {when}:
                {what}
            return observation, reward, self.np_random.random() < 0.01, False, {{}}
"""
WHAT = {
    "observation": "observation[1] = np.nan",
    "reward": "reward = float('inf')",  # that the loss clips it must not hide it
}


@pytest.fixture
def write(tmp_path):
    """Write a module of the user's own."""

    def write(name: str, source: str) -> None:
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / f"{name}.py").write_text(textwrap.dedent(source))

    return write


def assert_good(run: Path) -> dict:
    """Every checkpoint there is; returns the newest."""
    for file in checkpoint.saved(run):
        assert all(tensor.isfinite().all() for tensor in checkpoint.load(file)["learner"]["model"].values())
    return checkpoint.load(finding.find(str(run), ""))


@BEASTS
@pytest.mark.parametrize(
    ("actions", "field", "passes"), [("Discrete(3)", "reward", 1), ("Box(-1, 1, (2,))", "observation", 4)]
)
def test_an_environment_that_is_rarely_wrong_costs_few_updates(call, write, tmp_path, trainer, actions, field, passes):
    """With a memory and continuous actions too, both of which hand a NaN on from row to row; each batch counts once."""
    write("env", ENV.format(actions=actions, when="Env.steps % 700 == 0", what=WHAT[field]))
    flags = ["--env", "mine.env:Env", "--trainer", trainer, "--use_lstm", *SERIAL, "--total_steps", 4_000]
    flags += ["--preset", "classic", "--algorithm", "appo", "--passes", passes]
    done = call(*flags, "--max_skipped_updates", 3)
    assert (done.code, done.err) == (0, "")
    run = tmp_path / "runs" / "r"
    last = rows(run)[-1]
    assert 5 <= last["skipped_updates"] <= 11  # one in each 700 steps; two where the row ends one unroll and begins one
    assert last["updates"] == 50 * passes
    assert done.out.count(f"skipped: NaN or infinity in the {field}; its batch is runs/r/bad_batches/update_") == 5
    for row in rows(run):
        assert all(abs(value) < 1e9 for value in row.values())
    kept = torch.load(next((run / "bad_batches").iterdir()), weights_only=True)
    assert kept["field"] == field
    assert not kept["batch"][field].isfinite().all()
    assert_good(run)


@pytest.mark.parametrize(("trainer", "field"), [("monobeast", "observation"), ("polybeast", "reward")])
def test_an_environment_that_is_always_wrong_ends_the_run_with_what_it_learned(call, write, tmp_path, trainer, field):
    write("env", ENV.format(actions="Discrete(3)", when="Env.steps > 1000", what=WHAT[field]))
    flags = [
        "--preset",
        "classic",
        *SERIAL,
        "--total_steps",
        10**9,
        "--optimiser",
        "adam",
    ]  # whose moments know how many steps they have seen
    done = call("--env", "mine.env:Env", "--trainer", trainer, *flags)
    assert_one_line(done, "10 updates in a row were skipped (--max_skipped_updates)", f"in the {field}", "environment")
    assert done.code == 1
    run = tmp_path / "runs" / "r"
    state = assert_good(run)
    assert f"failed at step {state['learner']['steps']:,}" in done.out
    assert rows(run)[-1]["skipped_updates"] == 10
    good = state["learner"]["updates"] - 10
    assert state["learner"]["optimiser"]["moments"]["power2"].item() == pytest.approx(0.999**good, rel=1e-4)


def test_processes_hear_of_it_too(start, tmp_path):
    kwargs = json.dumps({"fail": "nan", "fail_after": 300, "shape": [3]})
    flags = [
        "--env",
        "Synthetic-v0",
        "--env_kwargs",
        kwargs,
        "--preset",
        "classic",
        *SERIAL,
        "--num_actor_processes",
        2,
    ]
    program = start(*flags, "--total_steps", 10**9, "--max_skipped_updates", 4).finish()
    assert_one_line(program, "4 updates in a row were skipped", "in the reward", "step()")
    assert assert_good(tmp_path / "runs" / "r")["learner"]["updates"] > 4


@pytest.mark.parametrize("field", ["loss", "gradient"])
def test_a_loss_of_ones_own_that_is_not_finite(call, write, tmp_path, field):
    source = """
        from beast.core.algorithms import impala

        Config, updates = impala.Config, 0

        def loss(outputs, batch, distribution, config):
            global updates
            updates += 1
            total, metrics = impala.loss(outputs, batch, distribution, config)
            if updates > 50:
                total = total * float("nan") if {loss} else total + (outputs.value.sum() * 0.0).sqrt()
            return total, metrics
    """
    write("loss", source.format(loss=field == "loss"))
    flags = ["--env", "Catch-v0", "--algorithm", "mine.loss", *SERIAL, "--total_steps", 10**9]
    done = call(*flags, "--checkpoint_every", 1e-6)
    assert_one_line(done, "10 updates in a row", "update 60", f"in the {field}", "--learning_rate")
    state = assert_good(tmp_path / "runs" / "r")
    assert state["learner"]["updates"] == 60
