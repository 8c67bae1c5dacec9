"""The built-in models: sizes from the paper's description, memory and resets, every kind of observation."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.testing import assert_close

import models
from beast.core.data import ModelInput
from beast.core.distributions import distribution_for
from beast.envs.spaces import BUCKETS, Codes, Words
from beast.models.base import ImageInput, Memory

IMAGE_MODELS = ["atari_shallow", "impala_resnet", "impala_shallow"]
ALL_MODELS = [*IMAGE_MODELS, "mlp", "multi_input"]
DISCRETE = spaces.Discrete(6)
ACTION_SPACES = [DISCRETE, spaces.MultiDiscrete([3, 4]), spaces.Box(-1, 1, (2, 2))]
ATARI = spaces.Box(0, 255, (4, 84, 84), np.uint8)
SMALL = spaces.Box(0, 255, (2, 36, 40), np.uint8)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32, where kernels may sum in another order


def make(name, observation_space=SMALL, action_space=DISCRETE, use_lstm=False, seed=0):
    torch.manual_seed(seed)
    return importlib.import_module(f"models.{name}").Model(observation_space, action_space, use_lstm=use_lstm)


def random_inputs(rows, batch, observation_space=SMALL, action_space=DISCRETE, seed=0, first_probability=0.2):
    observation_space.seed(seed)
    action_space.seed(seed)
    rng = np.random.default_rng(seed)

    def many(space):
        if isinstance(space, spaces.Dict):
            return {key: many(part) for key, part in space.spaces.items()}
        if isinstance(space, spaces.Tuple):
            return tuple(many(part) for part in space.spaces)
        drawn = np.stack([space.sample() for _ in range(rows * batch)])
        return torch.from_numpy(drawn.reshape(rows, batch, *drawn.shape[1:]))

    last_action = many(action_space)
    return ModelInput(
        observation=many(observation_space),
        reward=torch.from_numpy(2 * rng.standard_normal((rows, batch), dtype=np.float32)),
        last_action=last_action.flatten(2) if last_action.ndim > 2 else last_action,
        first=torch.from_numpy(rng.random((rows, batch)) < first_probability),
    )


def slice_rows(inputs, rows):
    def cut(tree):
        if isinstance(tree, dict):
            return {key: cut(value) for key, value in tree.items()}
        if isinstance(tree, tuple):
            return tuple(cut(value) for value in tree)
        return None if tree is None else tree[rows]

    return ModelInput(*(cut(field) for field in inputs))


def some_state(model, batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(s.shape, generator=generator) for s in model.initial_state(batch))


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_every_file_here_but_base_is_a_model():
    files = {path.stem for path in Path(models.__file__).parent.glob("*.py")} - {"__init__", "base"}
    assert files == set(ALL_MODELS)


# -- sizes ------------------------------------------------------------------------------------------------------------


def conv(channels, out, kernel):
    return out * (channels * kernel * kernel + 1)


def linear(size, out):
    return out * (size + 1)


def lstm(size, hidden=256):
    return 4 * hidden * (size + hidden + 2)  # PyTorch's has two biases


RESNET_TORSO = sum(conv(c, out, 3) + 4 * conv(out, out, 3) for c, out in ((4, 16), (16, 32), (32, 32))) + linear(
    3872, 256
)
SHALLOW_TORSO = conv(4, 16, 8) + conv(16, 32, 4) + linear(32 * 9 * 9, 256)
ATARI_TORSO = conv(4, 32, 8) + conv(32, 64, 4) + conv(64, 64, 3) + linear(3136, 512)


@pytest.mark.parametrize(
    ("name", "use_lstm", "expected"),
    [
        ("impala_resnet", False, RESNET_TORSO + linear(256, 6 + 1)),
        ("impala_resnet", True, RESNET_TORSO + lstm(256 + 1 + 6) + linear(256, 6 + 1)),
        ("impala_shallow", False, SHALLOW_TORSO + linear(256, 6 + 1)),
        ("impala_shallow", True, SHALLOW_TORSO + lstm(256 + 1 + 6) + linear(256, 6 + 1)),
        ("atari_shallow", False, ATARI_TORSO + linear(512 + 1 + 6, 6 + 1)),
        ("atari_shallow", True, ATARI_TORSO + lstm(512 + 1 + 6) + linear(256, 6 + 1)),
    ],
)
def test_parameters_on_84x84x4_are_as_many_as_the_papers_description_gives(name, use_lstm, expected):
    assert count(make(name, ATARI, use_lstm=use_lstm)) == expected


@pytest.mark.parametrize(
    ("name", "features", "width"),
    [("impala_resnet", 3872, 256), ("impala_shallow", 2592, 256), ("atari_shallow", 3136, 512)],
)
def test_features_of_84x84x4_are_as_published(name, features, width):
    fc = make(name, ATARI).fc
    assert (fc.in_features, fc.out_features) == (features, width)


def test_the_resnet_has_fifteen_convolutions():
    convolutions = [m for m in make("impala_resnet", ATARI).modules() if isinstance(m, torch.nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [16] * 5 + [32] * 10
    assert {m.kernel_size for m in convolutions} == {(3, 3)}


@pytest.mark.parametrize(
    ("action_space", "outputs", "fed"),
    [(DISCRETE, 6, 6), (spaces.MultiDiscrete([3, 4]), 7, 7), (spaces.Box(-1, 1, (2, 2)), 8, 4)],
    ids=["Discrete", "MultiDiscrete", "Box"],
)
def test_the_heads_and_the_fed_back_action_fit_the_action_space(action_space, outputs, fed):
    model = make("mlp", spaces.Box(-1, 1, (5,)), action_space, use_lstm=True)
    assert model.policy.out_features == outputs
    assert model.memory.lstm.input_size == 128 + 1 + fed


# -- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=["Discrete", "MultiDiscrete", "Box"])
@pytest.mark.parametrize("use_lstm", [False, True], ids=["ff", "lstm"])
@pytest.mark.parametrize("name", ALL_MODELS)
def test_outputs_and_states_have_their_shapes(name, use_lstm, action_space):
    model = make(name, action_space=action_space, use_lstm=use_lstm)
    with torch.no_grad():
        state = model.initial_state(3)
        outputs, after = model(random_inputs(4, 3, action_space=action_space), state)
    assert outputs.policy_logits.shape == (4, 3, model.policy.out_features)
    assert outputs.value.shape == (4, 3)
    assert outputs.policy_logits.dtype == outputs.value.dtype == torch.float32
    assert [s.shape for s in state] == [s.shape for s in after] == ([(3, 256)] * 2 if use_lstm else [])
    assert all(s.dtype == torch.float32 for s in after)
    assert not any(s.any() for s in state)


@pytest.mark.parametrize("name", ALL_MODELS)
def test_a_feed_forward_net_answers_each_row_as_if_it_stood_alone(name):
    model = make(name)
    inputs = random_inputs(5, 3)
    with torch.no_grad():
        together, _ = model(inputs, ())
        rows = [model(slice_rows(inputs, slice(t, t + 1)), ())[0] for t in range(5)]
    assert_close(together.policy_logits, torch.cat([row.policy_logits for row in rows]), **CLOSE)
    assert_close(together.value, torch.cat([row.value for row in rows]), **CLOSE)
    assert together.value.flatten().unique().numel() == 15


@pytest.mark.parametrize("name", ALL_MODELS)
def test_every_parameter_gets_a_gradient(name):
    model = make(name, use_lstm=True)
    outputs, _ = model(random_inputs(3, 2), model.initial_state(2))
    (outputs.policy_logits.square().sum() + outputs.value.square().sum()).backward()
    for parameter_name, p in model.named_parameters():
        assert p.grad is not None, parameter_name
        assert p.grad.isfinite().all(), parameter_name
        assert p.grad.any(), parameter_name


def outputs_of(model, inputs, state=()):
    with torch.no_grad():
        outputs, _ = model(inputs, state)
    return torch.cat([outputs.policy_logits, outputs.value.unsqueeze(-1)], dim=-1)


@pytest.mark.parametrize(
    ("name", "use_lstm", "fed"),
    [("atari_shallow", False, True)]
    + [(name, False, False) for name in ("impala_resnet", "impala_shallow", "mlp", "multi_input")]
    + [(name, True, True) for name in ALL_MODELS],
)
def test_last_reward_and_action_reach_the_nets_that_should_see_them(name, use_lstm, fed):
    model = make(name, use_lstm=use_lstm)
    inputs = random_inputs(1, 2)._replace(reward=torch.full((1, 2), 0.25))
    state = model.initial_state(2)
    before = outputs_of(model, inputs, state)
    other_reward = outputs_of(model, inputs._replace(reward=torch.full((1, 2), 0.5)), state)
    other_action = outputs_of(model, inputs._replace(last_action=(inputs.last_action + 1) % 6), state)
    assert torch.equal(before, other_reward) == (not fed)
    assert torch.equal(before, other_action) == (not fed)


def test_the_fed_back_reward_is_clipped_to_one():
    model = make("atari_shallow")
    inputs = random_inputs(1, 4)

    def answer(*rewards):
        return outputs_of(model, inputs._replace(reward=torch.tensor([rewards])))

    assert torch.equal(answer(-7.0, -2.0, 3.0, 500.0), answer(-1.0, -1.0, 1.0, 1.0))
    assert not torch.equal(answer(-0.5, -0.5, 0.5, 0.5), answer(-1.0, -1.0, 1.0, 1.0))


# -- memory -----------------------------------------------------------------------------------------------------------


def test_the_lstm_unrolled_with_resets_is_the_textbook_recursion():
    """In float64, against the equations, with resets in the first, the last and two neighbouring rows."""
    rows, batch, size = 7, 3, 5
    torch.manual_seed(0)
    memory = Memory(4, size).double()
    x = torch.randn(rows, batch, 4, dtype=torch.float64)
    first = torch.zeros(rows, batch, dtype=torch.bool)
    for t, b in ((0, 1), (2, 0), (3, 0), (3, 2), (6, 1)):
        first[t, b] = True
    state = torch.randn(2, batch, size, dtype=torch.float64)
    w = {name: p.detach() for name, p in memory.lstm.named_parameters()}
    h, c = state
    expected = []
    for t in range(rows):
        h, c = (torch.where(first[t].unsqueeze(1), 0.0, s) for s in (h, c))
        gates = x[t] @ w["weight_ih_l0"].T + w["bias_ih_l0"] + h @ w["weight_hh_l0"].T + w["bias_hh_l0"]
        i, f, g, o = gates.chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        expected.append(h)
    with torch.no_grad():
        output, (last_h, last_c) = memory(x, first, (state[0], state[1]))
        told, _ = memory(x, first, (state[0], state[1]), resets=(0, 2, 3, 6))  # by a host that need not look
        misled, _ = memory(x, first, (state[0], state[1]), resets=())
    assert torch.equal(told, output)
    assert not torch.allclose(misled, output)
    assert_close(output, torch.stack(expected), rtol=0, atol=1e-13)
    assert_close(last_h, h.float(), rtol=0, atol=1e-7)
    assert_close(last_c, c.float(), rtol=0, atol=1e-7)


def test_a_reset_cures_a_state_that_is_not_finite():
    memory, state = Memory(4), (torch.full((2, 256), torch.nan), torch.full((2, 256), torch.inf))
    first = torch.tensor([[False, True], [True, False], [False, False]])
    output, (h, c) = memory(torch.randn(3, 2, 4), first, state)
    assert output.isfinite().all(-1).tolist() == [[False, True], [True, True], [True, True]]
    assert h.isfinite().all()
    assert c.isfinite().all()


@pytest.mark.parametrize("first_probability", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", ALL_MODELS)
def test_an_unrolled_lstm_is_the_same_as_row_by_row(name, first_probability):
    model = make(name, use_lstm=True)
    inputs = random_inputs(6, 3, first_probability=first_probability)
    state = some_state(model, 3)
    with torch.no_grad():
        together, end = model(inputs, state)
        rows = []
        for t in range(6):
            row, state = model(slice_rows(inputs, slice(t, t + 1)), state)
            rows.append(row)
    assert_close(together.policy_logits, torch.cat([row.policy_logits for row in rows]), **CLOSE)
    assert_close(together.value, torch.cat([row.value for row in rows]), **CLOSE)
    for one, other in zip(end, state, strict=True):
        assert_close(one, other, **CLOSE)


def test_row_t_of_one_unroll_is_row_0_of_the_next():
    """The learner sees row T twice: with the state before it, it must see the same there."""
    model = make("impala_shallow", use_lstm=True)
    inputs = random_inputs(9, 3)
    state = some_state(model, 3)
    with torch.no_grad():
        whole, _ = model(inputs, state)
        unroll, _ = model(slice_rows(inputs, slice(0, 5)), state)  # T = 4, rows 0 .. 4
        _, after_4_steps = model(slice_rows(inputs, slice(0, 4)), state)
        following, _ = model(slice_rows(inputs, slice(4, 9)), after_4_steps)
    assert_close(unroll.value[4], following.value[0], **CLOSE)
    assert_close(torch.cat([unroll.value[:4], following.value]), whole.value, **CLOSE)


def test_nothing_is_remembered_over_a_reset():
    model = make("mlp", use_lstm=True)
    inputs = random_inputs(6, 2, first_probability=0.0)
    first = inputs.first.clone()
    first[3, 0] = True
    inputs = inputs._replace(first=first)
    observation = inputs.observation.clone()
    observation[:3] = 255 - observation[:3]
    before = outputs_of(model, inputs, some_state(model, 2, seed=1))
    after = outputs_of(model, inputs._replace(observation=observation), some_state(model, 2, seed=2))
    assert torch.equal(before[3:, 0], after[3:, 0])
    assert not torch.isclose(before[3:, 1], after[3:, 1]).all(dim=-1).any()  # without a reset it is
    assert not torch.isclose(before[:3], after[:3]).all(dim=-1).any()


# -- observations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_channels_may_come_last(name):
    first, last = spaces.Box(0, 255, (3, 36, 40), np.uint8), spaces.Box(0, 255, (36, 40, 3), np.uint8)
    inputs = random_inputs(2, 2, first)
    moved = inputs._replace(observation=inputs.observation.permute(0, 1, 3, 4, 2).contiguous())
    assert_close(outputs_of(make(name, last), moved), outputs_of(make(name, first), inputs), **CLOSE)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_grey_images_need_no_channel_axis(name):
    flat, one = spaces.Box(0, 255, (36, 40), np.uint8), spaces.Box(0, 255, (1, 36, 40), np.uint8)
    inputs = random_inputs(2, 2, flat)
    unsqueezed = inputs._replace(observation=inputs.observation.unsqueeze(2))
    assert_close(outputs_of(make(name, flat), inputs), outputs_of(make(name, one), unsqueezed), **CLOSE)


@pytest.mark.parametrize("name", ALL_MODELS)
def test_bytes_are_scaled_to_one_and_images_centred_while_floats_are_left_alone(name):
    inputs = random_inputs(2, 2, SMALL)
    observation = inputs.observation / 255
    if name != "mlp":
        observation = observation - observation.mean((-2, -1), keepdim=True)
    scaled = inputs._replace(observation=observation)
    floats = make(name, spaces.Box(0, 1, SMALL.shape, np.float32))
    assert_close(outputs_of(make(name, SMALL), inputs), outputs_of(floats, scaled), **CLOSE)


@pytest.mark.parametrize(("name", "least"), [("atari_shallow", 36), ("impala_shallow", 20)])
def test_too_small_an_image_is_refused_with_its_size_and_the_least_one(name, least):
    space = spaces.Box(0, 255, (1, least, least), np.uint8)
    assert outputs_of(make(name, space), random_inputs(1, 1, space)).isfinite().all()
    with pytest.raises(ValueError, match=rf"{name} needs .* {least}x{least}, got {least}x{least - 1}: try .*mlp"):
        make(name, spaces.Box(0, 255, (1, least, least - 1), np.uint8))


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 13), (2, 16, 9), (1, 96, 72)])
def test_the_resnet_takes_images_of_any_size(shape):
    space = spaces.Box(0, 255, shape, np.uint8)
    assert outputs_of(make("impala_resnet", space), random_inputs(1, 2, space)).isfinite().all()


@pytest.mark.parametrize(
    "space", [spaces.Box(0, 1, (5,)), spaces.Discrete(4), spaces.Dict({"image": SMALL})], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_an_image_model_on_anything_else_points_to_mlp(name, space):
    with pytest.raises(ValueError, match="--model mlp"):
        make(name, space)


def test_mlp_lays_nested_observations_side_by_side():
    space = spaces.Dict(
        {
            "b": spaces.Tuple((spaces.Discrete(3, start=5), spaces.Box(-1, 1, (2, 2)))),
            "a": spaces.Dict({"pixels": spaces.Box(0, 255, (2,), np.uint8), "scalar": spaces.Box(-9, 9, ())}),
            "bits": spaces.MultiBinary(2),
        }
    )
    model = make("mlp", space)
    seen = []
    model.fc1.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    inputs = random_inputs(3, 2, space)
    assert outputs_of(model, inputs).shape == (3, 2, 7)
    o = inputs.observation
    expected = {
        "a": torch.cat([o["a"]["pixels"] / 255, o["a"]["scalar"].unsqueeze(-1)], dim=-1),
        "b": torch.cat([torch.nn.functional.one_hot(o["b"][0] - 5, 3), o["b"][1].flatten(2)], dim=-1),
        "bits": o["bits"].float(),
    }
    side_by_side = torch.cat([expected[key] for key in space.spaces], dim=-1)  # in the space's order
    assert_close(seen[0].view(3, 2, -1), side_by_side, rtol=0, atol=1e-7)


# -- bfloat16 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_lstm", [False, True], ids=["ff", "lstm"])
@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_bfloat16_weights_give_float32_outputs_near_the_float32_ones(name, use_lstm):
    model = make(name, use_lstm=use_lstm)
    assert model.supports_bfloat16
    inputs = random_inputs(3, 2)
    state = some_state(model, 2)
    with torch.no_grad():
        exact, exact_state = model(inputs, state)
        coarse, coarse_state = model.to(torch.bfloat16)(inputs, state)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert exact.extra == coarse.extra == {}
    for one, other in zip((*exact[:2], *exact_state), (*coarse[:2], *coarse_state), strict=True):
        assert other.dtype == torch.float32
        assert_close(one, other, rtol=0, atol=0.05 * (1 + float(one.abs().max())))
    assert not torch.equal(exact.value, coarse.value)
    # The heads compute in float32: their outputs are finer than bfloat16 holds.
    assert not torch.equal(coarse.policy_logits, coarse.policy_logits.bfloat16().float())


# -- mixtures -----------------------------------------------------------------------------------------------------------

PIXELS = spaces.Box(0, 255, (64, 64, 3), np.uint8)
MIXTURE = spaces.Dict(
    picture=PIXELS, grid=Codes((7, 7, 3), 16), mission=Words(12),
    rest=spaces.Tuple(
        (spaces.Box(-9, 9, (4,)), spaces.Discrete(3, start=2), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(5))
    ),
)  # fmt: skip


def language(words=BUCKETS + 1, embedded=20, hidden=64):
    return words * embedded + 4 * hidden * (embedded + hidden + 2)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (spaces.Box(0, 1, (10, 10, 4), bool), conv(4, 32, 3) + conv(32, 64, 3) + linear(64 * 6 * 6, 256)),
        (Codes((7, 7, 3), 16), 3 * 16 * 8 + conv(24, 32, 3) + conv(32, 64, 3) + linear(64 * 3 * 3, 256)),
        (spaces.Box(0, 255, (20, 24, 1), np.uint8), conv(1, 32, 4) + conv(32, 64, 3) + linear(64 * 7 * 9, 256)),
        (PIXELS, conv(3, 32, 8) + conv(32, 64, 4) + conv(64, 64, 3) + linear(64 * 4 * 4, 256)),
        (ATARI, ATARI_TORSO - linear(3136, 512) + linear(3136, 256)),
        (Words(9), language() + linear(64, 256)),
        (spaces.Dict(a=spaces.Box(-1, 1, (5,)), b=spaces.Discrete(4)), linear(9, 128) + linear(128, 256)),
    ],
)
def test_multi_input_has_the_layers_that_fit_each_part(space, expected):
    assert count(make("multi_input", space)) == expected + linear(256, 6 + 1)


@pytest.mark.parametrize("use_lstm", [False, True], ids=["ff", "lstm"])
def test_every_part_of_a_mixture_reaches_the_policy_and_every_weight_the_loss(use_lstm):
    model = make("multi_input", MIXTURE, use_lstm=use_lstm)
    inputs, state = random_inputs(2, 3, MIXTURE), model.initial_state(3)
    outputs, _ = model(inputs, state)
    (outputs.policy_logits.square().sum() + outputs.value.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    before = outputs_of(model, inputs, state)

    def changed(path):
        def change(tree, path):
            if not path:
                return torch.where(tree == tree.amax(), tree.amin(), tree)
            parts = dict(tree) if isinstance(tree, dict) else list(tree)
            parts[path[0]] = change(parts[path[0]], path[1:])
            return parts if isinstance(tree, dict) else tuple(parts)

        return outputs_of(model, inputs._replace(observation=change(inputs.observation, path)), state)

    for path in (["picture"], ["grid"], ["mission"], *(["rest", i] for i in range(4))):
        assert not torch.equal(before, changed(path)), path


def test_a_mixture_with_a_picture_is_no_giant_network():
    assert count(make("multi_input", MIXTURE)) < 10**6


def test_the_language_channel_reads_each_text_up_to_its_own_last_word():
    language = importlib.import_module("models.multi_input").Language()
    words = torch.tensor([[5, 9, 0, 0], [5, 9, 7, 2], [0, 0, 0, 0], [5, 9, 0, 0]], dtype=torch.int16)
    with torch.no_grad():
        read = language(words, torch.float32)
        for row, length in ((0, 2), (1, 4)):
            outputs, _ = language.lstm(language.embedding(words[row : row + 1, :length].long()))
            assert_close(read[row], outputs[0, -1])
    assert torch.equal(read[0], read[3])
    assert not read[2].any()
    assert not torch.equal(read[0], read[1])


def test_equal_axes_are_read_as_channels_last():
    """MinAtar's Seaquest: ten rows, ten columns, ten planes."""
    assert ImageInput(spaces.Box(0, 1, (10, 10, 10), bool)).shape == (10, 10, 10)
    image = torch.zeros(1, 10, 10, 10, dtype=torch.bool)
    image[0, 1, 2, 7] = True
    assert ImageInput(spaces.Box(0, 1, (10, 10, 10), bool))(image, torch.float32)[0, 7, 1, 2] == 1


def test_a_stack_of_coloured_pictures_has_the_channels_of_all():
    space = spaces.Box(0, 255, (2, 40, 36, 3), np.uint8)
    image = ImageInput(space)
    assert image.shape == (6, 40, 36)
    pixels = random_inputs(1, 2, space).observation[0]
    seen = image(pixels, torch.float32)
    assert_close(seen[1, 4] + pixels[1, 1, :, :, 1].float().mean() / 255, pixels[1, 1, :, :, 1] / 255, **CLOSE)
    assert outputs_of(make("atari_shallow", space), random_inputs(1, 2, space)).isfinite().all()


@pytest.mark.parametrize(("dtype", "high"), [(np.uint8, 1), (np.uint8, 10), (np.float32, 255.0), (np.int64, 1000)])
def test_numbers_of_an_image_are_scaled_by_their_bounds(dtype, high):
    image = ImageInput(spaces.Box(0, high, (5, 5, 3), dtype))
    assert image(torch.full((1, 5, 5, 3), high).to(torch.int64), torch.float32).eq(1.0).all()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            spaces.Dict(eye=spaces.Box(0, 255, (240, 320, 3), np.uint8)),
            r"\['eye'\] is a picture of 240x320: .*--resize 84",
        ),
        (spaces.Dict(grid=Codes((3, 3, 3), 16)), r"\['grid'\] is a grid of 3x3: 5x5 at least"),
        (spaces.Tuple((spaces.Box(-1, 1, (20_000,)),)), r"\[0\] would be 20,000 numbers and no picture"),
    ],
)
def test_a_part_that_is_too_large_or_small_is_refused_by_its_key(space, message):
    with pytest.raises(ValueError, match=f"observation_space{message}"):
        make("multi_input", space)


def test_mlp_refuses_text_by_its_key():
    with pytest.raises(ValueError, match=r"observation_space\['mission'\] is a text.*--model multi_input"):
        make("mlp", MIXTURE)


def test_mlp_reads_choices_one_hot_and_whole_numbers_scaled():
    space = spaces.Dict(
        a=spaces.MultiDiscrete(np.array([[2], [3]]), start=np.array([[5], [-1]])), b=spaces.Box(-4, 2, (2,), np.int64)
    )
    model = make("mlp", space)
    seen = []
    model.fc1.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    inputs = random_inputs(1, 1, space)._replace(
        observation={"a": torch.tensor([[[[6], [-1]]]]), "b": torch.tensor([[[-4, 1]]])}
    )
    outputs_of(model, inputs)
    assert seen[0].tolist() == [[0, 1, 1, 0, 0, -1, 0.25]]


@pytest.mark.parametrize("use_lstm", [False, True])
def test_what_a_separate_value_learns_leaves_the_policy_alone(use_lstm):
    module = importlib.import_module("models.mlp")
    config = module.Model.Config(separate_value=True, initialisation="orthogonal")
    model = module.Model(SMALL, DISCRETE, use_lstm=use_lstm, config=config)
    inputs = random_inputs(3, 2)
    outputs, _ = model(inputs, model.initial_state(2))
    (gradient,) = torch.autograd.grad(outputs.value.sum(), [model.fc1.weight], allow_unused=True, retain_graph=True)
    assert (gradient is None) != use_lstm  # with a memory both read it
    outputs.policy_logits.sum().backward()
    own = [p for name, p in model.named_parameters() if name.startswith("value_layers")]
    assert len(own) == (0 if use_lstm else 4)
    assert all(p.grad is None for p in own)
    assert outputs.policy_logits.softmax(-1).std() < 0.02


@pytest.mark.parametrize("name", ALL_MODELS)
@pytest.mark.parametrize("own", [False, True], ids=["the network's", "parameters of their own"])
@pytest.mark.parametrize(("initial_std", "expected"), [(0.25, 0.25), (None, 0.5)])
def test_actions_of_four_numbers_have_the_deviation_that_is_asked_for_at_first(name, own, initial_std, expected):
    actions = spaces.Tuple([spaces.Box(-1, 1, (4,)), spaces.Discrete(3)])
    observations = spaces.Box(-1, 1, (3,)) if name == "mlp" else SMALL
    distribution = distribution_for(actions)
    inputs = random_inputs(2, 3, observations, spaces.Box(0, 1, (distribution.action_spec.shape[0],)))
    kind, logits = importlib.import_module(f"models.{name}").Model, {}
    for std in (1.0, initial_std):
        torch.manual_seed(0)
        model = kind(observations, actions, False, kind.Config(state_independent_std=own, initial_std=std))
        with torch.no_grad():
            logits[std] = model(inputs, ())[0].policy_logits
    log_stds = logits[initial_std][..., distribution.log_stds]
    assert_close(log_stds, logits[1.0][..., distribution.log_stds] + math.log(expected), rtol=0, atol=1e-6)
    if own:
        assert_close(log_stds, torch.full((2, 3, 4), math.log(expected)))
    choices_and_means = [logits[std][..., ~distribution.log_stds] for std in (1.0, initial_std)]
    assert_close(*choices_and_means, rtol=0, atol=0)


@pytest.mark.parametrize("initial_std", [0.0, -1.0, float("inf"), float("nan")])
def test_a_deviation_that_is_none_is_refused(initial_std):
    with pytest.raises(ValueError, match="--initial_std must be a positive number or none"):
        importlib.import_module("models.mlp").Model.Config(initial_std=initial_std)
