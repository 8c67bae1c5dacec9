"""Odd environments: each either trains, in both beasts, or is refused in one line, by its key, before anything is written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import zoo
from conftest import assert_one_line, rows
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from row_table import check_table, unrolls

from beast.core.errors import EnvError
from beast.envs import EnvChoice
from beast.envs.adapter import Adapter
from beast.envs.base import VectorEnvs

TINY = ["--num_actors", 2, "--num_actor_processes", 0, "--unroll_length", 8, "--batch_size", 2, "--total_steps", 48]
RUNNING = [*zoo.OBSERVATIONS, *zoo.ACTIONS, *zoo.OTHERS]


@pytest.fixture(autouse=True)
def _zoo_can_be_named(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(zoo.__file__).parent))
    assert sys.modules["zoo"] is zoo


def flags_of(name):
    return ["--env", "zoo:make", "--env_kwargs", json.dumps({"name": name})]


@pytest.mark.parametrize("name", RUNNING)
def test_rows_keep_to_the_table(name):
    task, model, batches, episodes = unrolls({"env": "zoo:make", "env_kwargs": {"name": name}}, count=2, length=8)
    assert check_table(task, model, batches) > 0
    assert {episode.episode_steps for episode in episodes} <= {5, 7}


@pytest.mark.parametrize(("number", "name"), list(enumerate(RUNNING)), ids=RUNNING)
def test_it_trains(call, tmp_path, number, name):
    trainer = ("monobeast", "polybeast")[number % 2]
    lstm = ["--use_lstm"] if number % 3 == 0 else ["--no_use_lstm"]
    done = call(*flags_of(name), "--trainer", trainer, "--xpid", "r", "--disable_checkpoint", *TINY, *lstm)
    assert done.code == 0, done.err
    assert "finished at step 48 of 48" in done.out
    assert all(np.isfinite(row["total_loss"]) for row in rows(tmp_path / "runs" / "r") if "total_loss" in row)


@pytest.mark.parametrize("name", [*zoo.REFUSED_OBSERVATIONS, *zoo.REFUSED_ACTIONS, "nameless"])
def test_it_is_refused_by_its_key_with_a_way_out(call, tmp_path, name):
    words = (zoo.REFUSED_OBSERVATIONS | zoo.REFUSED_ACTIONS | {"nameless": (None, "no gymnasium.Space")})[name][1]
    done = call(*flags_of(name), *TINY)
    assert_one_line(done, words)
    assert any(way in done.err for way in ("--wrapper", "--resize", "MultiDiscrete", "mend"))
    assert not (tmp_path / "runs").exists()


def test_environments_of_one_name_with_different_spaces_are_refused():
    with pytest.raises(EnvError, match=r"different spaces.*\(1,\).*\(2,\).*observation_space"):
        EnvChoice("zoo:different").make_vector([0, 1])


@pytest.mark.parametrize("name", ["dict", "dict of actions", "old class"])
def test_it_is_evaluated_and_filmed(call, tmp_path, name):
    assert call(*flags_of(name), "--xpid", "r", *TINY).code == 0
    extra = {} if name == "old class" else {"render_mode": "rgb_array"}
    other = ["--env", "zoo:make", "--env_kwargs", json.dumps({"name": name, **extra})]
    video = [] if name == "old class" else ["--video", "videos"]
    done = call("evaluate", "--checkpoint", "r", "--episodes", 2, *other, *video)
    assert done.code == 0, done.err
    assert ("mean return 5" if name == "old class" else "mean return 7") in done.out
    assert not video or (tmp_path / "videos" / "episode.mp4").stat().st_size > 0


def test_evaluation_refuses_another_environment_of_other_spaces(call):
    assert call(*flags_of("box"), "--xpid", "r", *TINY).code == 0
    done = call("evaluate", "--checkpoint", "r", "--env", "CartPole-v1")
    assert_one_line(done, "--env CartPole-v1", "observation space", "trained on")
    done = call("evaluate", "--checkpoint", "r", "--env_kwargs", '{"name": "buttons"}')
    assert_one_line(done, "action space", "trained on Discrete(2)")


# -- info ---------------------------------------------------------------------------------------------------------------


def test_success_and_episode_statistics_reach_the_logs(call, tmp_path):
    assert call(*flags_of("box"), "--xpid", "r", "--disable_checkpoint", *TINY).code == 0
    last = rows(tmp_path / "runs" / "r")[-1]
    assert (last["env/is_success"], last["env/episode_r"], last["env/episode_l"]) == (1.0, 3.5, 7.0)


def test_info_of_changing_types_does_no_harm():
    group = EnvChoice("zoo:make", {"name": "box"}).make_vector([0, 1])  # info holds None, a text, a boolean, a dict
    group.reset()
    for _ in range(20):
        output = group.step(np.zeros(2, np.int64))
    assert set(group.metric_names) == {"is_success", "episode_r", "episode_l"}
    assert np.isnan(output.metrics).all() or output.metrics.shape == (2, 3)


# -- rewards --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reward", [np.ones(2), [1.0, 2.0], None, "much", {"a": 1}])
def test_a_reward_that_is_no_number_is_one_line(reward):
    class Paying(zoo.Odd):
        def step(self, action):
            observation, _, over, cut, info = super().step(action)
            return observation, reward, over, cut, info

    env = Adapter(Paying(spaces.Box(-1, 1, (2,)), zoo.TWO))
    env.reset()
    with pytest.raises(EnvError, match=r"as reward: it must be one number.*--wrapper"):
        env.step(0)


@pytest.mark.parametrize("answer", [None, (1, 2, 3), 5])
def test_a_step_that_returns_something_else_is_one_line(answer):
    class Odder(zoo.Odd):
        def step(self, action):
            return answer

    env = Adapter(Odder(spaces.Box(-1, 1, (2,)), zoo.TWO))
    env.reset()
    with pytest.raises(
        EnvError, match=r"step\(\) returned .*: return observation, reward, terminated, truncated, info"
    ):
        env.step(0)


# -- text -----------------------------------------------------------------------------------------------------------------


def test_words_are_the_same_numbers_everywhere_and_always():
    env = Adapter(zoo.Odd(spaces.Text(100), zoo.TWO, lambda text: "Go to the RED door, then go!"))
    words, _ = env.reset()
    assert words.dtype == np.int16
    assert words.shape == (50,)
    assert words[:7].tolist() == [775, 757, 79, 456, 102, 891, 775]
    assert not words[7:].any()


def test_a_text_that_is_none_is_one_line():
    env = Adapter(zoo.Odd(spaces.Dict(a=spaces.Text(10)), zoo.TWO, lambda text: {"a": b"bytes"}))
    with pytest.raises(EnvError, match=r"observation\['a'\] b'bytes', its observation_space says Text"):
        env.reset()


@pytest.mark.parametrize(
    ("space", "value"),
    [
        (spaces.Discrete(3), 3),
        (spaces.Discrete(3, start=2), 1),
        (spaces.MultiDiscrete([2, 3]), np.array([2, 0])),
        (spaces.Box(0, 255, (2,), np.uint8), np.array([256, 0])),
        (spaces.Box(0, 255, (2,), np.uint8), np.array([-1, 0])),
        (spaces.MultiBinary(2), [0, 300]),
    ],
)
def test_numbers_that_a_space_has_no_place_for_are_refused(space, value):
    env = Adapter(zoo.Odd(spaces.Dict(a=space), zoo.TWO, lambda _: {"a": value}))
    with pytest.raises(EnvError, match=r"observation\['a'\] of .*, its observation_space says .*: mend"):
        env.reset()


def test_what_an_adapter_says_fits_what_gymnasium_stores():
    """Whatever an environment's own types are, the batch has the spec's."""
    group = VectorEnvs(SyncVectorEnv([lambda: Adapter(zoo.make("lists and arrays of one element"))] * 2), [0, 1])
    observation = group.reset().observation
    assert observation["a"].dtype == np.float32
    assert observation["b"].dtype == np.uint8
    assert observation["kind"].dtype == np.int64
