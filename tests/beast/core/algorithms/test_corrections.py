"""The paper's four corrections: losses and gradients against direct sums, a step at a time."""

from __future__ import annotations

import pytest
import torch
from gymnasium import spaces

from beast.core.algorithms import impala
from beast.core.algorithms.corrections import CORRECTIONS
from beast.core.data import Batch, ModelOutput
from beast.core.distributions import distribution_for

T, B, A = 6, 3, 4
DISCOUNT = 0.875  # exact in float32, in which the loss has it


def batch_of(seed):
    draw = torch.Generator().manual_seed(seed)
    first = torch.rand(T + 1, B, generator=draw) < 0.2
    return Batch(
        observation=torch.zeros(T + 1, B, 1),
        reward=torch.randn(T + 1, B, generator=draw, dtype=torch.float64),
        terminated=torch.rand(T + 1, B, generator=draw) < 0.2,
        truncated=torch.zeros(T + 1, B, dtype=torch.bool),
        first=first,
        last_action=torch.zeros(T + 1, B, dtype=torch.int64),
        action=torch.randint(A, (T, B), generator=draw),
        behaviour_logits=torch.randn(T, B, A, generator=draw, dtype=torch.float64),
        core_state=(),
        policy_version=torch.zeros(T, B, dtype=torch.int64),
    )


def direct(name, logits, values, batch, config):
    """The policy-gradient and value terms as the paper's section 5.2.2 writes them, without any recursion on tensors."""
    policy = torch.zeros((), dtype=torch.float64)
    squares = torch.zeros((), dtype=torch.float64)
    for b in range(B):
        pi, mu, real = [], [], []
        for t in range(T):
            a = batch.action[t, b]
            pi.append(logits[t, b].softmax(-1)[a])
            mu.append(batch.behaviour_logits[t, b].softmax(-1)[a])
            real.append(not batch.first[t + 1, b])
        target = [values[t, b].detach() for t in range(T + 1)]
        for t in reversed(range(T)):
            ratio = (pi[t] / mu[t]).detach()
            rho, c = (ratio.clamp(max=1.0), ratio.clamp(max=1.0)) if name == "vtrace" else (1.0, 1.0)
            value, following = values[t, b].detach(), values[t + 1, b].detach()
            discount = DISCOUNT * (not batch.terminated[t + 1, b])
            advantage = batch.reward[t + 1, b] + discount * target[t + 1] - value
            if real[t]:
                delta = rho * (batch.reward[t + 1, b] + discount * following - value)
                target[t] = value + delta + discount * config.trace_lambda * c * (target[t + 1] - following)
                weight = ratio.clamp(max=1.0) if name in ("vtrace", "one_step") else 1.0
                log_pi = (pi[t] + 1e-6).log() if name == "epsilon" else pi[t].log()
                policy = policy - weight * log_pi * advantage
            squares = squares + (target[t] - values[t, b]) ** 2
    return policy, 0.5 * config.baseline_cost * squares


@pytest.mark.parametrize("trace_lambda", [1.0, 0.7])
@pytest.mark.parametrize("name", CORRECTIONS)
def test_losses_and_gradients_are_those_of_direct_sums(name, trace_lambda):
    config = impala.Config(
        discounting=DISCOUNT, reward_clipping="none", entropy_cost=0.0, correction=name, trace_lambda=trace_lambda
    )
    for seed in range(5):
        batch = batch_of(seed)
        logits, values = (torch.randn(T + 1, B, *shape, dtype=torch.float64).requires_grad_() for shape in ((A,), ()))
        outputs = ModelOutput(logits, values)
        total, metrics = impala.loss(outputs, batch, distribution_for(spaces.Discrete(A)), config)
        policy, squares = direct(name, logits, values, batch, config)
        torch.testing.assert_close(metrics["pg_loss"], policy.detach())
        torch.testing.assert_close(metrics["baseline_loss"], squares.detach())
        ours, theirs = (torch.autograd.grad(loss, (logits, values)) for loss in (total, policy + squares))
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-7)


def test_on_policy_three_of_them_are_one():
    batch = batch_of(1)
    logits = torch.cat([batch.behaviour_logits, torch.zeros(1, B, A, dtype=torch.float64)])
    outputs = ModelOutput(logits, torch.randn(T + 1, B, dtype=torch.float64))
    losses = {
        name: impala.loss(outputs, batch, distribution_for(spaces.Discrete(A)), impala.Config(correction=name))[0]
        for name in CORRECTIONS
    }
    for name in ("one_step", "none"):
        torch.testing.assert_close(losses[name], losses["vtrace"])
    torch.testing.assert_close(losses["epsilon"], losses["vtrace"], rtol=1e-3, atol=1e-3)


def test_an_unknown_correction_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="--correction must be one of vtrace, one_step, epsilon, none, got 'retrace'"):
        impala.Config(correction="retrace")
