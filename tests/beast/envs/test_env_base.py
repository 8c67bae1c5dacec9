"""VectorEnvs over scripted Gymnasium environments: rows, returns, metrics, nested observations, broken environments."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from beast.core.data import ArraySpec
from beast.core.errors import EnvError
from beast.envs import EnvChoice
from beast.envs.adapter import METRICS
from beast.envs.base import VectorEnvs, vector_of
from beast.envs.spaces import spec_of

NAN = float("nan")


class Scripted(gymnasium.Env):
    """Shows `[episode, step]`, pays 10 * episode + step, ends as told. Also counts how often it was stepped."""

    metric_names = ("score", "bonus")

    def __init__(self, length=3, truncate=False, bonus=None):
        self.observation_space = Box(-1, np.inf, (2,), np.float32)
        self.action_space = Discrete(2)
        self.length, self.truncate, self.bonus = length, truncate, bonus
        self.episode, self.actions = 0, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.at = self.episode + 1, 0
        return self._observation(), {}

    def step(self, action):
        self.at += 1
        self.actions.append(int(action))
        over = self.at == self.length
        info = {"score": float(self.episode)} if over else {}
        if self.bonus is not None:
            info["bonus"] = self.bonus
        return (
            self._observation(),
            10.0 * self.episode + self.at,
            over and not self.truncate,
            over and self.truncate,
            info,
        )

    def _observation(self):
        return np.array([self.episode, self.at], np.float32)


class Fixed(gymnasium.Env):
    """Any space, any observation, any reward: for environments that break their own contract."""

    def __init__(self, space, observation, reward=0.0, good_resets=0):
        self.observation_space, self.action_space = space, Discrete(2)
        self.observation, self.reward, self.good_resets = observation, reward, good_resets

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return (self.observation_space.sample() if self.good_resets else self.observation), {}

    def step(self, action):
        return self.observation, self.reward, False, False, {}


def play(group, steps, action=0):
    """EnvOutputs of a reset and so many steps; observations copied, for SyncVectorEnv writes over its own."""
    outputs = [group.reset()]
    outputs[0] = outputs[0]._replace(observation=outputs[0].observation.copy())
    for _ in range(steps):
        output = group.step(np.full(group.num_envs, action))
        outputs.append(output._replace(observation=output.observation.copy()))
    return outputs


def column(outputs, name, env=0):
    return [getattr(output, name)[env].item() for output in outputs]


# -- rows ---------------------------------------------------------------------------------------------------------------


def test_the_last_observation_of_an_episode_has_a_row_and_the_reset_the_row_after_it():
    outputs = play(vector_of([lambda: Scripted(length=2)], [0]), 6)
    shown = [output.observation[0].tolist() for output in outputs]
    assert shown == [[1, 0], [1, 1], [1, 2], [2, 0], [2, 1], [2, 2], [3, 0]]
    assert column(outputs, "terminated") == [False, False, True, False, False, True, False]
    assert column(outputs, "first") == [True, False, False, True, False, False, True]


def test_the_action_on_an_episodes_last_row_reaches_no_environment():
    env = Scripted(length=2)
    group = vector_of([lambda: env], [0])
    group.reset()
    for action in (0, 1, 1, 0, 1):  # the third one is given on the last row of the first episode
        group.step(np.array([action]))
    assert env.actions == [0, 1, 0, 1]


def test_a_first_row_pays_nothing():
    outputs = play(vector_of([lambda: Scripted(length=2)], [0]), 6)
    assert column(outputs, "reward") == [0, 11, 12, 0, 21, 22, 0]


def test_a_truncated_episode_is_truncated_and_not_terminated():
    outputs = play(vector_of([lambda: Scripted(length=2, truncate=True)], [0]), 3)
    assert column(outputs, "truncated") == [False, False, True, False]
    assert column(outputs, "terminated") == [False] * 4
    assert outputs[2].observation[0].tolist() == [1, 2]  # its own last observation, not the next episode's first
    assert column(outputs, "first") == [True, False, False, True]


def test_an_episode_that_is_terminated_and_cut_on_one_step_counts_as_terminated():
    class Both(Scripted):
        def step(self, action):
            observation, reward, *_, info = super().step(action)
            return observation, reward, True, True, info

    outputs = play(vector_of([Both], [0]), 1)
    assert column(outputs, "terminated") == [False, True]
    assert column(outputs, "truncated") == [False, False]


def test_environments_of_a_group_end_each_at_its_own_time():
    outputs = play(vector_of([lambda: Scripted(length=2), lambda: Scripted(length=3)], [0, 1]), 6)
    assert column(outputs, "first", 0) == [True, False, False, True, False, False, True]
    assert column(outputs, "first", 1) == [True, False, False, False, True, False, False]


# -- returns ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("truncate", [False, True])
def test_the_return_and_length_of_a_game_stand_on_its_last_row_alone(truncate):
    outputs = play(vector_of([lambda: Scripted(length=3, truncate=truncate)], [0]), 7)
    np.testing.assert_array_equal(column(outputs, "episode_return"), [NAN, NAN, NAN, 36, NAN, NAN, NAN, 66])
    np.testing.assert_array_equal(column(outputs, "episode_steps"), [NAN, NAN, NAN, 3, NAN, NAN, NAN, 3])


def test_returns_of_a_group_are_kept_apart():
    outputs = play(vector_of([lambda: Scripted(length=2), lambda: Scripted(length=3)], [0, 1]), 3)
    np.testing.assert_array_equal(outputs[2].episode_return, [23, NAN])
    np.testing.assert_array_equal(outputs[3].episode_return, [NAN, 36])


def test_a_long_game_of_small_rewards_is_summed_without_float32_rounding():
    class Small(Fixed):
        at = 0

        def step(self, action):
            self.at += 1
            return self.observation, 0.1 if self.at > 1 else 1e6, self.at == 20_001, False, {}

    group = vector_of([lambda: Small(Discrete(2), 0)], [0])
    group.reset()
    for _ in range(20_001):
        output = group.step(np.array([0]))
    # Summed in float32 it would be 1_000_000 + 20_000 * 0.125, as numbers near a million are 1/16 apart.
    assert output.episode_return[0] == pytest.approx(1_002_000, abs=1)


def test_reset_forgets_a_game_that_was_under_way():
    group = vector_of([lambda: Scripted(length=3)], [0])
    play(group, 2)
    outputs = play(group, 3)
    assert outputs[3].episode_return[0] == 66  # of the second episode: 21 + 22 + 23
    assert outputs[3].episode_steps[0] == 3


# -- metrics ------------------------------------------------------------------------------------------------------------


def test_metric_names_are_found_under_gymnasiums_wrappers_and_reported_at_a_games_end():
    group = vector_of([lambda: gymnasium.wrappers.TimeLimit(Scripted(length=2, bonus=5.0), 100)], [0])
    assert group.metric_names[:2] == ("score", "bonus")
    outputs = play(group, 5)
    np.testing.assert_array_equal([output.metrics[0, 0] for output in outputs], [NAN, NAN, 1, NAN, NAN, 2])
    np.testing.assert_array_equal([output.metrics[0, 1] for output in outputs], [NAN, NAN, 5, NAN, NAN, 5])


def test_a_metric_that_an_environment_does_not_give_is_nan_even_if_another_gives_it():
    group = vector_of([lambda: Scripted(length=2), lambda: Scripted(length=3, bonus=7.0)], [0, 1])
    outputs = play(group, 3)
    np.testing.assert_array_equal(outputs[2].metrics[:, :2], [[1, NAN], [NAN, NAN]])
    np.testing.assert_array_equal(outputs[3].metrics[:, :2], [[NAN, NAN], [1, 7]])


def test_an_environment_without_metric_names_has_the_columns_that_all_have():
    group = vector_of([lambda: Fixed(Box(0, 1, (1,), np.float32), np.zeros(1, np.float32))], [0])
    assert group.metric_names == tuple(METRICS)
    assert all(
        np.isnan(output.metrics).all() and output.metrics.shape == (1, len(METRICS)) for output in play(group, 1)
    )


# -- observation spaces ---------------------------------------------------------------------------------------------------


def test_nested_observations_keep_their_structure():
    space = Dict(
        image=Box(0, 255, (2, 3), np.uint8),
        rest=Tuple((Discrete(5), MultiDiscrete([2, 3]), MultiBinary(4), Dict(deep=Box(-1, 1, (), np.float64)))),
    )
    sample = {
        "image": np.full((2, 3), 7, np.uint8),
        "rest": (3, np.array([1, 2]), np.array([0, 1, 1, 0], np.int8), {"deep": np.float64(0.5)}),
    }
    group = vector_of([lambda: Fixed(space, sample)] * 2, [0, 1])
    spec = group.observation_spec
    assert spec["image"] == ArraySpec((2, 3), np.dtype(np.uint8))
    assert spec["rest"][0] == ArraySpec((), np.dtype(np.int64))
    assert spec["rest"][3]["deep"] == ArraySpec((), np.dtype(np.float64))
    for output in (group.reset(), group.step(np.array([0, 1]))):
        observation = output.observation
        assert observation["image"].shape == (2, 2, 3)
        assert observation["rest"][0].tolist() == [3, 3]
        assert observation["rest"][1].tolist() == [[1, 2], [1, 2]]
        assert observation["rest"][2].tolist() == [[0, 1, 1, 0]] * 2
        assert observation["rest"][3]["deep"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("value", [2, np.int32(2), np.int64(2)])
def test_discrete_observations_may_be_integers_of_any_width(value):
    group = vector_of([lambda: Fixed(Discrete(3), value)], [0])
    assert group.reset().observation.tolist() == [2]


def test_an_unsupported_observation_space_is_refused_by_name():
    with pytest.raises(EnvError, match=r"observation space Graph.*at observation_space\['a'\]\[1\].*use Box, Discrete"):
        spec_of(Dict(a=Tuple((PAIR, Graph(PAIR, None)))))


# -- broken environments --------------------------------------------------------------------------------------------------

ZEROS = np.zeros(2, np.float32)
PAIR = Box(-1, 1, (2,), np.float32)
BROKEN = {
    "too long": (PAIR, np.zeros(3, np.float32), r"shape \(3,\).*says \(2,\)"),
    "would broadcast": (PAIR, np.zeros(1, np.float32), r"shape \(1,\).*says \(2,\)"),
    "scalar": (PAIR, np.float32(0), r"shape \(\).*says \(2,\)"),
    "floats for integers": (Box(0, 255, (2,), np.uint8), np.zeros(2), r"dtype float64.*says \(2,\) and uint8"),
    "list of text": (PAIR, ["0", "1"], r"dtype <U1.*float32"),
    "nothing": (PAIR, None, r"dtype object.*float32"),
    "ragged": (PAIR, [[0.0], [1.0, 2.0]], "does not describe.*inhomogeneous"),
    "float for Discrete": (Discrete(3), 1.0, r"dtype float64.*int64"),
    "missing key": (Dict(a=PAIR, b=PAIR), {"a": ZEROS}, "does not describe.*'b'"),
    "no dict": (Dict(a=PAIR), ZEROS, "does not describe"),
    "short tuple": (Tuple((PAIR, PAIR)), (ZEROS,), "does not describe.*shorter"),
    "long tuple": (Tuple((PAIR, PAIR)), (ZEROS, ZEROS, ZEROS), "does not describe.*longer"),
    "deep": (Dict(a=Tuple((PAIR,))), {"a": (np.zeros(9, np.float32),)}, r"shape \(9,\)"),
}


@pytest.mark.parametrize(("space", "observation", "message"), BROKEN.values(), ids=BROKEN)
def test_an_observation_that_its_space_does_not_describe_is_an_error_not_a_guess(space, observation, message):
    with pytest.raises(EnvError, match=rf"reset\(\) returned an observation.*{message}"):
        vector_of([lambda: Fixed(space, observation)], [0]).reset()
    group = vector_of([lambda: Fixed(space, observation, good_resets=1)], [0])
    group.reset()
    with pytest.raises(EnvError, match=rf"step\(\) returned an observation.*{message}"):
        group.step(np.array([0]))


SCALAR = Box(-1, 1, (), np.float32)
LOSSLESS = {
    "wider floats": (PAIR, np.array([0.25, 1.0]), [0.25, 1.0]),
    "narrower floats": (Box(-1, 1, (2,), np.float64), np.array([0.25, 1.0], np.float16), [0.25, 1.0]),
    "list": (PAIR, [0.25, -1.0], [0.25, -1.0]),
    "integers for floats": (PAIR, np.array([0, 1]), [0.0, 1.0]),
    "booleans for floats": (PAIR, np.array([False, True]), [0.0, 1.0]),
    "wider integers": (Box(0, 255, (2,), np.uint8), np.array([0, 255]), [0, 255]),
    "booleans for bytes": (Box(0, 1, (2,), np.uint8), np.array([False, True]), [0, 1]),
    "bits for booleans": (Box(0, 1, (2,), bool), np.array([0, 1]), [False, True]),
    "scalar for one element": (Box(-1, 1, (1,), np.float32), 0.5, [0.5]),
    "one element for scalar": (SCALAR, np.array([[0.5]]), 0.5),
    "array for Discrete": (Discrete(3), np.array([2], np.int32), 2),
    "tuple for bits": (MultiBinary(2), (0, 1), [0, 1]),
}


@pytest.mark.parametrize(("space", "said", "meant"), LOSSLESS.values(), ids=LOSSLESS)
def test_what_an_environment_says_is_cast_where_nothing_is_lost(space, said, meant):
    group = vector_of([lambda: Fixed(Dict(a=space), {"a": said})], [0])
    for output in (group.reset(), group.step(np.array([0]))):
        assert output.observation["a"].dtype == space.dtype
        assert output.observation["a"].tolist() == [meant]


@pytest.mark.parametrize("reward", [2, np.float64(2), np.array(2), np.array([2], np.int32), [[2.0]], True + True])
def test_a_reward_may_be_any_one_number(reward):
    group = vector_of([lambda: Fixed(PAIR, ZEROS, reward)], [0])
    group.reset()
    assert group.step(np.array([0])).reward.tolist() == [2.0]


@pytest.mark.parametrize("bad", [NAN, float("inf")])
def test_an_observation_that_is_not_finite_is_for_the_learner_to_skip(bad):
    group = vector_of([lambda: Fixed(PAIR, np.array([0, bad], np.float32), good_resets=1)], [0])
    group.reset()
    np.testing.assert_array_equal(group.step(np.array([0])).observation, [[0, bad]])


@pytest.mark.parametrize("bad", [NAN, float("inf"), float("-inf"), 1e300])
def test_a_reward_that_is_not_finite_passes_but_spoils_no_mean_return(bad):
    def maker(reward):
        return lambda: gymnasium.wrappers.TimeLimit(Fixed(PAIR, ZEROS, reward), 2)

    group = vector_of([maker(1.0), maker(bad)], [0, 1])
    outputs = play(group, 2)
    for output in outputs[1:]:
        np.testing.assert_array_equal(output.reward, np.float32([1.0, float("inf") if bad == 1e300 else bad]))
    np.testing.assert_array_equal(outputs[-1].episode_steps, [2, 2])
    np.testing.assert_array_equal(outputs[-1].episode_return, [2, NAN])


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_a_vector_environment_that_resets_otherwise_is_refused(mode):
    with pytest.raises(EnvError, match=r"must use AutoresetMode\.NEXT_STEP"):
        VectorEnvs(SyncVectorEnv([Scripted], autoreset_mode=mode), [0])


# -- by name --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("PongNoFramskip-v4", "PongNoFrameskip-v4"),
        ("ALE/Pong-v4", "ALE/Pong-v5"),
        ("CartPole-v11", "CartPole-v1"),
        ("Cach-v0", "Catch-v0"),
    ],
)
def test_a_misspelt_id_is_answered_with_the_nearest_one(name, meant):
    with pytest.raises(EnvError, match=f"unknown --env {name}; did you mean {meant}"):
        EnvChoice(name).make_vector([0])


def test_an_id_like_no_other_is_answered_with_what_an_id_looks_like():
    with pytest.raises(EnvError, match=r"unknown --env ~~~~: use a Gymnasium id .*my_module:make_env"):
        EnvChoice("~~~~").make_vector([0])


def test_arguments_that_an_environment_does_not_take_are_one_line():
    with pytest.raises(EnvError, match=r"cannot make --env Catch-v0: .*colour") as caught:
        EnvChoice("Catch-v0", {"colour": "red"}).make_vector([0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["Catch-v0", "Catch"])
def test_our_own_environments_are_known_with_and_without_their_version(name):
    assert EnvChoice(name).make_vector([0]).observation_space.shape == (10, 5)


def test_a_function_of_the_users_own_gets_env_kwargs_and_is_called_once_an_environment(own_module):
    name = own_module(
        "own_env_counted",
        "from beast.envs.catch import Catch\n"
        "calls = []\n"
        "def make(**kwargs):\n    calls.append(kwargs)\n    return Catch(**kwargs)\n",
    )
    group = EnvChoice(f"{name}:make", {"rows": 4}).make_vector([0, 1, 2])
    assert group.num_envs == 3
    assert group.observation_space.shape == (4, 5)
    assert __import__(name).calls == [{"rows": 4}] * 3


def test_a_missing_module_is_named():
    with pytest.raises(EnvError, match=r"no module 'no_such_module_here'.*PYTHONPATH"):
        EnvChoice("no_such_module_here:make_env").make_vector([0])


def test_a_missing_submodule_is_named(own_module):
    name = own_module("own_env_no_package", "")
    with pytest.raises(EnvError, match=rf"no module '{name}\.deeper'"):
        EnvChoice(f"{name}.deeper:make_env").make_vector([0])


def test_a_missing_function_is_named(own_module):
    name = own_module("own_env_without_function", "x = 1")
    with pytest.raises(EnvError, match=f"{name} has no 'make_env'"):
        EnvChoice(f"{name}:make_env").make_vector([0])


def test_a_module_whose_own_import_fails_shows_that_import(own_module):
    name = own_module("own_env_bad_import", "import no_such_library_here")
    with pytest.raises(ModuleNotFoundError, match="no_such_library_here"):
        EnvChoice(f"{name}:make_env").make_vector([0])


def test_an_exception_in_the_users_own_function_comes_through_as_it_is(own_module):
    name = own_module("own_env_raises", "def make_env():\n    raise ZeroDivisionError('mine')")
    with pytest.raises(ZeroDivisionError, match="mine"):
        EnvChoice(f"{name}:make_env").make_vector([0])


def test_a_function_that_returns_a_vector_environment_is_refused(own_module):
    name = own_module(
        "own_env_vector", "import gymnasium\ndef make_env():\n    return gymnasium.make_vec('CartPole-v1', num_envs=2)"
    )
    with pytest.raises(EnvError, match="returned a VectorEnv"):
        EnvChoice(f"{name}:make_env").make_vector([0])


def test_each_environment_gets_its_own_seed():
    def starts(seeds):
        return EnvChoice("CartPole-v1").make_vector(seeds).reset().observation

    three = starts([5, 6, 7])
    assert len({tuple(row) for row in three.tolist()}) == 3
    np.testing.assert_array_equal(three, np.concatenate([starts([5]), starts([6]), starts([7])]))
