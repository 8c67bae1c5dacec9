"""A model that normalises its observations by their running mean and variance."""

import torch

from beast.core.statistics import RunningStatistics
from beast.models.base import ActorCritic


class Model(ActorCritic):
    supports_bfloat16 = True

    def __init__(self, observation_space, action_space, use_lstm=False):
        super().__init__(observation_space, action_space, use_lstm, width=16, feed_last_step=False)
        (size,) = observation_space.shape
        self.statistics = RunningStatistics(size)
        self.fc = torch.nn.Linear(size, 16)

    def torso(self, observation):
        return torch.tanh(self.fc(self.statistics(observation).to(self.dtype)))
