"""Action spaces as distributions, against torch.distributions and against what they draw."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, iterate
from torch.testing import assert_close

from beast.core.data import flatten, map_nested
from beast.core.distributions import distribution_for
from beast.core.squashing import bounded

DISCRETE = spaces.Discrete(5)
MULTI = spaces.MultiDiscrete([3, 2, 4])
BOX = spaces.Box(np.array([-1.0, 0.0, 5.0], np.float32), np.array([1.0, 10.0, 5.5], np.float32))
BINARY = spaces.MultiBinary((2, 2))
DEEP = spaces.Dict(
    aim=spaces.Tuple((spaces.Box(-2, 2, (2,)), spaces.Discrete(3, start=-1))),
    buttons=spaces.MultiBinary(2),
    mode=DISCRETE,
)
CHOICES = spaces.Tuple((DISCRETE, spaces.Dict(a=MULTI, b=spaces.Discrete(2))))
ALL = {"Discrete": DISCRETE, "MultiDiscrete": MULTI, "Box": BOX, "MultiBinary": BINARY, "Dict": DEEP, "Tuple": CHOICES}


def one(actions, index):
    """One environment's action out of a batch."""
    return map_nested(lambda array: array[index], actions)


def params_for(distribution, *shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, distribution.num_params, generator=generator, dtype=dtype)


def draw(distribution, params, count, seed=0):
    """`count` draws from one parameter vector, as the inference makes them."""
    noise = distribution.noise(np.random.default_rng(seed), count)
    assert noise.shape == (count, distribution.noise_size)
    assert noise.dtype == np.float32
    return distribution.sample(params.expand(count, -1), torch.from_numpy(noise))


def check_frequencies(draws, probabilities):
    """Each count lies within five standard deviations of what the probabilities promise."""
    count = len(draws)
    for value, p in enumerate(probabilities.tolist()):
        seen = int((draws == value).sum())
        assert abs(seen - count * p) <= 5 * math.sqrt(count * p * (1 - p)), (value, p, seen)


@pytest.mark.parametrize("space", ALL.values(), ids=ALL)
@pytest.mark.parametrize("leading", [(), (4,), (3, 2)])
def test_sizes_and_dtypes_are_the_announced_ones(space, leading):
    distribution = distribution_for(space)
    params = params_for(distribution, *leading, dtype=torch.float32)
    noise = torch.zeros(*leading, distribution.noise_size)
    spec = distribution.action_spec
    for action in (distribution.sample(params, noise), distribution.mode(params)):
        assert action.shape == (*leading, *spec.shape)
        assert torch.empty(0, dtype=action.dtype).numpy().dtype == spec.dtype
        assert distribution.log_prob(params, action).shape == leading
    assert distribution.entropy(params).shape == leading


@pytest.mark.parametrize("space", ALL.values(), ids=ALL)
def test_draws_are_in_the_action_space(space):
    distribution = distribution_for(space)
    actions = distribution.to_env(draw(distribution, params_for(distribution, dtype=torch.float32), 50).numpy())
    assert {len(leaf) for leaf in flatten(actions)} == {50}
    for action in iterate(batch_space(space, 50), actions):  # as SyncVectorEnv takes them apart
        assert space.contains(action)


@pytest.mark.parametrize("space", ALL.values(), ids=ALL)
def test_equal_seeds_draw_equal_actions_however_many_at_a_time(space):
    distribution = distribution_for(space)
    params = params_for(distribution, dtype=torch.float32)
    together = draw(distribution, params, 6, seed=3)
    generator = np.random.default_rng(3)
    for action in together:
        noise = torch.from_numpy(distribution.noise(generator, 1))
        assert torch.equal(distribution.sample(params.unsqueeze(0), noise)[0], action)
    assert not torch.equal(together, draw(distribution, params, 6, seed=4))


# -- Discrete ---------------------------------------------------------------------------------------------------------


def test_categorical_draws_as_often_as_the_softmax_says():
    distribution = distribution_for(DISCRETE)
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, -torch.inf])
    check_frequencies(draw(distribution, logits, 40_000), logits.softmax(-1))


def test_categorical_log_prob_and_entropy_are_those_of_torch():
    distribution = distribution_for(DISCRETE)
    logits = params_for(distribution, 7, 3)
    action = torch.randint(5, (7, 3), generator=torch.Generator().manual_seed(1))
    expected = torch.distributions.Categorical(logits=logits)
    assert_close(distribution.log_prob(logits, action), expected.log_prob(action), rtol=1e-12, atol=1e-12)
    assert_close(distribution.entropy(logits), expected.entropy(), rtol=1e-12, atol=1e-12)
    assert torch.equal(distribution.mode(logits), logits.argmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_actions_have_no_share_in_entropy_or_gradients(dtype):
    distribution = distribution_for(DISCRETE)
    logits = torch.tensor([0.3, -torch.inf, 1.0, -torch.inf, -0.5], dtype=dtype, requires_grad=True)
    allowed = torch.tensor([0, 2, 4])
    expected = torch.distributions.Categorical(logits=logits[allowed].detach())
    entropy = distribution.entropy(logits)
    assert_close(entropy, expected.entropy())
    log_prob = distribution.log_prob(logits, torch.tensor(2))
    assert_close(log_prob, expected.log_prob(torch.tensor(1)))
    (entropy + log_prob).backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[[1, 3]].tolist() == [0.0, 0.0]
    assert logits.grad[allowed].count_nonzero() == 3


def test_a_single_allowed_action_is_certain():
    distribution = distribution_for(DISCRETE)
    logits = torch.full((5,), -torch.inf)
    logits[3] = 0.2
    logits.requires_grad_()
    entropy = distribution.entropy(logits)
    assert entropy == 0
    assert (draw(distribution, logits.detach(), 100) == 3).all()
    entropy.backward()
    assert logits.grad.isfinite().all()


def test_discrete_start_is_added_at_the_environments_door_only():
    space = spaces.Discrete(3, start=-1)
    distribution = distribution_for(space)
    params = torch.tensor([0.0, 50.0, 0.0])
    stored = draw(distribution, params, 4)
    assert stored.tolist() == [1, 1, 1, 1]
    assert distribution.to_env(stored.numpy()).tolist() == [0, 0, 0, 0]
    assert distribution.to_env(np.array([0, 1, 2])).tolist() == [-1, 0, 1]


# -- MultiDiscrete ----------------------------------------------------------------------------------------------------


def test_multi_categorical_draws_each_part_from_its_own_softmax():
    distribution = distribution_for(MULTI)
    logits = params_for(distribution, seed=5, dtype=torch.float32)
    draws = draw(distribution, logits, 20_000)
    for part, own in zip(draws.unbind(-1), logits.split([3, 2, 4]), strict=True):
        check_frequencies(part, own.softmax(-1))
    # And independently: the joint frequency of two parts is the product of theirs.
    joint = torch.outer(logits[:3].softmax(-1), logits[3:5].softmax(-1)).flatten()
    check_frequencies(draws[:, 0] * 2 + draws[:, 1], joint)


def test_multi_categorical_log_prob_and_entropy_are_sums_over_parts():
    distribution = distribution_for(MULTI)
    logits = params_for(distribution, 6, 2)
    generator = torch.Generator().manual_seed(2)
    action = torch.stack([torch.randint(n, (6, 2), generator=generator) for n in (3, 2, 4)], dim=-1)
    parts = [torch.distributions.Categorical(logits=part) for part in logits.split([3, 2, 4], dim=-1)]
    log_prob = sum(part.log_prob(a) for part, a in zip(parts, action.unbind(-1), strict=True))
    assert_close(distribution.log_prob(logits, action), log_prob, rtol=1e-12, atol=1e-12)
    assert_close(distribution.entropy(logits), sum(p.entropy() for p in parts), rtol=1e-12, atol=1e-12)
    modes = torch.stack([part.logits.argmax(-1) for part in parts], dim=-1)
    assert torch.equal(distribution.mode(logits), modes)


def test_multi_discrete_of_any_shape_and_start_reaches_the_environment_as_it_asks():
    space = spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[0, 10], [20, 30]]))
    distribution = distribution_for(space)
    assert distribution.num_params == 14
    assert distribution.action_spec.shape == (4,)
    actions = distribution.to_env(np.array([[0, 1, 2, 3], [1, 2, 3, 4]]))
    assert actions.tolist() == [[[0, 11], [22, 33]], [[1, 12], [23, 34]]]
    assert all(space.contains(action) for action in actions)


# -- Box --------------------------------------------------------------------------------------------------------------


def test_gaussian_log_prob_and_entropy_are_those_of_torch():
    distribution = distribution_for(BOX)
    params = params_for(distribution, 5, 2).clamp(max=2.0)  # where no deviation is clamped
    mean, log_std = params.chunk(2, dim=-1)
    expected = torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)
    action = mean + 0.3
    assert_close(distribution.log_prob(params, action), expected.log_prob(action), rtol=1e-12, atol=1e-12)
    assert_close(distribution.entropy(params), expected.entropy(), rtol=1e-12, atol=1e-12)
    assert torch.equal(distribution.mode(params), mean)


def test_gaussian_draws_have_the_mean_and_deviation_of_the_parameters():
    distribution = distribution_for(BOX)
    params = torch.tensor([0.5, -2.0, 0.0, -1.0, 0.0, 1.0])
    draws = draw(distribution, params, 20_000)
    deviation = params[3:].exp()
    assert_close(draws.mean(0), params[:3], rtol=0, atol=5 * float(deviation.max()) / math.sqrt(20_000))
    assert_close(draws.std(0) / deviation, torch.ones(3), rtol=0.03, atol=0)


def test_gaussian_deviation_is_as_it_is_said_inside_its_bounds_and_held_near_them_outside():
    said = torch.tensor([-1e30, -50.0, -5.0, 0.5, 2.0, 2.01, 50.0, 1e30], dtype=torch.float64)
    meant = bounded(said)
    assert torch.equal(meant[2:5], said[2:5])
    assert (meant.diff() >= 0).all()
    assert_close(meant[[0, -1]], torch.tensor([-6.0, 3.0], dtype=torch.float64))
    assert 0.0098 < meant[5] - 2 < 0.01


@pytest.mark.parametrize("log_std", [-40.0, -5.001, -5.0, 2.0, 2.001, 40.0])
def test_a_deviation_outside_its_bounds_still_has_a_gradient(log_std):
    distribution = distribution_for(spaces.Box(-1, 1, (1,)))
    params = torch.tensor([0.3, log_std], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(distribution.entropy(params), params)
    assert 1e-4 < slope[1] <= 1
    step = torch.tensor([0.0, 1e-6], dtype=torch.float64)  # the slope has no jump either
    near = (distribution.entropy(params + step) - distribution.entropy(params - step)) / 2e-6
    assert_close(near.detach(), slope[1], rtol=1e-4, atol=1e-6)


EDGED = spaces.Box(np.array([-1.0, 0.0, -np.inf], np.float32), np.array([1.0, np.inf, np.inf], np.float32))


@pytest.mark.parametrize("log_std", [-4.0, -1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("mean", [0.0, 0.7, -3.0, 12.0])
def test_squashed_entropy_is_what_draws_say(mean, log_std):
    """Of tanh, softplus and no squashing, one dimension each."""
    distribution = distribution_for(EDGED)
    params = torch.tensor([mean] * 3 + [log_std] * 3, dtype=torch.float64)
    u = draw(distribution, params, 200_000)
    log_slopes = torch.stack([2 * (math.log(2) - u[:, 0] - F.softplus(-2 * u[:, 0])), F.logsigmoid(u[:, 1])], dim=1)
    drawn = log_slopes.sum(1) - distribution.log_prob(params, u)
    tolerance = 5 * drawn.std().item() / math.sqrt(len(u)) + 0.03 * math.exp(log_std)  # quadrature has 24 nodes
    assert abs(distribution.squashed_entropy(params) - drawn.mean()) < tolerance


def test_squashed_entropy_is_largest_where_actions_are_about_uniform():
    distribution = distribution_for(spaces.Box(-1, 1, (1,)))
    log_stds = torch.arange(-3, 2, 0.05, dtype=torch.float64)
    entropies = distribution.squashed_entropy(torch.stack([torch.zeros_like(log_stds), log_stds], dim=-1))
    widest = log_stds[entropies.argmax()].exp()
    assert 0.7 < widest < 1.0
    assert math.log(2) - 0.01 < entropies.max() < math.log(2)  # log 2 is the uniform distribution's
    plain = distribution.entropy(torch.stack([torch.zeros_like(log_stds), log_stds], dim=-1))
    assert plain.argmax() == len(log_stds) - 1


def test_squashed_entropy_of_a_bang_bang_policy_asks_it_back():
    distribution = distribution_for(spaces.Box(-1, 1, (1,)))
    params = torch.tensor([8.0, 1.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(distribution.squashed_entropy(params), params)
    assert slope[0] < -1
    (slope,) = torch.autograd.grad(distribution.entropy(params), params)
    assert slope.tolist() == [0.0, 1.0]


def test_squashed_entropy_of_parts_adds_up_and_that_of_choices_is_their_own():
    deep, aim = distribution_for(DEEP), distribution_for(spaces.Box(-2, 2, (2,)))
    params = params_for(deep, 7)
    assert_close(
        deep.squashed_entropy(params) - deep.entropy(params),
        aim.squashed_entropy(params[:, :4]) - aim.entropy(params[:, :4]),
    )
    for space in (DISCRETE, MULTI):
        choices = distribution_for(space)
        params = params_for(choices, 7)
        assert torch.equal(choices.squashed_entropy(params), choices.entropy(params))


def test_log_deviations_are_known_by_their_places():
    assert distribution_for(DISCRETE).log_stds.tolist() == [False] * 5
    assert distribution_for(BOX).log_stds.tolist() == [False] * 3 + [True] * 3
    assert distribution_for(DEEP).log_stds.nonzero()[0].tolist() == [2, 3]


def test_box_actions_are_squashed_into_the_bounds():
    distribution = distribution_for(BOX)
    far = np.array([[-100.0] * 3, [0.0] * 3, [100.0] * 3], np.float32)
    actions = distribution.to_env(far)
    assert_close(torch.from_numpy(actions), torch.tensor([[-1.0, 0.0, 5.0], [0.0, 5.0, 5.25], [1.0, 10.0, 5.5]]))
    some = distribution.to_env(np.array([[0.5, -0.5, 0.0]], np.float32))
    assert_close(torch.from_numpy(some), torch.tensor([[math.tanh(0.5), 5 - 5 * math.tanh(0.5), 5.25]]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_box_actions_never_leave_the_bounds_by_rounding(dtype):
    bounds = np.random.default_rng(0).uniform(-3, 3, (2, 1000)).astype(dtype)
    space = spaces.Box(bounds.min(0), bounds.max(0), dtype=dtype)
    distribution = distribution_for(space)
    extremes = distribution.to_env(np.stack([np.full(1000, -50.0), np.full(1000, 50.0)]).astype(np.float32))
    assert all(space.contains(action) for action in extremes)


def test_box_of_narrow_integers_is_covered_whole():
    space = spaces.Box(-100, 120, (2,), np.int8)  # high - low and high + low overflow int8
    distribution = distribution_for(space)
    actions = distribution.to_env(np.array([[-50.0, 50.0], [0.0, 0.0]], np.float32))
    assert actions.dtype == np.int8
    assert actions.tolist() == [[-100, 120], [10, 10]]


def test_box_shape_and_dtype_are_restored():
    space = spaces.Box(-2, 2, (2, 3), np.float64)
    distribution = distribution_for(space)
    assert distribution.action_spec.shape == (6,)
    actions = distribution.to_env(np.zeros((4, 6), np.float32))
    assert actions.shape == (4, 2, 3)
    assert all(space.contains(action) for action in actions)


INTEGER_BOXES = [(0, 2, np.int64), (-3, 1, np.int8), (0, 255, np.uint8), (0, 1, bool)]


@pytest.mark.parametrize(("low", "high", "dtype"), INTEGER_BOXES, ids=lambda value: getattr(value, "__name__", None))
def test_integers_of_a_box_have_equal_shares_of_the_squashed_range(low, high, dtype):
    """The top one too: with rounding down over high - low it would never be drawn."""
    space = spaces.Box(low, high, (1,), dtype)
    count = int(high) - int(low) + 1
    squashed = (np.arange(100 * count) + 0.5) / (100 * count)  # evenly over (0, 1)
    actions = distribution_for(space).to_env(np.arctanh(2 * squashed - 1)[:, None])
    assert actions.dtype == dtype
    values, counts = np.unique(actions, return_counts=True)
    assert values.astype(int).tolist() == list(range(int(low), int(high) + 1))
    assert counts.tolist() == [100] * count


def test_an_integer_box_draws_its_top_value():
    distribution = distribution_for(spaces.Box(0, 2, (1,), np.int64))
    drawn = distribution.to_env(draw(distribution, torch.zeros(2), 10_000).numpy())
    # tanh of a standard normal is beyond 1/3 as often as the normal is beyond artanh(1/3).
    outer = 0.5 * math.erfc(math.atanh(1 / 3) / math.sqrt(2))
    check_frequencies(drawn[:, 0], torch.tensor([outer, 1 - 2 * outer, outer]))


def test_a_box_without_bounds_is_a_plain_gaussian_and_one_bound_is_kept():
    largest = np.finfo(np.float32).max
    low, high = (
        np.array([-np.inf, 1, -np.inf, -1, -largest], np.float32),
        np.array([np.inf, np.inf, 2, 1, largest], np.float32),
    )
    space = spaces.Box(low, high)
    distribution = distribution_for(space)
    stored = np.array([[-3.0, -3.0, -3.0, -3.0, -3.0], [0.5] * 5, [40.0] * 5, [-1e4] * 5], np.float32)
    actions = distribution.to_env(stored)
    assert all(space.contains(action) for action in actions)
    np.testing.assert_array_equal(actions[:, 0], stored[:, 0])
    np.testing.assert_array_equal(actions[:, 4], stored[:, 4])
    np.testing.assert_allclose(actions[:, 1], 1 + np.log1p(np.exp(stored[:, 1].astype(float).clip(max=40))), rtol=1e-6)
    np.testing.assert_allclose(actions[:, 2], 2 - np.log1p(np.exp(stored[:, 2].astype(float).clip(max=40))), rtol=1e-6)
    np.testing.assert_allclose(actions[:, 3], np.tanh(stored[:, 3]), rtol=1e-6)


def test_integers_too_many_to_tell_apart_are_refused():
    with pytest.raises(ValueError, match="MultiDiscrete"):
        distribution_for(spaces.Box(-(2**60), 2**60, (1,), np.int64))


@pytest.mark.parametrize(
    ("space", "where"),
    [
        (spaces.Text(3), "Text"),
        (spaces.Dict(a=spaces.Tuple((DISCRETE, spaces.Sequence(DISCRETE)))), r"Sequence.* at action_space\['a'\]\[1\]"),
        (spaces.Dict(), "Dict"),
        (spaces.Box(0, 1, (0,)), "Box"),
        (spaces.OneOf([DISCRETE, BOX]), "OneOf"),
    ],
)
def test_a_space_that_nothing_covers_is_refused_by_name_and_key(space, where):
    with pytest.raises(ValueError, match=f"unsupported action space {where}.*MultiBinary.*--wrapper"):
        distribution_for(space)


# -- Dict and Tuple -----------------------------------------------------------------------------------------------------


def test_a_joint_distribution_is_the_sum_of_its_parts():
    joint, leaves = (
        distribution_for(DEEP),
        [spaces.Box(-2, 2, (2,)), spaces.Discrete(3), spaces.MultiBinary(2), DISCRETE],
    )
    parts = [distribution_for(space) for space in leaves]
    params = params_for(joint, 6, 2)
    action = draw(joint, params.reshape(-1, joint.num_params)[0], 12).reshape(6, 2, -1)
    widths = [2, 1, 2, 1]
    assert joint.action_spec.shape == (sum(widths),)
    assert joint.action_spec.dtype == np.float32
    own_params = params.split([part.num_params for part in parts], dim=-1)
    own_actions = [
        a if part.action_spec.dtype == np.float32 else a.long().squeeze(-1) if not part.action_spec.shape else a.long()
        for part, a in zip(parts, action.split(widths, dim=-1), strict=True)
    ]
    log_prob = sum(part.log_prob(p, a) for part, p, a in zip(parts, own_params, own_actions, strict=True))
    assert_close(joint.log_prob(params, action), log_prob)
    assert_close(joint.entropy(params), sum(part.entropy(p) for part, p in zip(parts, own_params, strict=True)))
    encoded = [part.encode(a.flatten(0, 1)).float() for part, a in zip(parts, own_actions, strict=True)]
    assert torch.equal(joint.encode(action.flatten(0, 1)).float(), torch.cat(encoded, -1))


def test_choices_alone_are_stored_as_whole_numbers():
    joint = distribution_for(CHOICES)
    assert joint.action_spec.dtype == np.int64
    actions = joint.to_env(np.array([[4, 2, 1, 3, 1], [0, 0, 0, 0, 0]]))
    assert actions[0].tolist() == [4, 0]
    assert actions[1]["a"].tolist() == [[2, 1, 3], [0, 0, 0]]
    assert actions[1]["b"].tolist() == [1, 0]


def test_a_joint_action_keeps_the_spaces_own_structure_and_starts():
    actions = distribution_for(DEEP).to_env(np.array([[0.0, 50.0, 2.0, 1.0, 0.0, 3.0]], np.float32))
    assert actions["aim"][0].tolist() == [[0.0, 2.0]]
    assert actions["aim"][1].tolist() == [1]
    assert actions["buttons"].tolist() == [[1, 0]]
    assert actions["mode"].tolist() == [3]
    assert DEEP.contains(one(actions, 0))


# -- masks --------------------------------------------------------------------------------------------------------------


def random_mask(choices, batch):
    """Some of the choices of each part off, at least one left."""
    mask = torch.rand(batch, sum(choices), generator=torch.Generator().manual_seed(0)) < 0.5
    for part in mask.split(choices, dim=-1):
        part[..., -1] |= ~part.any(-1)
    return mask


@pytest.mark.parametrize(
    ("space", "choices"),
    [(DISCRETE, [5]), (MULTI, [3, 2, 4]), (BINARY, [2] * 4)],
    ids=["Discrete", "MultiDiscrete", "MultiBinary"],
)
def test_a_mask_is_the_same_as_logits_of_minus_infinity(space, choices):
    distribution = distribution_for(space)
    params, mask = params_for(distribution, 8), random_mask(choices, 8)
    cut = params.masked_fill(~mask, -torch.inf)
    noise = torch.from_numpy(distribution.noise(np.random.default_rng(1), 8))
    action = distribution.sample(distribution.masked(params, mask), noise)
    assert torch.equal(action, distribution.sample(cut, noise))
    assert torch.equal(distribution.mode(distribution.masked(params, mask)), distribution.mode(cut))
    assert torch.equal(
        distribution.log_prob(distribution.masked(params, mask), action), distribution.log_prob(cut, action)
    )
    assert torch.equal(distribution.entropy(distribution.masked(params, mask)), distribution.entropy(cut))
    assert distribution.log_prob(distribution.masked(params, mask), action).isfinite().all()


@pytest.mark.parametrize("space", [DISCRETE, MULTI, DEEP, CHOICES], ids=["Discrete", "MultiDiscrete", "Dict", "Tuple"])
def test_masked_choices_are_never_drawn(space):
    distribution = distribution_for(space)
    mask = torch.ones(distribution.mask_size, dtype=torch.bool)
    mask[0] = False  # the first choice of the first discrete part
    params = params_for(distribution)
    noise = torch.from_numpy(distribution.noise(np.random.default_rng(2), 20_000))
    drawn = distribution.sample(distribution.masked(params.expand(20_000, -1), mask), noise)
    encoded = distribution.encode(drawn)
    first = 2 if space is DEEP else 0  # behind the two numbers of its Box
    assert (encoded[:, first] == 0).all()
    assert (encoded[:, first + 1 :].float().mean(0) > 0).all()


@pytest.mark.parametrize("space", [DISCRETE, MULTI, CHOICES], ids=["Discrete", "MultiDiscrete", "Tuple"])
def test_masked_choices_have_no_gradient_and_the_others_the_one_of_finite_differences(space):
    distribution = distribution_for(space)
    mask = torch.ones(distribution.mask_size, dtype=torch.bool)
    mask[1] = mask[-1] = False
    params = params_for(distribution).requires_grad_()
    action = distribution.sample(distribution.masked(params.detach(), mask), torch.zeros(distribution.noise_size))

    def value(params):
        cut = distribution.masked(params, mask)
        return distribution.log_prob(cut, action) + 0.3 * distribution.entropy(cut)

    (gradient,) = torch.autograd.grad(value(params), params)
    assert gradient[[1, -1]].tolist() == [0.0, 0.0]
    step = 1e-6
    for i in range(distribution.num_params):
        shift = step * torch.eye(distribution.num_params, dtype=torch.float64)[i]
        slope = (value(params + shift) - value(params - shift)) / (2 * step)
        assert_close(gradient[i], slope.detach(), rtol=1e-5, atol=1e-8)


def test_where_nothing_is_allowed_everything_is():
    distribution = distribution_for(DISCRETE)
    params, nothing = params_for(distribution, 3), torch.zeros(3, 5, dtype=torch.bool)
    assert torch.equal(distribution.masked(params, nothing), params)


def test_an_environments_mask_is_flattened_in_the_spaces_order():
    distribution = distribution_for(MULTI)
    nested = (np.array([1, 0, 1], np.int8), np.array([1, 1], np.int8), np.array([0, 0, 0, 1], np.int8))
    assert distribution.flat_mask(nested).tolist() == [True, False, True, True, True, False, False, False, True]
    with pytest.raises(ValueError, match="3 entries for 9 choices"):
        distribution.flat_mask(np.ones(3, np.int8))


def test_probability_ratios_of_the_gaussian_are_those_after_the_squashing():
    """Why the action may be stored unsquashed: the change of variables cancels in pi / mu."""
    distribution = distribution_for(spaces.Box(-1, 1, (2,)))
    behaviour, target = params_for(distribution, 2, seed=7)
    action = torch.tensor([0.4, -0.9], dtype=torch.float64)

    def squashed(params):
        mean, log_std = params.chunk(2)
        transform = torch.distributions.TanhTransform()
        base = torch.distributions.Normal(mean, log_std.exp())
        return torch.distributions.TransformedDistribution(base, transform).log_prob(action.tanh()).sum()

    ratio = distribution.log_prob(target, action) - distribution.log_prob(behaviour, action)
    assert_close(ratio, squashed(target) - squashed(behaviour), rtol=1e-9, atol=1e-9)
