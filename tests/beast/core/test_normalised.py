"""Observations that are normalised by running statistics, rewards that are scaled by them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.testing import assert_close

from beast.core.algorithms import PlainLoss, appo, impala
from beast.core.data import DISCOUNTED_RETURN, Batch, ModelInput, map_nested
from beast.core.distributions import distribution_for
from beast.core.flat import FlatModel
from beast.core.statistics import OBSERVATION_BOUND, NormalisedObservation, RunningStatistics, normalise_observations
from beast.models import mlp

VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)
MIXED = spaces.Dict(
    choice=spaces.Discrete(4),
    image=spaces.Box(0, 1, (3, 40, 40), np.float32),
    pair=spaces.Tuple((VECTOR, spaces.Box(0, 255, (5,), np.uint8))),
    scalar=spaces.Box(-1, 1, (), np.float32),
    stack=spaces.Box(-1, 1, (2, 3), np.float64),
)


def batches(*shapes, seed=0):
    """Vectors of three numbers of different places and widths."""
    generator = np.random.default_rng(seed)
    return [(generator.normal([50, -3, 0], [4, 0.1, 1], (*shape, 3))).astype(np.float32) for shape in shapes]


def test_mean_and_variance_are_numpys_over_all_batches():
    statistics, seen = RunningStatistics(3), batches((21, 4), (6, 8), (3, 1), (50, 16))
    for batch in seen:
        statistics(torch.from_numpy(batch))
        statistics.merge(statistics.take_sums())
    rows = np.concatenate([batch.reshape(-1, 3) for batch in seen]).astype(np.float64)
    assert statistics.count.item() == len(rows)
    assert_close(statistics.mean.double(), torch.from_numpy(rows.mean(0)), rtol=1e-5, atol=1e-5)
    assert_close(statistics.variance.double(), torch.from_numpy(rows.var(0)), rtol=1e-3, atol=1e-5)


def test_rows_that_do_not_count_leave_no_trace():
    (x,) = batches((10, 4))
    counted = np.random.default_rng(1).random((10, 4)) < 0.6
    some, all_of_them = RunningStatistics(3), RunningStatistics(3)
    some.observe(torch.from_numpy(x), torch.from_numpy(counted))
    all_of_them.observe(torch.from_numpy(x[counted]))
    assert_close(some.take_sums(), all_of_them.take_sums(), rtol=1e-4, atol=1e-3)


def observed(space, *leading):
    space.seed(0)
    return map_nested(lambda x: torch.as_tensor(np.broadcast_to(x, (*leading, *np.shape(x))).copy()), space.sample())


def test_vectors_of_floats_are_normalised_and_nothing_else():
    normalised, observation = NormalisedObservation(MIXED), observed(MIXED, 5, 2)
    for part, shift in zip(normalised.parts, (1.0, 2.0, 3.0), strict=True):  # in the space's order
        part.mean.fill_(shift)
    got = normalised.eval()(observation)
    assert torch.equal(got["choice"], observation["choice"])
    assert torch.equal(got["image"], observation["image"])
    assert torch.equal(got["pair"][1], observation["pair"][1])
    bound = OBSERVATION_BOUND
    assert_close(got["pair"][0], (observation["pair"][0] - 1).clamp(-bound, bound))
    assert_close(got["scalar"], observation["scalar"] - 2)
    assert_close(got["stack"], observation["stack"].float() - 3)


def test_normalised_numbers_stay_within_the_bound():
    normalised = NormalisedObservation(VECTOR).eval()
    x = torch.tensor([[[1e30, -1e30, 0.5]]])
    assert normalised(x).tolist() == [[[OBSERVATION_BOUND, -OBSERVATION_BOUND, 0.5]]]


def test_a_space_without_vectors_is_refused():
    with pytest.raises(ValueError, match="--normalise_observations"):
        normalise_observations(torch.nn.Linear(1, 1), spaces.Box(0, 255, (84, 84), np.uint8))


def model_input(observation):
    rows, batch = observation.shape[:2]
    zeros = torch.zeros(rows, batch)
    return ModelInput(observation, zeros, zeros.long(), zeros.bool())


def test_a_model_reads_what_it_would_read_of_observations_normalised_by_hand():
    torch.manual_seed(0)
    model = mlp.Model(VECTOR, spaces.Discrete(2))
    names = set(model.state_dict())
    plain = mlp.Model(VECTOR, spaces.Discrete(2))
    plain.load_state_dict(model.state_dict())
    normalise_observations(model, VECTOR)
    assert set(model.state_dict()) - names == {
        f"observation_statistics.parts.0.{name}" for name in ("count", "mean", "variance")
    }
    flat, (x,) = FlatModel(model), batches((6, 2))
    model(model_input(torch.from_numpy(x)), ())
    flat.merge(flat.sums())
    rows = x.reshape(-1, 3)
    by_hand = ((x - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-8)).astype(np.float32)
    (ours, _), (theirs, _) = (m(model_input(torch.from_numpy(o)), ()) for m, o in ((model.eval(), x), (plain, by_hand)))
    assert_close(ours.policy_logits, theirs.policy_logits, rtol=1e-3, atol=1e-4)
    assert_close(ours.value, theirs.value, rtol=1e-3, atol=1e-4)


# -- rewards ----------------------------------------------------------------------------------------------------------

T, B = 5, 3


def batch_of(reward, discounted, first):
    rows = torch.zeros(T + 1, B)
    return Batch(
        observation=torch.zeros(T + 1, B, 3), reward=reward, terminated=rows.bool(), truncated=rows.bool(), first=first,
        last_action=rows.long(), action=rows[:T].long(), behaviour_logits=torch.zeros(T, B, 2), core_state=(),
        policy_version=rows[:T].long(), extra={DISCOUNTED_RETURN: discounted},
    )  # fmt: skip


@pytest.mark.parametrize("module", [impala, appo])
def test_rewards_are_divided_by_the_deviation_of_discounted_returns(module):
    config = module.Config(scale_rewards=True, reward_clipping="none")
    distribution = distribution_for(spaces.Discrete(2))
    algorithm = getattr(module, "Algorithm", None)
    algorithm = algorithm(config, distribution) if algorithm else PlainLoss(config, distribution, module.loss)
    own, generator, seen = FlatModel(algorithm.module), torch.Generator().manual_seed(0), []
    for _ in range(4):
        reward, discounted = (7 * torch.randn(T + 1, B, generator=generator) for _ in range(2))
        first = torch.rand(T + 1, B, generator=generator) < 0.3
        scaled = algorithm.scaled(batch_of(reward, discounted, first))
        deviation = torch.cat(seen).std(unbiased=False) if seen else 1.0
        assert_close(scaled.reward, (reward / deviation).clamp(-10, 10), rtol=1e-4, atol=1e-4)
        seen.append(discounted[1:][~first[1:]])
        own.merge(own.sums())


def test_the_model_reads_rewards_as_they_are_and_the_loss_reads_them_scaled():
    config = impala.Config(scale_rewards=True, reward_clipping="none")
    read = []

    def forward(batch):
        read.append(batch.reward)
        return "outputs"

    algorithm = PlainLoss(config, distribution_for(spaces.Discrete(2)), lambda outputs, batch, *_: (batch.reward, {}))
    algorithm.module.discounted_returns.variance.fill_(4.0)
    reward = torch.arange(T * B + B).reshape(T + 1, B).float()
    ((seen, _),) = algorithm.losses(forward, batch_of(reward, reward, torch.zeros(T + 1, B, dtype=torch.bool)))
    assert torch.equal(read[0], reward)
    assert_close(seen, (reward / 2).clamp(max=10))


def test_scaled_rewards_are_not_clipped_a_second_time():
    with pytest.raises(ValueError, match="--scale_rewards needs --reward_clipping none"):
        impala.Config(scale_rewards=True)
