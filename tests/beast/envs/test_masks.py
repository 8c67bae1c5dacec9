"""Action masks: what is forbidden is never drawn, weighs nothing, and costs no gradient; actor and learner alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from beast.core.algorithms import impala
from beast.core.data import ACTION_MASK
from beast.run.assemble import assemble
from beast.run.resolve import resolve_config

FLAGS = {"num_actors": 4, "batch_size": 4, "total_steps": 480, "preset": "classic", "report_every": 1000}


def run_of(env, **flags):
    return assemble(*resolve_config({"env": f"masked_envs:{env}"} | FLAGS | flags), None, live=False)


@pytest.mark.parametrize("trainer", ["monobeast", "polybeast"])
@pytest.mark.parametrize("processes", [0, 1], ids=["serial", "process"])
@pytest.mark.parametrize(("env", "where"), [("Picky", "info"), ("Picky", "observation"), ("Half", "info")])
def test_what_is_forbidden_is_never_drawn(trainer, processes, env, where):
    run = run_of(env, env_kwargs={"where": where}, trainer=trainer, num_actor_processes=processes)
    assert run.run() == 0  # the environment raises if it is
    assert run.workers.restarts == 0
    size = {"Picky": 3, "Half": 2}[env]
    assert run.store.arrays["extra"][ACTION_MASK].shape[2:] == (size,)
    assert run.task.observation == (
        {"steps": run.task.observation["steps"]} if where == "observation" else run.task.observation
    )


def test_learner_and_actors_agree_on_what_is_allowed(monkeypatch):
    seen = []
    plain = impala.loss

    def loss(outputs, batch, distribution, config):
        seen.append((outputs.policy_logits.detach(), batch))
        return plain(outputs, batch, distribution, config)

    monkeypatch.setattr(impala, "loss", loss)
    run = run_of("Picky", num_actor_processes=0, total_steps=80)
    assert run.run() == 0
    (logits, batch), distribution = seen[0], run.task.model.distribution()
    forbidden = ~batch.extra[ACTION_MASK]
    assert forbidden[~batch.first].any()
    assert torch.equal(logits[:-1].isneginf(), batch.behaviour_logits.isneginf())
    assert torch.equal(logits.isneginf(), forbidden & ~forbidden.all(-1, keepdim=True))
    # On policy every weight is 1, and the entropy that of two choices at most.
    ratio = distribution.log_prob(logits[:-1], batch.action) - distribution.log_prob(
        batch.behaviour_logits, batch.action
    )
    torch.testing.assert_close(ratio, torch.zeros_like(ratio), rtol=0, atol=1e-5)
    assert (distribution.entropy(logits) <= np.log(2) + 1e-5).all()


def test_a_forbidden_choice_costs_no_gradient():
    run = run_of("Picky", num_actor_processes=0)
    gradients, model = run.learning.gradients, run.learner.acting.model
    batches = []
    of = gradients.of
    gradients.of = lambda staged: batches.append(staged) or of(staged)
    assert run.run() == 0
    steps = batches[0].batch._replace(extra={ACTION_MASK: torch.tensor([True, True, False]).expand(21, 4, 3)})
    steps.action.clamp_(max=1)
    next(iter(of(batches[0]._replace(batch=steps))))
    assert torch.equal(model.policy.weight.grad[2], torch.zeros_like(model.policy.weight.grad[2]))
    assert model.policy.weight.grad[:2].abs().max() > 0


def test_a_mask_of_the_wrong_size_is_refused_before_a_run_folder_is_made(call, tmp_path):
    (tmp_path / "wrong.py").write_text(
        "from masked_envs import Picky\n"
        "class Wrong(Picky):\n"
        "    def _say(self):\n"
        "        return super()._say()[0], {'action_mask': [1, 0]}\n"
    )
    outcome = call("--env", "wrong:Wrong")
    assert outcome.code == 2
    assert "action mask of 2 entries for 3 choices" in outcome.err
    assert not (tmp_path / "runs").exists()
