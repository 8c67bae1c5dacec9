"""PolyBeast learns what MonoBeast learns: the same actions, unrolls and weights for the same seed in serial mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import rows

from beast.run.assemble import assemble
from beast.run.resolve import resolve_config
from beast.run.trainer import Trainer


def train(trainer: str, **flags: Any) -> Trainer:
    values = {"env": "Catch-v0", "num_actors": 8, "batch_size": 8, "total_steps": 4_000, "report_every": 1e6, "seed": 3}
    config, task = resolve_config(values | {"trainer": trainer} | flags)
    run = assemble(config, task, None, live=False)
    assert run.run() == 0
    return run


@pytest.mark.parametrize("flags", [{}, {"use_lstm": True}, {"env": "Pendulum-v1"}], ids=["mlp", "lstm", "continuous"])
def test_both_beasts_end_with_identical_weights_in_serial_mode(flags: dict[str, Any]) -> None:
    flags = {"num_actor_processes": 0} | flags
    mono, poly = train("monobeast", **flags), train("polybeast", **flags)
    assert mono.learner.updates == poly.learner.updates > 0
    assert torch.equal(mono.learner.acting.parameters, poly.learner.acting.parameters)


def test_weights_that_change_inside_an_unroll_are_another_policy_but_still_one_run() -> None:
    unroll = train("polybeast", num_actor_processes=0)
    step = train("polybeast", num_actor_processes=0, weights_sync="step")
    assert unroll.learner.updates == step.learner.updates
    # Serial mode publishes between unrolls only, so here both are the same policy on every row.
    assert torch.equal(unroll.learner.acting.parameters, step.learner.acting.parameters)


@pytest.mark.parametrize("inference", ["thread", "process"])
def test_workers_and_inference_learn_catch(inference: str) -> None:
    run = train(
        "polybeast", num_actors=16, num_actor_processes=2, total_steps=250_000, inference=inference, batch_size=16
    )
    row = run.reports.report(step=run.learner.steps, updates=run.learner.updates, learning_rate=0.0, stages={})
    assert row["mean_episode_return"] > 0.8
    counts = run.crew.counts()
    sizes = counts["batch_sizes"].nonzero()[0]
    assert sizes.min() >= 4  # a group is never split
    assert sizes.max() <= 16
    served = int((counts["batch_sizes"] * range(17)).sum())
    assert served >= run.learner.steps


PROBE = """
import sys
import gymnasium

class Probe(gymnasium.Wrapper):
    metric_names = ("models_imported",)

    def step(self, action):
        *step, info = self.env.step(action)
        info["models_imported"] = float(any(name.startswith("beast.models.") for name in sys.modules))
        return *step, info

def make_env():
    return Probe(gymnasium.make("CartPole-v1"))
"""


@pytest.mark.parametrize(("trainer", "imported"), [("polybeast", 0.0), ("monobeast", 1.0)])
def test_only_monobeasts_workers_import_model_code(start: Any, tmp_path: Path, trainer: str, imported: float) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    flags = ["--env", "probe:make_env", "--trainer", trainer, "--num_actors", 4, "--batch_size", 4]
    program = start(
        *flags, "--num_actor_processes", 2, "--total_steps", 4_000, "--xpid", "probe", "--report_every", 0.5
    )
    assert program.finish().code == 0, program.story()
    seen = [row["env/models_imported"] for row in rows(tmp_path / "runs" / "probe") if "env/models_imported" in row]
    assert seen
    assert set(seen) == {imported}
