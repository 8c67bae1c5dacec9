"""Full games with an agent: as many as were asked for, none of them because it was short."""

from __future__ import annotations

import itertools

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from beast.acting.agent import Agent
from beast.acting.play import play
from beast.acting.policy import Policy
from beast.run.resolve import resolve_config


class Long(gymnasium.Env):
    """A game of so many steps, which is worth them; each environment that is made has the next of `lengths`."""

    lengths = itertools.repeat(1)
    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self):
        self.length = next(Long.lengths)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(1, np.float32), 1.0, self.steps == self.length, False, {}


def played(episodes, lengths):
    """Returns and lengths of so many games, where each environment has games of its own length."""
    Long.lengths = itertools.repeat(1)
    _, task = resolve_config({"env": f"{__name__}:Long"})
    agent = Agent(Policy(task.model, torch.float32, None, 1), seed=0)
    Long.lengths = iter(lengths)
    return play(task, agent, episodes, seed=0)


def test_short_games_are_not_favoured():
    lengths = [2, 50, 3, 40]
    returns, steps = played(4, lengths)
    assert sorted(steps) == sorted(lengths)  # the first four to finish would all be of the two short ones
    assert sorted(returns) == sorted(lengths)


def test_each_environment_plays_its_share_when_there_are_more_games_than_environments():
    lengths = [2, 30] * 8
    returns, steps = played(24, lengths)
    assert len(returns) == len(steps) == 24
    counts = {length: steps.count(length) for length in (2, 30)}
    assert sorted(counts) == [2, 30]
    assert counts[2] == counts[30] == 12
