"""Gradients and the learner: optimisers against published numbers, clipping, schedule, saving, float32 master weights."""

from __future__ import annotations

import copy
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.testing import assert_close

from beast.core import learner as learner_module
from beast.core.algorithms import PlainLoss, impala
from beast.core.data import ArraySpec, Batch, ModelOutput
from beast.core.distributions import distribution_for
from beast.core.flat import FlatModel
from beast.core.gradients import Gradients
from beast.core.learner import Learner, master_parameters
from beast.core.optimisers import OptimiserConfig, RMSProp
from beast.models import impala_shallow, mlp

RMSPROP = json.loads((Path(__file__).parents[2] / "data" / "rmsprop.json").read_text())
T, B, A = 4, 3, 2
VECTOR = spaces.Box(-1, 1, (3,))
IMAGE = spaces.Box(0, 255, (2, 20, 20), np.uint8)
DISCRETE = spaces.Discrete(A)
FOREVER = 10**15  # steps, so that the learning rate stays what it is
FORMS = pytest.mark.parametrize("form", ["torch", "tf"])
OPTIMISERS = pytest.mark.parametrize(
    "optimiser",
    [{"rmsprop_form": "torch", "momentum": 0.5}, {"rmsprop_form": "tf", "momentum": 0.5}, {"optimiser": "adam"}],
    ids=["torch", "tf", "adam"],
)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


class Weights(nn.Module):
    """Nothing but parameters of given values, which it answers as they are."""

    def __init__(self, *values):
        super().__init__()
        self.parts = nn.ParameterList(torch.tensor(value) for value in values)

    def forward(self, inputs, core_state):
        return list(self.parts), core_state


def random_batch(seed=0, observation_space=VECTOR, core_state=(), rows=T + 1):
    generator = torch.Generator().manual_seed(seed)
    steps = rows - 1
    shape = (rows, B, *observation_space.shape)
    pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    return Batch(
        observation=pixels if observation_space is IMAGE else torch.randn(shape, generator=generator),
        reward=torch.randn(rows, B, generator=generator),
        terminated=torch.rand(rows, B, generator=generator) < 0.1,
        truncated=torch.zeros(rows, B, dtype=torch.bool),
        first=torch.rand(rows, B, generator=generator) < 0.2,
        last_action=torch.randint(A, (rows, B), generator=generator),
        action=torch.randint(A, (steps, B), generator=generator),
        behaviour_logits=torch.randn(steps, B, A, generator=generator),
        core_state=core_state,
        policy_version=torch.zeros(steps, B, dtype=torch.int64),
    )


class Taught(Learner):
    """A learner that keeps where its gradients come from."""

    def __init__(self, gradients, *arguments):
        super().__init__(gradients, *arguments)
        self.gradients = gradients


def make_learner(
    model, loss, loss_config=None, total_steps=FOREVER, dtype=torch.float32, spec=None, compile_model=False, **optimiser
):
    masters, device = master_parameters(model), torch.device("cpu")
    gradients = Gradients(
        FlatModel(model, device, dtype), PlainLoss(loss_config, distribution_for(DISCRETE), loss),
        spec or ArraySpec(VECTOR.shape, np.dtype(np.float32)), device, compile_model,
    )  # fmt: skip
    return Taught(gradients, OptimiserConfig(**optimiser), total_steps, masters)


def learn(learner, batch):
    """One update; what came of it."""
    number = learner.updates + 1
    gradients = learner.gradients.of(learner.gradients.to_device(batch))
    (update,) = [learner.apply(gradient, batch.action.numel()) for gradient in gradients]
    assert update.number == number
    return update.metrics


def make_pushed(*values, **settings):
    """A learner of these weights, and `push(*gradients)`: one update with exactly these gradients."""
    wanted = []

    def loss(outputs, batch, distribution, config):
        parts = zip(outputs, wanted, strict=True)
        return sum((part.float() * torch.tensor(gradient)).sum() for part, gradient in parts), {}

    learner = make_learner(Weights(*values), loss, **settings)

    def push(*gradients):
        wanted[:] = gradients
        return learn(learner, random_batch())

    return learner, push


def impala_learner(seed=0, dtype=torch.float32, total_steps=10_000, **optimiser):
    """An LSTM on pixels, and the batches that it learns from."""
    torch.manual_seed(seed)
    model = impala_shallow.Model(IMAGE, DISCRETE, use_lstm=True)
    spec = ArraySpec(IMAGE.shape, IMAGE.dtype)
    optimiser = {"momentum": 0.5} | optimiser
    return make_learner(model, impala.loss, impala.Config(), total_steps, dtype, spec, **optimiser)


def impala_batch(seed):
    h, c = torch.randn(2, B, 256, generator=torch.Generator().manual_seed(seed))
    return random_batch(seed, IMAGE, core_state=(h, c))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_learns_the_same():
    plain, compiled = impala_learner(), impala_learner(compile_model=True)
    for seed in range(3):
        batch = impala_batch(seed)
        expected, found = learn(plain, batch), learn(compiled, batch)
        assert_close(found["total_loss"], expected["total_loss"], rtol=1e-4, atol=1e-4)
    assert compiled.updates == 3
    assert_close(compiled.acting.parameters, plain.acting.parameters, rtol=1e-3, atol=1e-5)
    assert compiled.model_state().keys() == plain.model_state().keys()


# -- optimiser --------------------------------------------------------------------------------------------------------


@FORMS
@pytest.mark.parametrize("epsilon", ["0.1", "0.01", "1e-05"])
def test_rmsprop_follows_the_published_sequences(form, epsilon):
    learner, push = make_pushed(
        RMSPROP["p0"], learning_rate=RMSPROP["lr"], alpha=RMSPROP["decay"], epsilon=float(epsilon),
        rmsprop_form=form,
    )  # fmt: skip
    start = torch.tensor(RMSPROP["p0"])
    for gradient, expected in zip(RMSPROP["grads"], RMSPROP[form][epsilon], strict=True):
        push(gradient)
        moved, should_move = (
            learner.acting.parameters - start,
            torch.tensor(expected, dtype=torch.float64).float() - start,
        )
        # The float32 rounding of the weights themselves is all that may differ.
        assert_close(moved, should_move, rtol=1e-5, atol=5e-7)


@FORMS
def test_momentum_is_that_of_its_form(form):
    gradients = [0.5, -0.25, 1.0, 0.125]
    learner, push = make_pushed([0.0], learning_rate=0.01, alpha=0.9, epsilon=0.1, momentum=0.8, rmsprop_form=form)
    p, mean_square, buffer = 0.0, 1.0 if form == "tf" else 0.0, 0.0
    for g in gradients:
        push([g])
        mean_square = 0.9 * mean_square + 0.1 * g * g
        step = g / (mean_square + 0.1) ** 0.5 if form == "tf" else g / (mean_square**0.5 + 0.1)
        buffer = 0.8 * buffer + step
        p -= 0.01 * buffer
        assert learner.acting.parameters.item() == pytest.approx(p, rel=1e-5)


@pytest.mark.parametrize("epsilon", [0.1, 1e-5])
def test_adam_is_that_of_pytorch(epsilon):
    generator = torch.Generator().manual_seed(0)
    learner, push = make_pushed(
        [1.0, -2.0, 0.0, 0.5], optimiser="adam", learning_rate=0.05, adam_beta1=0.8, adam_beta2=0.95,
        adam_epsilon=epsilon,
    )  # fmt: skip
    expected = nn.Parameter(learner.acting.parameters.clone())
    reference = torch.optim.Adam([expected], lr=0.05, betas=(0.8, 0.95), eps=epsilon)
    start = expected.detach().clone()
    for _ in range(20):
        expected.grad = torch.randn(4, generator=generator) * torch.tensor([1.0, 10.0, 0.01, 0.0])
        push(expected.grad.tolist())
        reference.step()
        assert_close(learner.acting.parameters, expected.detach(), rtol=1e-5, atol=1e-6)
    moved = (expected.detach() - start).abs()
    assert (moved[:3] > 1e-3).all()
    assert moved[3] == 0


class TestClipping:
    """Published example: gradients (30, -40) and (0, 120) have the global norm 130."""

    # With this epsilon the tf form is plain descent: w -= 1e6 * g / sqrt(1e12).
    DESCENT = {"learning_rate": 1e6, "epsilon": 1e12, "rmsprop_form": "tf"}  # noqa: RUF012

    def descend(self, clip, *gradients, dtype=torch.float32):
        learner, push = make_pushed([0.0, 0.0], [[0.0, 0.0]], grad_norm_clipping=clip, dtype=dtype, **self.DESCENT)
        metrics = push(*gradients)
        return -learner.acting.parameters.float(), metrics["grad_norm"]

    def test_gradients_over_the_limit_are_scaled_together(self):
        used, norm = self.descend(40.0, [30.0, -40.0], [[0.0, 120.0]])
        assert_close(used, torch.tensor([9.230769157409668, -12.307692527770996, 0.0, 36.92307662963867]))
        assert norm == 130  # as it was before the clip

    def test_gradients_below_the_limit_are_left_alone(self):
        used, norm = self.descend(131.0, [30.0, -40.0], [[0.0, 120.0]])
        assert_close(used, torch.tensor([30.0, -40.0, 0.0, 120.0]))
        assert norm == 130

    def test_zero_means_no_clip(self):
        used, _ = self.descend(0.0, [3e4, -4e4], [[0.0, 12e4]])
        assert_close(used, torch.tensor([3e4, -4e4, 0.0, 12e4]), rtol=1e-3, atol=0)

    def test_bfloat16_models_are_clipped_too(self):
        used, norm = self.descend(40.0, [30.0, -40.0], [[0.0, 120.0]], dtype=torch.bfloat16)
        assert_close(used, torch.tensor([9.2307, -12.3077, 0.0, 36.9231]), rtol=0.01, atol=0)
        assert norm == 130


def test_gradients_of_one_step_do_not_leak_into_the_next():
    learner, push = make_pushed([0.0], [[0.0]], grad_norm_clipping=0.0, **TestClipping.DESCENT)
    push([1.0], [[0.0]])
    push([0.0], [[2.0]])
    assert_close(learner.acting.parameters, torch.tensor([-1.0, -2.0]))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"learning_rate": 0.0}, "--learning_rate .*0.0"),
        ({"alpha": 1.0}, "--alpha .*1.0"),
        ({"epsilon": 0.0}, "--epsilon .*0.0"),
        ({"grad_norm_clipping": -1.0}, "--grad_norm_clipping .*-1.0"),
        ({"rmsprop_form": "jax"}, "--rmsprop_form .*'jax'"),
        ({"optimiser": "sgd"}, "--optimiser .*rmsprop or adam.*'sgd'"),
        ({"learning_rate_schedule": "cosine"}, "--learning_rate_schedule .*linear or constant.*'cosine'"),
        ({"adam_beta1": 1.0}, "--adam_beta1 .*1.0"),
        ({"adam_beta2": -0.1}, "--adam_beta2 .*-0.1"),
        ({"adam_epsilon": 0.0}, "--adam_epsilon .*0.0"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_setting_out_of_range_is_refused_with_its_flag_and_value(bad, message):
    with pytest.raises(ValueError, match=message):
        OptimiserConfig(**bad)


# -- schedule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "rate"),
    [(0, 6e-4), (1_000_000, 5.97e-4), (50_000_000, 4.5e-4), (100_000_000, 3e-4), (200_000_000, 0), (250_000_000, 0)],
)
def test_the_learning_rate_falls_linearly_to_zero_and_stays_there(steps, rate):
    learner, _ = make_pushed([0.0], total_steps=200_000_000)
    learner.steps = steps
    assert learner.learning_rate == pytest.approx(rate, rel=1e-6, abs=1e-12)


def test_a_constant_learning_rate_stays_what_it_is():
    learner, push = make_pushed(
        [0.0], total_steps=2 * T * B, learning_rate_schedule="constant", grad_norm_clipping=0.0, learning_rate=1e6,
        epsilon=1e12, rmsprop_form="tf",
    )  # fmt: skip
    for i in range(4):  # twice as far as the linear one goes
        assert learner.steps == i * T * B
        assert learner.learning_rate == 1e6
        push([1.0])
        assert learner.acting.parameters.item() == pytest.approx(-(i + 1), rel=1e-5)


@FORMS
def test_each_update_uses_the_rate_of_the_steps_before_it(form):
    updates = 4
    learner, push = make_pushed(
        [0.0], total_steps=updates * T * B, grad_norm_clipping=0.0, learning_rate=1e6, epsilon=1e12,
        rmsprop_form=form,
    )  # fmt: skip
    lengths = []
    for i in range(updates + 1):
        assert (learner.steps, learner.updates) == (i * T * B, i)
        before = learner.acting.parameters.item()
        push([1.0])
        lengths.append(before - learner.acting.parameters.item())
    size = lengths[0]
    assert size > 0
    assert lengths == pytest.approx([size, 0.75 * size, 0.5 * size, 0.25 * size, 0.0], rel=1e-5)


# -- numbers ----------------------------------------------------------------------------------------------------------


def everything(learner):
    moments = learner.state_dict()["optimiser"]["moments"]
    vectors = learner.acting.parameters.clone(), learner.acting.statistics.clone()
    return [*vectors, *learner.model_state().values(), *moments.values()]


def poison(batch, field, value):
    if field == "observation":
        batch.observation[1, 0, 0] = value
    elif field == "reward":
        batch.reward[2, 1] = value
    else:  # the loss and every gradient with it
        batch.behaviour_logits[0, 0, :] = value
    return batch


@DTYPES
@OPTIMISERS
@pytest.mark.parametrize("field", ["observation", "reward", "loss"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=["nan", "inf"])
def test_an_update_that_is_not_finite_changes_nothing(dtype, optimiser, field, value):
    torch.manual_seed(0)
    learner = make_learner(mlp.Model(VECTOR, DISCRETE), impala.loss, impala.Config(), dtype=dtype, **optimiser)
    assert learn(learner, random_batch(0))["finite"]
    before = everything(learner)
    metrics = learn(learner, poison(random_batch(1), field, value))
    assert not metrics["finite"]
    for one, same in zip(before, everything(learner), strict=True):
        assert torch.equal(one, same)
    assert (learner.steps, learner.updates) == (2 * T * B, 2)
    assert learn(learner, random_batch(2))["finite"]
    assert not torch.equal(before[0], learner.acting.parameters)
    assert all(x.isfinite().all() for x in everything(learner))


@OPTIMISERS
def test_a_step_piece_by_piece_is_the_step_of_the_whole(monkeypatch, optimiser):
    """Clipped gradients, a refused one among them; the moments that are single numbers take one step an update."""
    torch.manual_seed(0)
    model, ways = mlp.Model(VECTOR, DISCRETE), []
    for piece in (1000, 1 << 30):
        monkeypatch.setattr(learner_module, "PIECE", piece)
        ways.append(
            make_learner(copy.deepcopy(model), impala.loss, impala.Config(), grad_norm_clipping=0.5, **optimiser)
        )
    assert len(ways[0]._pieces) == -(-ways[0].acting.parameters.numel() // 1000) > 1 == len(ways[1]._pieces)
    for seed in range(4):
        batch = random_batch(seed)
        for way in ways:
            learn(way, poison(batch, "loss", torch.nan) if seed == 2 else batch)
    for one, same in zip(*(everything(way) for way in ways), strict=True):
        assert_close(one, same, rtol=1e-6, atol=0)


class ByNorm(RMSProp):
    """A subclass that is not elementwise: steps of one length."""

    def step(self, parameters, gradient, moments, learning_rate):
        return parameters - learning_rate * gradient / gradient.norm(), moments


def test_an_optimiser_of_ones_own_gets_the_whole_vector(monkeypatch):
    monkeypatch.setattr(learner_module, "PIECE", 1000)
    monkeypatch.setitem(learner_module.OPTIMISERS, "by_norm", ByNorm)
    learner = make_learner(
        mlp.Model(VECTOR, DISCRETE), impala.loss, impala.Config(), optimiser="by_norm", learning_rate=0.1
    )
    before = learner.acting.parameters.clone()
    learn(learner, random_batch(0))
    assert_close((learner.acting.parameters - before).norm(), torch.tensor(0.1), rtol=1e-4, atol=0)


@OPTIMISERS
def test_a_first_update_that_is_not_finite_leaves_a_learner_as_new(optimiser):
    torch.manual_seed(0)
    model = mlp.Model(VECTOR, DISCRETE)
    skipped, fresh = (make_learner(copy.deepcopy(model), impala.loss, impala.Config(), **optimiser) for _ in range(2))
    learn(skipped, poison(random_batch(0), "loss", torch.nan))
    for learner in (skipped, fresh):
        learn(learner, random_batch(1))
    for one, same in zip(everything(skipped), everything(fresh), strict=True):
        assert torch.equal(one, same)


def test_finite_updates_are_plain_rmsprop_to_the_bit():
    learner = impala_learner(0, grad_norm_clipping=1.0)
    torch.manual_seed(0)
    model = impala_shallow.Model(IMAGE, DISCRETE, use_lstm=True)
    flat = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    optimiser = torch.optim.RMSprop([flat], lr=6e-4, alpha=0.99, eps=0.01, momentum=0.5)
    for i in range(4):
        batch, offset = impala_batch(i), 0
        for p in model.parameters():  # views, aligned as the learner's are: kernels' sums depend on that
            p.data, p.grad, offset = flat.data[offset : offset + p.numel()].view(p.shape), None, offset + p.numel()
        optimiser.param_groups[0]["lr"] = 6e-4 * (1 - i * T * B / 10_000)
        outputs, _ = model(batch.model_input(), batch.core_state)
        total, _ = impala.loss(outputs, batch, distribution_for(DISCRETE), impala.Config())
        total.backward()
        flat.grad = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
        flat.grad.mul_((1.0 / (flat.grad.norm() + 1e-6)).clamp(max=1.0))
        optimiser.step()
        assert learn(learner, batch)["total_loss"] == total.detach()
        assert torch.equal(learner.acting.parameters, flat.detach())


def test_statistics_of_a_forward_are_taken_back_too():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, inputs, core_state):
            return self.norm(inputs.observation.flatten(0, 1)), core_state

    learner = make_learner(Normed(), lambda outputs, *_: (outputs.square().sum(), {}))
    learn(learner, random_batch(0))
    before, parameters = learner.acting.statistics.clone(), learner.acting.parameters.clone()
    assert len(before) == 6
    assert not learn(learner, poison(random_batch(1), "observation", torch.nan))["finite"]
    assert torch.equal(learner.acting.statistics, before)
    assert torch.equal(learner.acting.parameters, parameters)
    learn(learner, random_batch(2))
    assert (learner.acting.statistics != before).all()


def test_one_gradient_that_is_infinite_is_enough():
    learner, push = make_pushed([1.0, 2.0], [[3.0, 4.0]], grad_norm_clipping=1.0)
    before = learner.acting.parameters.clone()
    assert not push([0.0, torch.inf], [[0.0, 0.0]])["finite"]
    assert not push([0.0, 1e30], [[0.0, 0.0]])["finite"]  # its square is infinite, and RMSProp takes the square
    assert torch.equal(learner.acting.parameters, before)


# -- memory -----------------------------------------------------------------------------------------------------------


def assert_parameters_are_views_of_flat(learner):
    parameters, flat = list(learner.acting.model.parameters()), learner.acting.parameters
    memory = flat.untyped_storage().data_ptr()
    assert all(p.untyped_storage().data_ptr() == memory for p in parameters)
    assert torch.equal(torch.cat([p.reshape(-1) for p in parameters]), flat)


@DTYPES
def test_the_models_parameters_are_views_of_the_flat_vector_before_and_after_a_load(dtype):
    learner, other = impala_learner(0, dtype), impala_learner(1, dtype)
    assert_parameters_are_views_of_flat(learner)
    learn(other, impala_batch(0))
    learner.load_state_dict(other.state_dict())
    assert_parameters_are_views_of_flat(learner)
    assert torch.equal(learner.acting.parameters, other.acting.parameters)
    loaded = learner.acting.parameters.clone()
    learn(learner, impala_batch(1))
    assert_parameters_are_views_of_flat(learner)
    assert not torch.equal(learner.acting.parameters, loaded)


def test_bfloat16_models_learn_in_steps_that_bfloat16_cannot_hold():
    learner, push = make_pushed([1.0], dtype=torch.bfloat16, learning_rate=1e-3 * 1e6, epsilon=1e12, rmsprop_form="tf")
    assert learner.acting.parameters.dtype == torch.bfloat16
    seen = []
    for _ in range(8):
        push([1.0])  # 0.001 down; bfloat16 has nothing between 0.9961 and 1
        seen.append(learner.acting.parameters.item())
    assert seen[0] == 1.0
    assert seen[-1] == torch.tensor(1.0 - 0.008).bfloat16().item() < 1.0
    master = learner.model_state()["parts.0"]
    assert master.dtype == torch.float32
    assert_close(master, torch.tensor([1.0 - 0.008]), rtol=1e-5, atol=0)


def test_all_that_is_saved_of_a_bfloat16_learner_is_float32():
    learner = impala_learner(dtype=torch.bfloat16)
    learn(learner, impala_batch(0))
    state = learner.state_dict()
    assert {x.dtype for x in state["model"].values()} == {torch.float32}
    assert state["optimiser"]["name"] == "rmsprop"
    moments = state["optimiser"]["moments"]
    assert moments.keys() == {"mean_square", "momentum"}
    assert {x.dtype for x in moments.values()} == {torch.float32}
    # Finer than the bfloat16 weights, and rounding to them.
    rounded = {name: value.bfloat16() for name, value in state["model"].items()}
    assert all(torch.equal(rounded[name], p) for name, p in learner.acting.model.state_dict().items())
    assert any(not torch.equal(rounded[name].float(), value) for name, value in state["model"].items())


def test_stacked_fields_reach_the_model_as_stacks():
    seen = []

    class Recorder(Weights):
        def forward(self, inputs, core_state):
            seen.append(inputs.observation)
            return super().forward(inputs, core_state)

    spec = {"plain": ArraySpec((3,), np.dtype(np.float32)), "frames": ArraySpec((2, 5), np.dtype(np.uint8), stack=2)}
    learner = make_learner(Recorder([0.0]), lambda outputs, *_: (outputs[0].sum(), {}), spec=spec)
    batch = random_batch()
    frames = torch.arange(B * (2 + T + 1) * 5, dtype=torch.uint8).view(B, 2 + T + 1, 5)
    frames[:, 0] = 0
    learn(learner, batch._replace(observation={"plain": batch.observation, "frames": frames}))
    (observation,) = seen
    assert torch.equal(observation["plain"], batch.observation)
    assert observation["frames"].shape == (T + 1, B, 2, 5)
    for t in range(T + 1):
        for b in range(B):
            older = frames[b, 0 if batch.first[t, b] else 1 + t]
            assert torch.equal(observation["frames"][t, b], torch.stack([older, frames[b, 2 + t]]))


# -- saving -----------------------------------------------------------------------------------------------------------


@DTYPES
@OPTIMISERS
def test_a_loaded_learner_goes_on_bit_for_bit(dtype, optimiser):
    learner = impala_learner(0, dtype, **optimiser)
    for i in range(3):
        learn(learner, impala_batch(i))
    file = io.BytesIO()
    torch.save(learner.state_dict(), file)
    file.seek(0)
    resumed = impala_learner(1, dtype, **optimiser)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert (resumed.steps, resumed.updates) == (3 * T * B, 3)
    assert resumed.learning_rate == learner.learning_rate < 6e-4
    for i in range(3, 6):
        batch = impala_batch(i)
        one, other = learn(learner, batch), learn(resumed, batch)
        assert one == other
        assert torch.equal(learner.acting.parameters, resumed.acting.parameters)
    for name, value in learner.model_state().items():
        assert torch.equal(value, resumed.model_state()[name])


def leaves_of(tree):
    return [x for value in tree.values() for x in leaves_of(value)] if isinstance(tree, dict) else [tree]


@OPTIMISERS
def test_a_state_dict_is_a_snapshot_that_no_later_step_changes(optimiser):
    learner, other = impala_learner(0, **optimiser), impala_learner(1, **optimiser)
    learn(learner, impala_batch(0))
    state = learner.state_dict()
    kept = copy.deepcopy(state)
    learn(learner, impala_batch(1))
    other.load_state_dict(state)
    learn(other, impala_batch(2))
    for one, same in zip(leaves_of(state), leaves_of(kept), strict=True):
        assert torch.equal(one, same) if isinstance(one, torch.Tensor) else one == same


def test_the_saved_model_loads_into_a_plain_model():
    learner = impala_learner()
    learn(learner, impala_batch(0))
    model = impala_shallow.Model(IMAGE, DISCRETE, use_lstm=True)
    model.load_state_dict(learner.model_state())
    batch = impala_batch(1)
    with torch.no_grad():
        saved, _ = model(batch.model_input(), batch.core_state)
        live, _ = learner.acting.model(batch.model_input(), batch.core_state)
    # Not to the bit: the learner's parameters lie unaligned in one vector, and the kernels' sums depend on that.
    assert_close(saved.policy_logits, live.policy_logits, rtol=0, atol=1e-6)
    assert_close(saved.value, live.value, rtol=0, atol=1e-6)


def test_the_state_of_another_model_is_refused():
    learner, _ = make_pushed([0.0, 0.0])
    shorter, _ = make_pushed([0.0])
    more, _ = make_pushed([0.0, 0.0], [0.0])
    with pytest.raises(RuntimeError, match=r"parts\.0"):
        learner.load_state_dict(shorter.state_dict())
    with pytest.raises(RuntimeError, match=r"parts\.1"):
        learner.load_state_dict(more.state_dict())


# -- learning ---------------------------------------------------------------------------------------------------------


@FORMS
def test_the_loss_falls_over_repeated_steps_on_one_batch(form):
    torch.manual_seed(0)
    learner = make_learner(
        mlp.Model(VECTOR, DISCRETE), impala.loss, impala.Config(entropy_cost=0.0), rmsprop_form=form,
        learning_rate=1e-3 if form == "torch" else 1e-2,
    )  # fmt: skip
    batch = random_batch(3)
    metrics = [learn(learner, batch) for _ in range(100)]
    assert metrics[-1]["baseline_loss"] < 0.3 * metrics[0]["baseline_loss"]
    assert metrics[-1]["total_loss"] < metrics[0]["total_loss"]


def test_the_policy_learns_what_was_rewarded():
    torch.manual_seed(0)
    learner = make_learner(mlp.Model(VECTOR, DISCRETE), impala.loss, impala.Config(discounting=0.0), learning_rate=1e-3)
    for seed in range(60):
        batch = random_batch(seed)
        reward = torch.zeros(T + 1, B)
        reward[1:] = torch.where(batch.action == 1, 1.0, -1.0)
        learn(learner, batch._replace(reward=reward))
    with torch.no_grad():
        outputs, _ = learner.acting.model(random_batch(99).model_input(), ())
    assert isinstance(outputs, ModelOutput)
    assert (outputs.policy_logits.softmax(-1)[..., 1] > 0.9).all()


def test_metrics_are_scalars_without_gradient():
    metrics = learn(impala_learner(), impala_batch(0))
    assert metrics.keys() == {
        "total_loss",
        "pg_loss",
        "baseline_loss",
        "entropy_loss",
        "entropy",
        "grad_norm",
        "finite",
    }
    for value in metrics.values():
        assert value.shape == ()
        assert not value.requires_grad
    assert metrics["grad_norm"] > 0
