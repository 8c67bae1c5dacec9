"""The standard wrappers by flag, on environments of every kind."""

from __future__ import annotations

import itertools

import gymnasium
import numpy as np
import pytest
from conftest import assert_one_line
from gymnasium import spaces
from row_table import check_table, unrolls

from beast.core.errors import EnvError
from beast.envs import EnvChoice, Standard
from beast.envs.adapter import Adapter
from beast.envs.wrappers import ActionRepeat, Pictures, grey, is_picture, resized

TINY = ["--num_actors", 2, "--num_actor_processes", 0, "--unroll_length", 5, "--batch_size", 2, "--total_steps", 30]


class Counting(gymnasium.Env):
    """Shows and pays how often it was stepped; over after five steps."""

    def __init__(self, limit=5):
        self.observation_space, self.action_space = spaces.Box(0, 100, (2,), np.float32), spaces.Discrete(9)
        self.limit, self.actions = limit, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.at += 1
        self.actions.append(int(action))
        return np.full(2, self.at, np.float32), float(self.at), self.at == self.limit, False, {"is_success": True}


def choice(flags, module):
    return EnvChoice(f"{module}:make", standard=Standard(**flags))


@pytest.fixture
def counting(own_module, monkeypatch):
    """The name of a module whose `make` makes the Counting of this test."""
    name = own_module("own_counting", "make = None\ndef outer(env):\n    env.outer = True\n    return env\n")
    module = __import__(name)
    monkeypatch.setattr(module, "make", Counting)
    return name


def test_actions_are_repeated_rewards_added_and_no_step_taken_beyond_the_end():
    env = ActionRepeat(Adapter(Counting()), 3)
    env.reset()
    assert env.step(4)[:3] == (pytest.approx([3, 3]), 6.0, False)
    observation, reward, terminated, _, info = env.step(7)
    assert (observation.tolist(), reward, terminated) == ([5.0, 5.0], 9.0, True)
    assert env.unwrapped.actions == [4, 4, 4, 7, 7]
    assert info["is_success"] == 1.0


def test_the_repeat_counts_frames(counting):
    assert choice({}, counting).action_repeat == 1
    assert choice({"action_repeat": 3}, counting).action_repeat == 3
    assert EnvChoice("PongNoFrameskip-v4", standard=Standard(action_repeat=2)).action_repeat == 2


def test_a_limit_is_in_steps_of_the_policy_and_cuts(counting):
    group = choice({"max_episode_steps": 2, "action_repeat": 2}, counting).make_vector([0])
    group.reset()
    outputs = [group.step(np.array([0])) for _ in range(4)]
    assert [bool(output.truncated[0]) for output in outputs] == [False, True, False, False]
    assert [float(output.reward[0]) for output in outputs] == [3, 7, 0, 3]
    assert outputs[1].episode_steps[0] == 2


def test_a_limit_above_the_registered_one_replaces_it():
    name = "LongCatch-v0"
    gymnasium.register(name, "beast.envs.catch:Catch", kwargs={"rows": 100}, max_episode_steps=5)
    try:
        for limit, steps in ((None, 5), (50, 50), (3, 3)):
            group = EnvChoice(name, standard=Standard(max_episode_steps=limit)).make_vector([0])
            group.reset()
            outputs = [group.step(np.array([0])) for _ in range(steps)]
            assert [bool(output.truncated[0]) for output in outputs] == [False] * (steps - 1) + [True]
    finally:
        del gymnasium.registry[name]


def test_stacks_hold_the_newest_steps_blank_before_the_first(counting):
    group = choice({"frame_stack": 3}, counting).make_vector([0, 1])
    assert group.observation_spec.stack == 3
    assert group.observation_space.shape == (3, 2)
    seen = [group.reset().observation.copy()]
    seen += [group.step(np.zeros(2, np.int64)).observation.copy() for _ in range(7)]
    shown = [0, 1, 2, 3, 4, 5, 0, 1]  # the sixth step resets
    for t, observation in enumerate(seen):
        start = 6 if t >= 6 else 0
        stack = [shown[k] if k >= start else 0 for k in range(t - 2, t + 1)]
        np.testing.assert_array_equal(observation[0, :, 0], stack)


def test_stacked_rows_are_stored_once_and_rebuilt(counting):
    task, model, batches, _ = unrolls(
        {"env": f"{counting}:make", "frame_stack": 4, "use_lstm": True}, count=3, length=6
    )
    assert task.observation.stack == 4
    assert check_table(task, model, batches) > 0


def test_actions_stick(counting):
    group = choice({"repeat_action_probability": 0.5}, counting).make_vector([3])
    group.reset()
    asked = [int(a) for a in np.random.default_rng(0).integers(9, size=400)]
    for action in asked:
        group.step(np.array([action]))
    taken = group.vector.envs[0].unwrapped.actions
    assert 0.35 < np.mean([a == b for a, b in itertools.pairwise(taken)]) < 0.75
    assert set(taken) <= set(asked)


def test_the_users_own_wrappers_are_put_on_innermost_first(own_module, counting):
    name = own_module(
        "own_wrappers",
        "import gymnasium\n"
        "def double(env):\n    return gymnasium.wrappers.TransformReward(env, lambda r: 2 * r)\n"
        "class Plus(gymnasium.RewardWrapper):\n    def reward(self, reward):\n        return reward + 10\n",
    )
    for wrapper, paid in ((f"{name}:double", 2), (f"{name}:Plus", 11), (f"{name}:double, {name}:Plus", 12),
                          (f"{name}:Plus,{name}:double", 22)):  # fmt: skip
        group = choice({"wrapper": wrapper}, counting).make_vector([0])
        group.reset()
        assert group.step(np.array([0])).reward.tolist() == [paid]


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        ("nonsense", "--wrapper nonsense: write it my_package.my_module:wrap"),
        ("no_such_module:wrap", "--wrapper no_such_module:wrap: no module 'no_such_module'"),
        ("json:wrap", "--wrapper json:wrap: json has no function 'wrap'"),
        ("builtins:id", "--wrapper builtins:id returned .*: return one gymnasium.Env"),
    ],
)
def test_a_wrapper_that_is_none_is_one_line(wrapper, message):
    with pytest.raises(EnvError, match=message):
        EnvChoice("Catch-v0", standard=Standard(wrapper=wrapper)).make_vector([0])


# -- pictures -------------------------------------------------------------------------------------------------------------


class Seeing(gymnasium.Env):
    """Shows one picture for ever."""

    def __init__(self, picture, inside=lambda x: x):
        self.picture, self.inside = picture, inside
        space = spaces.Box(0, 255, picture.shape, np.uint8)
        self.observation_space = spaces.Dict(eye=space, other=spaces.Discrete(2)) if inside(0) else space
        self.action_space = spaces.Discrete(2)

    def _observation(self):
        return {"eye": self.picture, "other": 1} if self.inside(0) else self.picture

    def reset(self, *, seed=None, options=None):
        return self._observation(), {}

    def step(self, action):
        return self._observation(), 0.0, False, False, {}


GRADIENT = np.repeat(np.linspace(0, 250, 24, dtype=np.uint8)[:, None], 30, axis=1)
COLOURED = np.stack([GRADIENT, np.full_like(GRADIENT, 100), 255 - GRADIENT], axis=-1)


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a Dict"])
@pytest.mark.parametrize("layout", ["HW", "HWC", "CHW"])
def test_pictures_of_every_layout_become_smaller(layout, inside):
    picture = {"HW": GRADIENT, "HWC": COLOURED, "CHW": COLOURED.transpose(2, 0, 1)}[layout]
    env = Pictures(Seeing(picture, lambda _: inside), lambda p: resized(p, (12, 10)), "--resize")
    shape = {"HW": (12, 10), "HWC": (12, 10, 3), "CHW": (3, 12, 10)}[layout]
    space = env.observation_space["eye"] if inside else env.observation_space
    assert space == spaces.Box(0, 255, shape, np.uint8)
    for observation in (env.reset()[0], env.step(0)[0]):
        seen = observation["eye"] if inside else observation
        assert space.contains(seen)
        last = seen if layout == "HW" else seen[..., 0] if layout == "HWC" else seen[0]
        means = GRADIENT.reshape(12, 2, 30).mean((1, 2))
        np.testing.assert_allclose(last, np.repeat(means[:, None], 10, axis=1), atol=1)


@pytest.mark.parametrize("picture", [COLOURED, COLOURED.transpose(2, 0, 1)], ids=["HWC", "CHW"])
def test_pictures_become_grey_by_the_eyes_weights(picture):
    env = Pictures(Seeing(picture), grey, "--grayscale")
    seen = env.reset()[0]
    assert seen.shape == (24, 30)
    np.testing.assert_allclose(seen, COLOURED @ [0.299, 0.587, 0.114], atol=0.51)


def test_what_is_no_picture():
    assert is_picture(spaces.Box(0, 255, (9, 9, 3), np.uint8))
    assert not is_picture(spaces.Box(0, 1, (9, 9, 3), np.uint8))
    assert not is_picture(spaces.Box(0, 255, (9, 9, 3), np.float32))
    assert not is_picture(spaces.Box(0, 255, (9, 9, 7), np.uint8))
    assert not is_picture(spaces.Box(0, 255, (9,), np.uint8))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--resize", "20"], ["--resize", "no picture"]),
        (["--grayscale"], ["--grayscale", "no picture"]),
        (["--resize", "big"], ["--resize", "84", "HEIGHTxWIDTH", "'big'"]),
        (["--resize", "0x4"], ["--resize", "'0x4'"]),
        (["--action_repeat", 0], ["--action_repeat", "at least 1"]),
        (["--frame_stack", -1], ["--frame_stack", "at least 1"]),
        (["--max_episode_steps", 0], ["--max_episode_steps", "at least 1"]),
        (["--repeat_action_probability", 1], ["--repeat_action_probability", "[0, 1)"]),
        (["--env", "Blackjack-v1", "--frame_stack", 2], ["--frame_stack", "one Box", "--use_lstm"]),
    ],
)
def test_flags_that_do_not_fit_are_one_line(call, tmp_path, flags, words):
    done = call("--env", "CartPole-v1", *TINY, *flags)
    assert_one_line(done, *words)
    assert not (tmp_path / "runs").exists()


def test_no_run_goes_on_with_other_wrappers(call):
    assert call("--env", "CartPole-v1", "--xpid", "r", "--frame_stack", 2, *TINY).code == 0
    done = call("--resume", "r", "--total_steps", 60, "--frame_stack", 3)
    assert_one_line(done, "--frame_stack 3")
    done = call("--resume", "r", "--total_steps", 60)
    assert done.code == 0, done.err


# -- Atari ----------------------------------------------------------------------------------------------------------------


def test_on_atari_they_are_settings_of_the_emulator():
    flags = Standard(action_repeat=2, frame_stack=3, resize="42x40", max_episode_steps=6)
    group = EnvChoice("PongNoFrameskip-v4", standard=flags).make_vector([0])
    assert group.observation_space.shape == (3, 42, 40)
    assert group.observation_spec.stack == 3
    group.reset()
    outputs = [group.step(np.array([0])) for _ in range(7)]
    assert [bool(output.truncated[0]) for output in outputs].index(True) == 5
    single = EnvChoice("PongNoFrameskip-v4", standard=flags).make_single()
    assert single.observation_space.shape == (3, 42, 40)
    single.reset(seed=0)
    assert [single.step(0)[3] for _ in range(6)].index(True) <= 5


def test_on_atari_a_flag_and_its_argument_are_not_both_given():
    with pytest.raises(EnvError, match="--action_repeat and frameskip in --env_kwargs are the same setting"):
        EnvChoice("PongNoFrameskip-v4", {"frameskip": 2}, standard=Standard(action_repeat=3)).make_vector([0])


@pytest.mark.parametrize(("given", "sticky"), [(None, 0.0), (0.25, 0.25)])
def test_on_atari_actions_stick_in_the_emulator(monkeypatch, given, sticky):
    import ale_py.vector_env

    made = []
    real = ale_py.vector_env.AtariVectorEnv

    def recorded(game, **settings):
        made.append(settings)
        return real(game, **settings)

    monkeypatch.setattr(ale_py.vector_env, "AtariVectorEnv", recorded)
    EnvChoice("PongNoFrameskip-v4", standard=Standard(repeat_action_probability=given)).make_vector([0])
    assert made[0]["repeat_action_probability"] == sticky


def test_on_atari_the_users_own_wrappers_go_around_the_preprocessing(own_module):
    name = own_module(
        "own_atari",
        "import gymnasium\ndef wrap(env):\n    return gymnasium.wrappers.TransformReward(env, lambda r: r + 1)\n",
    )
    flags = {
        "env": "BreakoutNoFrameskip-v4",
        "wrapper": f"{name}:wrap",
        "env_kwargs": {"max_num_frames_per_episode": 60},
    }
    task, model, batches, _ = unrolls(flags, count=3, length=8)
    assert task.model.model == "atari_shallow"
    assert check_table(task, model, batches, lives=True) > 0
    assert all(batch.reward[~batch.first].min() >= 1 for batch in batches)


def lives_and_actions(**flags):
    """Breakout without anyone serving: what the emulator was given, and what it said of lives."""
    group = EnvChoice("BreakoutNoFrameskip-v4", {"noop_max": 0}, **flags).make_vector([0])
    given, step = [], group.vector.step

    def watched(actions):
        given.append(int(actions[0]))
        return step(actions)

    group.vector.step = watched
    group.reset()
    return given, [group.step(np.array([0])) for _ in range(200)]


def test_without_life_loss_a_lost_life_ends_nothing():
    _, outputs = lives_and_actions(life_loss=False, fire_on_life_loss=True)
    over = [t for t, output in enumerate(outputs) if output.terminated[0]]
    assert over  # with FIRE after each life all five are soon lost
    assert all(outputs[t + 1].first[0] for t in over if t + 1 < len(outputs))


def test_fire_is_taken_after_a_lost_life_and_at_no_other_step():
    given, outputs = lives_and_actions(fire_on_life_loss=True)
    lost = [t for t, output in enumerate(outputs[:-1]) if output.terminated[0] and not outputs[t + 1].first[0]]
    assert len(lost) >= 4
    assert [t for t, action in enumerate(given) if action == 1 and not outputs[t].first[0]] == [t + 1 for t in lost]
    assert not any(output.last_action[0] for output in outputs)  # what the policy chose
    given, outputs = lives_and_actions()
    assert not any(given)
    assert sum(output.terminated[0] for output in outputs) == 1  # nobody serves the second ball


def test_fire_is_taken_in_the_wrappers_of_a_single_game_too():
    env = EnvChoice("BreakoutNoFrameskip-v4", {"noop_max": 0}, fire_on_life_loss=True).make_single()
    _, info = env.reset(seed=0)
    lives = [info["lives"]]
    for _ in range(200):
        _, _, over, _, info = env.step(0)
        lives.append(info["lives"])
        if over:
            break
    assert min(lives) == 0
