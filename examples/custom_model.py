"""A model of your own: `python run.py --env CartPole-v1 --model examples.custom_model`.

The contract is in models/base.py. The recurrent state of this model is a running mean of its features, not an LSTM's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from beast.core.data import ModelInput, ModelOutput
from beast.core.distributions import distribution_for


class Model(nn.Module):
    """A network of FC 64 on the observation, beside a running mean of past features with decay 0.5."""

    def __init__(self, observation_space: Any, action_space: Any, use_lstm: bool = False) -> None:
        super().__init__()
        if use_lstm:
            raise ValueError("it has a memory of its own, leave --use_lstm out")
        self.fc = nn.Linear(observation_space.shape[0], 64)
        self.policy = nn.Linear(128, distribution_for(action_space).num_params)
        self.baseline = nn.Linear(128, 1)

    def initial_state(self, batch_size: int) -> tuple[torch.Tensor, ...]:
        """Return a mean of zero: `[batch_size, 64]`."""
        return (torch.zeros(batch_size, 64),)

    def forward(self, inputs: ModelInput, core_state: Any) -> tuple[ModelOutput, Any]:
        """Return logits `[T, B, P]`, values `[T, B]` and the new mean."""
        features = torch.tanh(self.fc(inputs.observation))  # [T, B, 64]
        (mean,) = core_state
        means = []
        for x, first in zip(features, inputs.first, strict=True):
            mean = 0.5 * mean * ~first[:, None] + 0.5 * x  # [B, 64], from zero on an episode's first row
            means.append(mean)
        x = torch.cat([features, torch.stack(means)], dim=-1)
        return ModelOutput(self.policy(x), self.baseline(x).squeeze(-1)), (mean,)
