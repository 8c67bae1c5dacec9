"""A batch learned from in parts is the batch learned from at once: gradients, statistics and terms."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.testing import assert_close

from beast.acting.models import ModelChoice
from beast.core.algorithms import Algorithm, PlainLoss, algorithm_of, appo, impala
from beast.core.data import ArraySpec, Batch
from beast.core.distributions import distribution_for
from beast.core.flat import FlatModel
from beast.core.gradients import Gradients
from beast.core.statistics import RunningStatistics

T, B, A, STACK = 3, 5, 4, 2
IMAGE = spaces.Box(0, 255, (STACK, 36, 36), np.uint8)
VECTOR = spaces.Box(-1, 1, (3,), np.float32)
ACTIONS = spaces.Discrete(A)
MODELS = [("impala_resnet", IMAGE), ("atari_shallow", IMAGE), ("impala_shallow", IMAGE), ("mlp", VECTOR)]
CPU = torch.device("cpu")
IMPALA = PlainLoss(impala.Config(), distribution_for(ACTIONS), impala.loss, impala.ADDITIVE)


def batch_of(space, net, seed=0):
    """As the store gives it: frames of stacks once."""
    generator = torch.Generator().manual_seed(seed)

    def floats(*shape):
        return torch.randn(*shape, generator=generator)

    def numbers(below, *shape):
        return torch.randint(below, shape, generator=generator)

    image = space is IMAGE
    return Batch(
        observation=numbers(256, B, STACK + T + 1, 36, 36).to(torch.uint8) if image else floats(T + 1, B, 3),
        reward=floats(T + 1, B), terminated=numbers(8, T + 1, B) == 0, truncated=numbers(8, T + 1, B) == 0,
        first=numbers(5, T + 1, B) == 0, last_action=numbers(A, T + 1, B), action=numbers(A, T, B),
        behaviour_logits=floats(T, B, A), core_state=tuple(floats(*x.shape) for x in net.initial_state(B)),
        policy_version=numbers(9, T, B), actor=torch.arange(B, dtype=torch.int32),
    )  # fmt: skip


def make(net, space, algorithm=IMPALA, dtype=torch.float32, rows=None):
    """Gradients of a model that learns from so many rows at a time."""
    net.micro_batch_rows = rows
    spec = ArraySpec(space.shape, space.dtype, stack=STACK if space is IMAGE else 1)
    return Gradients(FlatModel(net, CPU, dtype), algorithm, spec, CPU)


def learned(gradients, batch):
    """Vector, sums and terms of each pass, at one and the same weights."""
    return [
        (found.vector.clone(), found.sums.clone(), found.metrics)
        for found in gradients.of(gradients.to_device(batch))
    ]  # fmt: skip


def forwards_of(net):
    """The sizes of the batches that a model is given from now on."""
    sizes = []
    net.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].reward.shape[1]))
    return sizes


@pytest.mark.parametrize(("model", "space"), MODELS)
@pytest.mark.parametrize("use_lstm", [False, True], ids=["feed-forward", "lstm"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)], ids=["float32", "bfloat16"]
)
def test_gradients_of_parts_add_up_to_that_of_the_whole(model, space, use_lstm, dtype, tolerance):
    torch.manual_seed(0)
    net = ModelChoice(model, use_lstm, space, ACTIONS).build()
    batch = batch_of(space, net)
    gradients = make(net, space, dtype=dtype)
    ((whole, _, terms),) = learned(gradients, batch)
    gradients = make(net, space, dtype=dtype, rows=(T + 1) * dtype.itemsize // 2)  # in bfloat16 it is twice as many
    sizes = forwards_of(net)
    ((parts, _, terms_of_parts),) = learned(gradients, batch)
    assert sizes == [1, 2, 2]
    assert whole.norm() > 1
    assert_close(parts, whole, rtol=0, atol=tolerance * float(whole.abs().max()))
    # The mean of parts of different sizes is not quite that of the whole.
    assert_close(terms_of_parts.pop("entropy"), terms.pop("entropy"), rtol=1e-2, atol=1e-2)
    assert_close(terms_of_parts, terms, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("rows", "expected"), [(1, [1] * 5), (8, [1, 2, 2]), (12, [2, 3]), (19, [2, 3]), (20, [5])])
def test_parts_are_as_few_and_as_equal_as_can_be(rows, expected):
    net = ModelChoice("mlp", False, VECTOR, ACTIONS).build()
    gradients = make(net, VECTOR, rows=rows)
    sizes = forwards_of(net)
    learned(gradients, batch_of(VECTOR, net))
    assert sizes == expected


@pytest.mark.parametrize(("declared", "parts"), [({}, 1), ({"ADDITIVE": True, "MEANS": ("size",)}, B)])
def test_a_module_says_that_its_loss_adds_up_and_which_terms_do_not(declared, parts):
    def loss(outputs, batch, distribution, config):
        total, terms = impala.loss(outputs, batch, distribution, config)
        return total, {"pg_loss": terms["pg_loss"], "size": torch.tensor(float(batch.reward.shape[1]))}

    module = ModuleType("own")
    vars(module).update(Config=impala.Config, loss=loss, **declared)
    net = ModelChoice("mlp", False, VECTOR, ACTIONS).build()
    batch = batch_of(VECTOR, net)
    ((_, _, whole),) = learned(make(net, VECTOR), batch)
    gradients = make(net, VECTOR, algorithm_of(module, impala.Config(), distribution_for(ACTIONS)), rows=T + 1)
    ((_, _, terms),) = learned(gradients, batch)
    assert terms["size"] == B / parts
    for name in ("pg_loss", "total_loss"):
        assert_close(terms[name], whole[name], rtol=1e-5, atol=1e-5)


def test_all_passes_are_made_over_all_parts_and_means_stay_means():
    torch.manual_seed(0)
    net = ModelChoice("mlp", False, VECTOR, ACTIONS).build()
    batch, distribution = batch_of(VECTOR, net), distribution_for(ACTIONS)
    (whole, *others) = learned(make(net, VECTOR, appo.Algorithm(appo.Config(passes=3), distribution)), batch)
    gradients = make(net, VECTOR, appo.Algorithm(appo.Config(passes=3), distribution), rows=T + 1)
    sizes = forwards_of(net)
    passes = learned(gradients, batch)
    assert sizes == [1] * 3 * B
    assert len(passes) == 1 + len(others) == 3
    for vector, _, terms in passes:
        assert_close(vector, whole[0], rtol=1e-4, atol=1e-5)
        assert_close(terms["pg_loss"], whole[2]["pg_loss"], rtol=1e-4, atol=1e-5)
        assert 0 < terms["clipped"] <= 1


class Counted(Algorithm):
    """Sees rewards in its own running statistics; IMPALA's loss."""

    additive = True

    def __init__(self, config, distribution):
        super().__init__(config, distribution)
        self.module.rewards = RunningStatistics(1)

    def losses(self, forward, batch):
        self.module.rewards.observe(batch.reward[1:].unsqueeze(-1))
        yield impala.loss(forward(batch), batch, self.distribution, self.config)


class Normalised(nn.Module):
    """Running statistics of the observations before an mlp."""

    def __init__(self):
        super().__init__()
        self.net = ModelChoice("mlp", False, VECTOR, ACTIONS).build()
        self.seen = RunningStatistics(3)
        self.initial_state = self.net.initial_state

    def forward(self, inputs, core_state):
        return self.net(inputs._replace(observation=self.seen(inputs.observation)), core_state)


def test_running_statistics_see_every_part_once():
    torch.manual_seed(0)
    net = Normalised()
    batch = batch_of(VECTOR, net)
    algorithm = Counted(impala.Config(), distribution_for(ACTIONS))
    gradients = make(net, VECTOR, algorithm)
    ((_, whole, _),) = learned(gradients, batch)
    gradients = make(net, VECTOR, algorithm, rows=T + 1)
    ((_, parts, _),) = learned(gradients, batch)
    merged = []
    for sums in (whole, parts):
        offset = 0
        for part in gradients.parts:
            statistics = part.statistics.clone()
            part.merge(sums[offset : offset + part.num_sums])
            offset += part.num_sums
            merged.append(part.statistics.clone())
            part.statistics.copy_(statistics)
    assert_close(merged[2:], merged[:2], rtol=1e-5, atol=1e-6)
    assert merged[0].abs().sum() > 20  # the counts at least


def test_one_part_that_is_not_finite_spoils_the_gradient():
    net = ModelChoice("mlp", False, VECTOR, ACTIONS).build()
    batch = batch_of(VECTOR, net)
    batch.behaviour_logits[0, B - 1] = torch.nan
    ((vector, _, _),) = learned(make(net, VECTOR, rows=T + 1), batch)
    assert vector[0].isnan()
