"""The policy of the actors: models by name, weights from shared memory, one forward a step, seeds."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from beast.acting.models import ModelChoice
from beast.acting.policy import Policy
from beast.core.data import ArraySpec, EnvOutput, ModelInput, map_nested
from beast.core.errors import ModelError
from beast.core.flat import FlatModel
from beast.core.seeds import seed_for
from beast.store.weights import Weights

PIXELS, VECTOR = Box(0, 255, (4, 84, 84), np.uint8), Box(-1, 1, (3,), np.float32)
NAN = np.full(2, np.nan, np.float32)


def row(observation, first=False, last_action=None, reward=0.0):
    """An EnvOutput of two environments."""
    e = len(observation)
    flags = np.zeros(e, bool)
    last_action = np.zeros(e, np.int64) if last_action is None else last_action
    rewards = np.full(e, reward, np.float32)
    return EnvOutput(observation, rewards, flags, flags, flags | first, last_action, NAN, NAN, np.empty((e, 0)))


def vectors(seed=0, envs=2):
    return np.random.default_rng(seed).normal(size=(envs, 3)).astype(np.float32)


def published(choice, version=0, dtype=torch.float32, seed=0):
    """Weights of a fresh model, and that model."""
    torch.manual_seed(seed)
    flat = FlatModel(choice.build(), dtype=dtype)
    weights = Weights.like(flat)
    weights.publish(flat.parameters, version)
    return weights, flat.model


def policy_of(choice, envs=2, dtype=torch.float32):
    weights, model = published(choice, dtype=dtype)
    policy = Policy(choice, dtype, weights, envs)
    policy.refresh()
    return policy, model


# -- acting -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_lstm", [False, True])
def test_the_logits_are_those_of_the_model_on_this_row(use_lstm):
    policy, model = policy_of(ModelChoice("mlp", use_lstm, VECTOR, Discrete(5)))
    state = model.initial_state(2)
    for step in range(4):
        env = row(vectors(step), first=step in (0, 2), last_action=np.array([step, 1]), reward=0.3 * step)
        logits = policy.act(env, noise=None).logits
        inputs = (env.reward, env.last_action, env.first)
        with torch.no_grad():
            expected, state = model(
                ModelInput(torch.from_numpy(env.observation)[None], *(torch.from_numpy(x)[None] for x in inputs)), state
            )
        np.testing.assert_allclose(logits, expected.policy_logits[0], atol=1e-6)
        assert logits.dtype == np.float32


def test_a_draw_is_the_distributions_with_the_noise_that_was_given():
    policy, _ = policy_of(ModelChoice("mlp", False, VECTOR, Discrete(5)))
    noise = np.random.default_rng(1).gumbel(size=(50, 2, 5)).astype(np.float32)
    drawn = set()
    for one in noise:
        action, logits, _ = policy.act(row(vectors()), one)
        np.testing.assert_array_equal(action, (logits + one).argmax(-1))
        assert (action.dtype, action.shape) == (np.int64, (2,))
        drawn |= set(action.tolist())
    assert drawn == set(range(5))


def test_without_noise_it_takes_the_most_likely_action():
    policy, _ = policy_of(ModelChoice("mlp", False, VECTOR, MultiDiscrete([3, 2])))
    action, logits, _ = policy.act(row(vectors(), last_action=np.zeros((2, 2), np.int64)), noise=None)
    np.testing.assert_array_equal(action, np.stack([logits[:, :3].argmax(-1), logits[:, 3:].argmax(-1)], axis=1))


def test_continuous_actions_are_stored_as_they_are_drawn():
    policy, _ = policy_of(ModelChoice("mlp", True, VECTOR, Box(-2, 2, (2,), np.float32)))
    noise = np.random.default_rng(0).normal(size=(2, 2)).astype(np.float32)
    action, logits, _ = policy.act(row(vectors(), last_action=np.zeros((2, 2), np.float32)), noise)
    assert (action.dtype, action.shape, logits.shape) == (np.float32, (2, 2), (2, 4))
    np.testing.assert_allclose(action, logits[:, :2] + np.exp(logits[:, 2:]) * noise, rtol=1e-5)


def test_memory_is_carried_from_step_to_step_and_dropped_at_a_first_row():
    choice = ModelChoice("mlp", True, VECTOR, Discrete(5))
    policy, _ = policy_of(choice)
    fresh = policy.act(row(vectors()), None).logits
    after = policy.act(row(vectors()), None).logits
    assert np.abs(after - fresh).max() > 1e-4
    reset = policy.act(row(vectors(), first=np.array([True, False])), None).logits
    np.testing.assert_allclose(reset[0], fresh[0], atol=1e-6)
    assert np.abs(reset[1] - fresh[1]).max() > 1e-4
    policy.forget()
    forgotten = policy.act(row(vectors()), None).logits
    np.testing.assert_allclose(forgotten, fresh, atol=1e-6)


@pytest.mark.parametrize("actions", [Discrete(5), Box(-2, 2, (2,), np.float32)], ids=["discrete", "continuous"])
def test_what_is_not_finite_in_one_row_is_forgotten_in_the_next(actions):
    choice = ModelChoice("mlp", True, VECTOR, actions)
    policy, _ = policy_of(choice)
    drawn = choice.distribution()
    action = np.zeros((2, *drawn.action_spec.shape), drawn.action_spec.dtype)
    broken = vectors()
    broken[0, 1] = np.nan
    noise = drawn.noise(np.random.default_rng(0), 2)
    action, logits, _ = policy.act(row(broken, last_action=action), noise)
    assert np.isfinite(logits).all(-1).tolist() == [False, True]
    assert np.isfinite(action).all()
    assert actions.contains(drawn.to_env(action)[0])
    assert all(np.isfinite(leaf).all() for leaf in policy.state())
    logits = policy.act(row(vectors(), last_action=action), noise).logits
    assert np.isfinite(logits).all()


def test_the_state_is_what_the_next_forward_starts_from():
    policy, model = policy_of(ModelChoice("mlp", True, VECTOR, Discrete(5)))
    assert [leaf.shape for leaf in policy.state()] == [(2, 256), (2, 256)]
    assert not any(leaf.any() for leaf in policy.state())
    policy.act(row(vectors()), None)
    state = map_nested(lambda leaf: torch.from_numpy(leaf.copy()), policy.state())
    assert all(leaf.any() for leaf in state)
    env = row(vectors(1))
    logits = policy.act(env, None).logits
    inputs = ModelInput(*(torch.from_numpy(x)[None] for x in (env.observation, env.reward, env.last_action, env.first)))
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(inputs, state)[0].policy_logits[0], atol=1e-6)


def test_acting_builds_no_graph():
    policy, _ = policy_of(ModelChoice("mlp", True, VECTOR, Discrete(5)))
    policy.act(row(vectors()), None)
    assert not any(parameter.requires_grad for parameter in policy.model.parameters())
    assert all(leaf.is_inference() for leaf in policy.core_state)


def test_bfloat16_weights_give_float32_logits_near_the_exact_ones():
    choice = ModelChoice("impala_shallow", True, PIXELS, Discrete(6))
    observation = np.random.default_rng(0).integers(0, 256, (2, 4, 84, 84), dtype=np.uint8)
    (coarse, _), (exact, _) = policy_of(choice, dtype=torch.bfloat16), policy_of(choice)
    logits = coarse.act(row(observation), None).logits
    expected = exact.act(row(observation), None).logits
    assert logits.dtype == np.float32
    assert 0 < np.abs(logits - expected).max() < 0.02
    assert {leaf.dtype for leaf in coarse.state()} == {np.dtype(np.float32)}


# -- weights ----------------------------------------------------------------------------------------------------------------


def test_refresh_takes_the_newest_weights_and_says_their_version():
    choice = ModelChoice("mlp", False, VECTOR, Discrete(5))
    weights, _ = published(choice, version=3)
    policy = Policy(choice, torch.float32, weights, 2)
    assert policy.refresh() == 3
    before = policy.act(row(vectors()), None).logits
    other = choice.build()
    weights.publish(FlatModel(other).parameters, 4)
    np.testing.assert_array_equal(policy.act(row(vectors()), None).logits, before)  # not before it is asked to
    assert policy.refresh() == policy.version == 4
    assert np.abs(policy.act(row(vectors()), None).logits - before).max() > 1e-4
    for mine, theirs in zip(policy.model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_refresh_copies_nothing_if_nothing_is_new():
    policy, _ = policy_of(ModelChoice("mlp", False, VECTOR, Discrete(5)))
    with torch.no_grad():
        policy.model.policy.bias.fill_(7.0)
    assert policy.refresh() == 0
    assert (policy.model.policy.bias == 7.0).all()


# -- models by name -----------------------------------------------------------------------------------------------------------


def test_the_store_is_told_what_the_model_and_the_spaces_need():
    choice = ModelChoice("mlp", True, VECTOR, MultiDiscrete([3, 2]))
    observation = {"any": ArraySpec((3,), np.dtype(np.float32))}
    spec = choice.unroll_spec(choice.build(), observation, ("level",))
    assert spec.observation == observation
    assert spec.action == ArraySpec((2,), np.dtype(np.int64))
    assert spec.num_params == 5
    assert spec.core_state == (ArraySpec((256,), np.dtype(np.float32)),) * 2
    assert spec.metric_names == ("level",)
    without = ModelChoice("mlp", False, VECTOR, Discrete(2))
    assert without.unroll_spec(without.build(), observation, ()).core_state == ()


def test_an_unknown_model_is_answered_with_those_that_there_are():
    with pytest.raises(ModelError, match=r"no model 'impala_deep'.*impala_shallow.*my_package\.my_module"):
        ModelChoice("impala_deep", False, PIXELS, Discrete(2)).build()
    with pytest.raises(ModelError, match=r"no model 'no_such_package\.model'"):
        ModelChoice("no_such_package.model", False, PIXELS, Discrete(2)).build()


def test_a_model_that_does_not_fit_the_observations_says_so():
    with pytest.raises(ModelError, match=r"--model impala_shallow: an image model needs.*try --model mlp"):
        ModelChoice("impala_shallow", False, VECTOR, Discrete(2)).build()


def test_an_action_space_without_a_distribution_says_so():
    with pytest.raises(ModelError, match="unsupported action space"):
        ModelChoice("mlp", False, VECTOR, gymnasium.spaces.Text(3)).build()


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("own_models_empty", "x = 1", ModelError, "defines no class Model"),
        ("own_models_import", "import no_such_library_here", ModuleNotFoundError, "no_such_library_here"),
        ("own_models_raise", "def Model(*_):\n    raise ZeroDivisionError('mine')", ZeroDivisionError, "mine"),
    ],
)
def test_a_broken_module_of_the_users_own_shows_its_own_fault(tmp_path, monkeypatch, name, text, error, message):
    package = tmp_path / name
    package.mkdir()
    (package / "broken.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(error, match=message):
        ModelChoice(f"{package.name}.broken", False, VECTOR, Discrete(2)).build()


def test_a_model_of_the_users_own_is_found_by_its_module(tmp_path, monkeypatch):
    package = tmp_path / "own_models_good"
    package.mkdir()
    (package / "mine.py").write_text("from beast.models.mlp import Model as Base\nclass Model(Base):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    policy, _ = policy_of(ModelChoice("own_models_good.mine", True, VECTOR, Discrete(5)))
    assert type(policy.model).__module__ == "own_models_good.mine"
    assert policy.act(row(vectors()), None).logits.shape == (2, 5)


# -- seeds --------------------------------------------------------------------------------------------------------------------


def test_seeds_differ_in_everything_that_they_are_made_of():
    seeds = [
        seed_for(seed, stream, actor, life)
        for seed in range(5)
        for stream in ("env", "actions", "model")
        for actor in range(20)
        for life in range(5)
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)  # what the emulator takes


def test_a_seed_is_the_same_on_every_day():
    assert [seed_for(1, "env", 0, 0), seed_for(1, "actions", 3, 1)] == [2055679006, 865860617]


def test_a_model_whose_weights_are_read_anyway_draws_none(monkeypatch):
    choice = ModelChoice("impala_shallow", False, Box(0, 255, (2, 20, 20), np.uint8), Discrete(2))
    weights, _ = published(choice)

    def refuse(*_):
        raise AssertionError("weights are drawn")

    monkeypatch.setattr(torch.nn.init, "orthogonal_", refuse)
    Policy(choice, torch.float32, weights, 1).refresh()
    with pytest.raises(AssertionError, match="drawn"):
        choice.build()
