"""Agents act as the actors did whose unrolls they are shown."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch

import beast
from beast.acting.actors import ActorArguments
from beast.acting.agent import Agent
from beast.acting.policy import Policy
from beast.core.data import map_nested, restack
from beast.core.flat import FlatModel
from beast.monobeast.actor import Actors
from beast.processes.status import Clock, LocalStatus
from beast.run import finding
from beast.run.resolve import resolve_config
from beast.store.unrolls import UnrollStore
from beast.store.weights import Weights

ACTORS, LENGTH, UNROLLS = 3, 9, 4
STATUS = LocalStatus(lambda: False, Clock())
RUNS = {
    "pong": {
        "env": "PongNoFrameskip-v4",
        "env_kwargs": {"max_num_frames_per_episode": 60},
        "model": "atari_shallow",
        "total_steps": 30,
        "unroll_length": 5,
    },
    "catch, lstm": {"env": "Catch-v0", "use_lstm": True, "total_steps": 400},
    "cartpole, lstm": {"env": "CartPole-v1", "use_lstm": True, "total_steps": 400},
}


@pytest.mark.parametrize("flags", RUNS.values(), ids=RUNS)
def test_logits_are_bit_for_bit_those_that_the_store_holds(tmp_path, flags):
    run = beast.train(
        **flags, precision="float32", num_actor_processes=0, num_actors=3, batch_size=3, savedir=tmp_path, xpid="run"
    )
    agent = beast.load(run)
    _, state = finding.load_newest(str(run), "", pytest.fail)
    _, task = resolve_config(state["config"] | {"xpid": None, "device": "cpu"})
    model = task.model.build()
    model.load_state_dict(state["learner"]["model"])
    flat = FlatModel(model)
    weights = Weights.like(flat)
    weights.publish(flat.parameters, 0, flat.statistics)
    store = UnrollStore(task.unroll, 4 * ACTORS, LENGTH)
    port = store.attach(0, ACTORS)
    arguments = ActorArguments(task.env, task.model, tuple(range(ACTORS)), 3, 0, LENGTH)
    actors = Actors(arguments, torch.float32, weights, port.writer, STATUS)
    openings = 0
    for _ in range(UNROLLS):
        slots = port.acquire(0.0)
        assert actors.unroll(slots)
        port.commit(slots)
        taken = store.next_slots(ACTORS, 1.0)
        batch, _ = store.read(taken)
        store.free(taken)
        stack = getattr(task.observation, "stack", 1)
        seen = restack(batch.observation, batch.first, stack) if stack > 1 else batch.observation
        openings += int(batch.first[1:].sum())
        for t in range(LENGTH):
            row = map_nested(lambda tensor, t=t: tensor[t].numpy(), seen)
            of_row = (getattr(batch, name)[t].numpy() for name in ("reward", "first"))
            chosen = agent.choose(row, *of_row, last_action=batch.last_action[t].numpy())
            assert np.array_equal(chosen.logits, batch.behaviour_logits[t].numpy()), t
    actors.close()
    store.close()
    assert openings  # episodes ended in between


@pytest.fixture(scope="module")
def policies():
    """Of CartPole, one without a memory and one with: the second reads rewards."""
    _, task = resolve_config({"env": "CartPole-v1"})

    def policy(use_lstm):
        return Policy(dataclasses.replace(task.model, use_lstm=use_lstm), torch.float32, None, 1)

    return {use_lstm: policy(use_lstm) for use_lstm in (False, True)}


OBSERVATION = np.array([0.1, -0.2, 0.3, -0.4], np.float32)


def warned(agent, *rewards):
    """The warnings of an act for each of these rewards."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for reward in rewards:
            agent.act(OBSERVATION, reward)
    return caught


def test_a_policy_that_reads_the_reward_asks_for_it_once(policies):
    agent = Agent(policies[True])
    assert not warned(agent, None)  # nothing was earned before the first row
    (warning,) = warned(agent, None, None, None)
    assert "reads the last reward" in str(warning.message)
    assert warning.filename == __file__  # whose line is to be mended
    agent.reset()
    assert not warned(agent, None, None)


def test_a_policy_that_is_given_the_reward_or_does_not_read_it_asks_for_nothing(policies):
    assert not warned(Agent(policies[True]), None, 1.0, 0.0)
    assert not warned(Agent(policies[False]), None, None, None)


def test_one_observation_is_answered_by_an_action_and_several_by_several(policies):
    agent = Agent(policies[False], deterministic=True)
    one = agent.act(OBSERVATION)
    assert np.shape(one) == ()
    agent.reset()
    assert np.array_equal(agent.act(np.stack([OBSERVATION] * 3)), [one] * 3)
    with pytest.raises(ValueError, match="reset"):
        agent.act(OBSERVATION)
    with pytest.raises(ValueError, match="Box"):
        agent.act(np.zeros(5))


def test_draws_are_repeated_by_their_seed_and_reset_forgets(policies):
    def actions(seed, steps=40):
        agent = Agent(policies[True], seed=seed)
        return [int(agent.act(OBSERVATION, 0.0)) for _ in range(steps)]

    assert actions(1) == actions(1) != actions(2)
    agent = Agent(policies[True], deterministic=True)
    before = [agent.act(OBSERVATION, 0.0) is not None and agent.logits for _ in range(3)]
    assert not np.array_equal(before[0], before[1])  # it remembers
    agent.reset()
    agent.act(OBSERVATION)
    assert np.array_equal(agent.logits, before[0])
    agent.act(OBSERVATION, 0.0, first=True)  # and so does the first row of an episode
    assert np.array_equal(agent.logits, before[0])
