"""PopArt: values are learned normalised, and mean the same before and after their normalisation moves."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from seams import two_passes
from torch.testing import assert_close

from beast.core import vtrace
from beast.core.algorithms import algorithm_of, appo, impala
from beast.core.algorithms.popart import BOUNDS, STEP
from beast.core.data import ArraySpec, Batch, ModelOutput
from beast.core.distributions import distribution_for
from beast.core.errors import ModelError
from beast.core.flat import FlatModel
from beast.core.gradients import Gradients
from beast.core.learner import Learner, master_parameters
from beast.core.optimisers import OptimiserConfig
from beast.models import mlp
from examples import custom_model

T, B, A = 8, 6, 3
VECTOR, ACTIONS = spaces.Box(-1, 1, (4,), np.float32), spaces.Discrete(A)
DISTRIBUTION, CPU = distribution_for(ACTIONS), torch.device("cpu")
MODULES = pytest.mark.parametrize("module", [impala, appo])


def batch_of(seed, scale=1.0, shift=0.0, size=B):
    draw = torch.Generator().manual_seed(seed)

    def rare(*shape):
        return torch.rand(*shape, generator=draw) < 0.15

    return Batch(
        observation=torch.randn(T + 1, size, 4, generator=draw),
        reward=torch.randn(T + 1, size, generator=draw) * scale + shift,
        terminated=rare(T + 1, size), truncated=torch.zeros(T + 1, size, dtype=torch.bool), first=rare(T + 1, size),
        last_action=torch.randint(A, (T + 1, size), generator=draw), action=torch.randint(A, (T, size), generator=draw),
        behaviour_logits=torch.randn(T, size, A, generator=draw), core_state=(),
        policy_version=torch.zeros(T, size, dtype=torch.int64),
    )  # fmt: skip


def config_of(module, **settings):
    return module.Config(**{"popart": True, "reward_clipping": "none"} | settings)


def learner_of(config, module=impala, net=None, dtype=torch.float32, rate=1e-3, rows=None):
    """A learner, and the gradients that it is fed with."""
    torch.manual_seed(0)
    net = net or mlp.Model(VECTOR, ACTIONS)
    net.micro_batch_rows = rows
    masters, algorithm = master_parameters(net), algorithm_of(module, config, DISTRIBUTION)
    gradients = Gradients(FlatModel(net, CPU, dtype), algorithm, ArraySpec(VECTOR.shape, VECTOR.dtype), CPU)
    return gradients, Learner(gradients, OptimiserConfig(learning_rate=rate), 10**9, masters)


def learn(pair, batch):
    gradients, learner = pair
    return [learner.apply(found, T * B).metrics for found in gradients.of(gradients.to_device(batch))]


def statistics_of(pair):
    """Mean and deviation of the targets, as float64."""
    module = pair[1].own.model.popart
    return module.mean.double().item(), module.variance.double().clamp(BOUNDS[0] ** 2, BOUNDS[1] ** 2).sqrt().item()


def values_of(pair, batch):
    """What the values of the float32 parameters mean, `[T+1, B]` float64."""
    model = copy.deepcopy(pair[1].acting.model).double()
    model.load_state_dict({name: value.double() for name, value in pair[1].model_state().items()})
    with torch.no_grad():
        outputs, _ = model(batch._replace(observation=batch.observation.double()).model_input(), ())
    mean, std = statistics_of(pair)
    return outputs.value.double() * std + mean


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e3, 500.0), (1e-3, 0.0), (0.01, -7.0)])
def test_values_mean_the_same_before_and_after_their_normalisation_moves(dtype, scale, shift):
    pair = learner_of(config_of(impala), dtype=dtype, rate=1e-12)  # so that the optimiser moves nothing
    seen = batch_of(99)
    for seed in range(5):
        before, (mean, std) = values_of(pair, seen), statistics_of(pair)
        learn(pair, batch_of(seed, scale, shift))
        now_mean, now_std = statistics_of(pair)
        assert abs(now_mean - mean) + abs(now_std - std) > 1e-4
        # As exact as float32 is at the size of mean and deviation.
        assert_close(values_of(pair, seen), before, rtol=0, atol=1e-6 * (std + now_std + abs(now_mean)))


@MODULES
@pytest.mark.parametrize("clipping", ["none", "abs_one"])
def test_the_losses_are_those_of_unnormalised_returns_advantages_divided_and_values_normalised(module, clipping):
    """Each term, and the gradients of logits and of the normalised value."""
    config = config_of(module, reward_clipping=clipping, discounting=0.9)
    batch, mean, std = batch_of(1, scale=5.0), 3.0, 7.0
    algorithm = algorithm_of(module, config, DISTRIBUTION)
    algorithm.module.popart.mean.fill_(mean)
    algorithm.module.popart.variance.fill_(std**2)
    algorithm.module.popart.count.fill_(1.0)
    logits, n = (torch.randn(T + 1, B, *shape).requires_grad_() for shape in ((A,), ()))
    total, terms = next(algorithm.losses(lambda _: ModelOutput(logits, n), batch))
    ours = torch.autograd.grad(total, (logits, n))

    value = (n * std + mean).detach()
    log_prob, real = DISTRIBUTION.log_prob(logits[:-1], batch.action), ~batch.first[1:]
    log_rho = torch.where(real, log_prob - DISTRIBUTION.log_prob(batch.behaviour_logits, batch.action), -torch.inf)
    reward = batch.reward[1:].clamp(-1, 1) if clipping == "abs_one" else batch.reward[1:]
    vs, advantages = vtrace.from_importance_weights(
        log_rho.detach(), 0.9 * (~batch.terminated[1:]).float(), reward, value[:-1], value[-1]
    )
    if module is impala:
        pg_loss = -(log_prob * advantages / std).sum()
    else:
        following = torch.cat([vs[1:], value[-1:]])
        advantages = real * (reward + 0.9 * (~batch.terminated[1:]).float() * following - value[:-1]) / std
        ratio = torch.where(real, log_rho, 0.0).exp()
        pg_loss = -torch.minimum(ratio * advantages, ratio.clamp(1 / 1.2, 1.2) * advantages).sum()
    baseline_loss = 0.5 * 0.5 * ((vs - mean) / std - n[:-1]).square().sum()
    entropy_loss, _ = impala.entropy_terms(logits[:-1], real, DISTRIBUTION, config)
    theirs = torch.autograd.grad(pg_loss + baseline_loss + entropy_loss, (logits, n))
    assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    expected = {
        "pg_loss": pg_loss.item(),
        "baseline_loss": baseline_loss.item(),
        "target_mean": mean,
        "target_std": std,
    }
    assert {name: terms[name].item() for name in expected} == pytest.approx(expected, rel=1e-4)


@MODULES
def test_moments_of_the_targets_move_by_the_papers_step_for_each_target(module):
    pair, (first, second) = learner_of(config_of(module), module), (0.0, 1.0)
    for seed in range(6):
        batch = batch_of(seed, 3.0, 2.0)
        value, real = values_of(pair, batch), ~batch.first[1:]
        with torch.no_grad():
            logits = pair[1].acting.model(batch.model_input(), ())[0].policy_logits
        log_prob = DISTRIBUTION.log_prob(logits[:-1], batch.action)
        log_rhos = log_prob - DISTRIBUTION.log_prob(batch.behaviour_logits, batch.action)
        vs = impala.returns(log_rhos, value, batch, config_of(impala)).vs[real].double()
        weight = len(vs) / (len(vs) + 1 / STEP)
        first, second = ((1 - weight) * old + weight * (vs**p).mean().item() for old, p in ((first, 1), (second, 2)))
        learn(pair, batch)
        mean, std = statistics_of(pair)
        assert mean == pytest.approx(first, rel=1e-4)
        assert std**2 == pytest.approx(second - first**2, rel=1e-4)


@pytest.mark.parametrize(("scale", "bound"), [(0.0, BOUNDS[0]), (1e12, BOUNDS[1])])
def test_the_deviation_has_bounds(scale, bound):
    pair, batch = learner_of(config_of(impala, discounting=0.0)), batch_of(0, scale)
    batch.first.fill_(False)
    for _ in range(2):
        pair[1].own.model.popart.variance.fill_(scale**2)
        learn(pair, batch)
    assert statistics_of(pair)[1] == pytest.approx(bound, rel=1e-4)
    assert pair[1].acting.parameters.isfinite().all()
    before = values_of(pair, batch)
    pair[1].own.model.popart.variance.mul_(0.5)  # a move that the bound hides
    assert_close(values_of(pair, batch), before)


@MODULES
def test_the_first_batch_is_only_measured_and_rewards_of_any_size_lead_to_one_policy(module):
    torch.manual_seed(1)
    net = mlp.Model(VECTOR, ACTIONS)
    torch.nn.init.zeros_(net.baseline.weight)  # values that are not of the rewards' size have to be unlearned first
    pairs = [learner_of(config_of(module), module, copy.deepcopy(net)) for _ in range(2)]
    start, policies = pairs[0][1].model_state(), []
    for pair, scale in zip(pairs, (1e3, 1e5), strict=True):
        (first, *others) = learn(pair, batch_of(0, scale))
        assert first["grad_norm"] == 0
        if module is appo:
            assert others[0]["grad_norm"] > 0
        else:
            state = pair[1].model_state()
            assert all(torch.equal(state[name], start[name]) for name in state if not name.startswith("baseline"))
        for seed in range(1, 10):
            (metrics, *_) = learn(pair, batch_of(seed, scale))
            assert 1 < metrics["grad_norm"] < 1e4
        policies.append(pair[1].model_state()["policy.weight"])
    assert not torch.equal(policies[0], start["policy.weight"])
    assert_close(
        policies[0], policies[1], rtol=0, atol=0.02 * (policies[0] - start["policy.weight"]).abs().max().item()
    )


@MODULES
def test_parts_of_a_batch_and_the_whole_of_it_lead_to_the_same(module):
    whole, parts = (learner_of(config_of(module), module, rows=rows) for rows in (None, 2 * (T + 1)))
    for seed in range(3):
        learn(whole, batch_of(seed, 100.0))
        learn(parts, batch_of(seed, 100.0))
    assert_close(parts[1].acting.parameters, whole[1].acting.parameters, rtol=1e-3, atol=1e-5)
    assert_close(parts[1].own.statistics, whole[1].own.statistics, rtol=1e-5, atol=1e-6)


def test_a_skipped_update_takes_all_of_it_back():
    pair = learner_of(config_of(impala))
    learn(pair, batch_of(0, 50.0))
    before = pair[1].state_dict()
    assert not learn(pair, batch_of(1, torch.nan))[0]["finite"]
    after = pair[1].state_dict()
    for kept, now in ((before["model"], after["model"]), (before["algorithm"]["module"], after["algorithm"]["module"])):
        assert kept
        assert all(torch.equal(now[name], value) for name, value in kept.items())
    learn(pair, batch_of(2, 50.0))
    assert statistics_of(pair)[1] != before["algorithm"]["module"]["popart.variance"].sqrt().item()


def test_a_saved_learner_goes_on_bit_for_bit():
    one, other = learner_of(config_of(appo), appo), learner_of(config_of(appo), appo)
    learn(one, batch_of(0, 10.0))
    other[1].load_state_dict(copy.deepcopy(one[1].state_dict()))
    for pair in (one, other):
        learn(pair, batch_of(1, 10.0))
    assert torch.equal(one[1].acting.parameters, other[1].acting.parameters)
    assert torch.equal(one[1].own.statistics, other[1].own.statistics)


@pytest.mark.parametrize("passes", [1, 3])
def test_an_algorithm_of_ones_own_with_a_hook_and_a_state_of_its_own_keeps_them(passes):
    calls = []

    class Algorithm(two_passes.Algorithm):
        def losses(self, forward, batch):
            assert self.config.reward_clipping == "none"  # rewards come clipped, and divided by sigma
            return itertools.chain.from_iterable(super(Algorithm, self).losses(forward, batch) for _ in range(passes))

        def bind(self, model):
            calls.append(type(model))

        def after_update(self, parameters, before, now):
            calls.append(sorted(parameters)[:2])

        def state_dict(self):
            return {"calls": len(calls)}

        def load_state_dict(self, state):
            calls.append(state)

    module = SimpleNamespace(Config=impala.Config, Algorithm=Algorithm)
    pair = learner_of(config_of(impala, reward_clipping="abs_one"), module, rate=1e-12)
    before = values_of(pair, batch_of(9))
    found = learn(pair, batch_of(0, 1e6))
    assert len(found) == 2 * passes
    assert found[-1]["target_std"] < 10  # of clipped rewards
    assert calls == [mlp.Model, *[["baseline.bias", "baseline.weight"]] * 2 * passes]
    assert_close(values_of(pair, batch_of(9)), before, rtol=0, atol=1e-5)
    state = pair[1].state_dict()
    assert state["algorithm"]["state"] == {"calls": 1 + 2 * passes}
    pair[1].load_state_dict(state)
    assert calls[-1] == {"calls": 1 + 2 * passes}


class Wrapped(torch.nn.Module):
    """A model whose value head is a part of another one."""

    def __init__(self):
        super().__init__()
        self.net = mlp.Model(VECTOR, ACTIONS)

    @property
    def baseline(self):
        return self.net.baseline

    def forward(self, inputs, core_state):
        return self.net(inputs, core_state)


@pytest.mark.parametrize(
    "make",
    [
        Wrapped,
        lambda: custom_model.Model(VECTOR, ACTIONS),
        lambda: mlp.Model(VECTOR, ACTIONS, config=mlp.Model.Config(separate_value=True)),
    ],
    ids=["wrapped", "example", "a network of its own for values"],
)
def test_a_model_says_which_layer_its_values_come_from(make):
    net, seen = make(), batch_of(99)
    state = net.initial_state(B) if hasattr(net, "initial_state") else ()
    pair = learner_of(config_of(impala), net=net, rate=1e-12)

    def meant():
        mean, std = statistics_of(pair)
        with torch.no_grad():
            return net(seen.model_input(), state)[0].value * std + mean

    before = meant()
    learn(pair, batch_of(0, 100.0)._replace(core_state=state))
    assert statistics_of(pair)[1] > 5
    assert_close(meant(), before, rtol=0, atol=1e-4)


@pytest.mark.parametrize("baseline", [None, torch.nn.Linear(3, 2), torch.nn.Linear(3, 1, bias=False), torch.nn.ReLU()])
def test_a_model_without_a_linear_value_head_is_refused_in_one_line(baseline):
    net = torch.nn.Module()
    net.policy, net.baseline = torch.nn.Linear(3, A), baseline
    with pytest.raises(ModelError, match=r"--popart.*`baseline`.*leave --popart out") as error:
        learner_of(config_of(impala), net=net)
    assert "\n" not in str(error.value)


def test_rewards_are_not_scaled_a_second_time():
    with pytest.raises(ValueError, match="--popart and --scale_rewards"):
        config_of(impala, scale_rewards=True)
