"""PPO's clipped surrogate on V-trace targets, several passes."""

from __future__ import annotations

import pytest
import torch
from gymnasium import spaces
from test_corrections import A, B, T, batch_of

from beast.core.algorithms import appo, impala
from beast.core.data import ModelOutput
from beast.core.distributions import distribution_for
from beast.run.assemble import assemble
from beast.run.resolve import resolve_config

DISCRETE = distribution_for(spaces.Discrete(A))
QUIET = {"reward_clipping": "none", "entropy_cost": 0.0, "baseline_cost": 0.0, "discounting": 0.875}


def gradient_of(loss, config, batch, logits, values):
    logits = logits.clone().requires_grad_()
    total, metrics = loss(ModelOutput(logits, values), batch, DISCRETE, config)
    return torch.autograd.grad(total, logits)[0], metrics


def on_policy(seed):
    batch = batch_of(seed)
    return batch, torch.cat([batch.behaviour_logits, torch.zeros(1, B, A)]), torch.randn(T + 1, B, dtype=torch.float64)


def test_on_policy_the_first_pass_has_impalas_gradient():
    batch, logits, values = on_policy(0)
    ours, metrics = gradient_of(appo.loss, appo.Config(**QUIET), batch, logits, values)
    theirs, _ = gradient_of(impala.loss, impala.Config(**QUIET), batch, logits, values)
    torch.testing.assert_close(ours, theirs)
    assert metrics["clipped"] == 0


def test_a_step_that_has_gone_far_enough_has_no_gradient_and_one_that_has_gone_back_has():
    batch, logits, values = on_policy(1)
    batch.terminated[:] = True  # advantages are r - V then, whatever the weights are
    real = ~batch.first[1:]
    plain, _ = gradient_of(appo.loss, appo.Config(**QUIET), batch, logits, values)
    wanted = torch.cat([3.0 * torch.sign(plain[:-1]), torch.zeros(1, B, A)])
    gone, metrics = gradient_of(appo.loss, appo.Config(**QUIET), batch, logits - wanted, values)
    assert metrics["clipped"] == 1
    assert not gone.any()
    back, _ = gradient_of(appo.loss, appo.Config(**QUIET), batch, logits + wanted, values)
    assert (back[:-1][real].abs().sum(-1) > 0).all()


@pytest.mark.parametrize(("name", "value"), [("passes", 0), ("clip_ratio", 0.0)])
def test_a_setting_out_of_range_is_refused_with_its_flag(name, value):
    with pytest.raises(ValueError, match=f"--{name} .*{value}"):
        appo.Config(**{name: value})


def test_passes_are_updates_and_steps_count_once():
    flags = {"env": "Catch-v0", "num_actors": 4, "batch_size": 4, "num_actor_processes": 0, "algorithm": "appo"}
    run = assemble(*resolve_config(flags | {"passes": 3, "total_steps": 240}), None, live=False)
    assert run.run() == 0
    assert (run.learner.steps, run.learner.updates) == (240, 9)
