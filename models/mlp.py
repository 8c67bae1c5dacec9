"""Two hidden layers for anything that can be flattened: vectors, Dict and Tuple observations, Discrete (one-hot)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from beast.core.data import Nested, flatten
from beast.envs.spaces import Words, leaves

from .base import ActorCritic, PolicyConfig, VectorInput, check_initialisation, initialise


class Model(ActorCritic):
    """A network of FC, tanh, FC, tanh; with the LSTM, clipped reward and last action are features too.

    With `separate_value` the value has two such layers of its own, unless there is an LSTM, which both read.
    """

    @dataclass(frozen=True)
    class Config(PolicyConfig):
        """Model (mlp)"""

        hidden_size: int = 128
        """How many units each of the two hidden layers has."""
        separate_value: bool = False
        """Give the value hidden layers of its own, so that what it learns does not disturb the policy. With the LSTM it has
        none: both read that."""
        initialisation: str = "pytorch"
        """How weights are initialised: orthogonal, with a nearly uniform first policy, or pytorch (its layers' own)."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_initialisation(self.initialisation)
            if self.hidden_size < 1:
                raise ValueError(f"--hidden_size must be at least 1, got {self.hidden_size}")

    def __init__(
        self, observation_space: Any, action_space: Any, use_lstm: bool = False, config: Config = Config()
    ) -> None:  # fmt: skip
        size = config.hidden_size
        super().__init__(observation_space, action_space, use_lstm, width=size, feed_last_step=use_lstm, policy=config)
        for where, space in leaves(observation_space):
            if isinstance(space, Words):
                raise ValueError(f"observation_space{where} is a text, which it cannot read: use --model multi_input")
        self._inputs = [VectorInput(space) for _, space in leaves(observation_space)]
        width = sum(part.width for part in self._inputs)
        self.fc1 = nn.Linear(width, size)
        self.fc2 = nn.Linear(size, size)
        self.value_layers: nn.Module | None = None
        if config.separate_value and not use_lstm:
            self.value_layers = nn.Sequential(nn.Linear(width, size), nn.Tanh(), nn.Linear(size, size), nn.Tanh())
        initialise(self, config.initialisation)

    def torso(self, observation: Nested) -> torch.Tensor:
        """Return features `[N, hidden_size]` of observations whose leaves are `[N, ...]`."""
        return torch.tanh(self.fc2(torch.tanh(self.fc1(self._read(observation)))))

    def value_features(self, observation: Nested, features: torch.Tensor) -> torch.Tensor:
        """Return `[N, hidden_size]`: those of the value's own layers, if it has any."""
        return features if self.value_layers is None else self.value_layers(self._read(observation))

    def _read(self, observation: Nested) -> torch.Tensor:
        parts = zip(self._inputs, flatten(observation), strict=True)
        return torch.cat([part(leaf, self.dtype) for part, leaf in parts], dim=-1)
