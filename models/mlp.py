"""Two hidden layers on anything that flattens: vectors, Dict and Tuple observations, Discrete (one-hot)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import gymnasium
import torch
import torch.nn.functional as F
from torch import nn

from beast.data import Nested
from models.base import ActorCritic


class Model(ActorCritic):
    """FC, tanh, FC, tanh; with the LSTM, clipped reward and last action go in beside the features."""

    @dataclass(frozen=True)
    class Config:
        """Model (mlp)"""

        hidden_size: int = 128
        """units in each of both hidden layers"""

        def __post_init__(self) -> None:
            if self.hidden_size < 1:
                raise ValueError(f"--hidden_size must be at least 1, got {self.hidden_size}")

    def __init__(
        self, observation_space: Any, action_space: Any, use_lstm: bool = False, config: Config = Config()
    ) -> None:  # fmt: skip
        size = config.hidden_size
        super().__init__(observation_space, action_space, use_lstm, width=size, feed_last_step=use_lstm)
        self._space = observation_space
        self.fc1 = nn.Linear(_width(observation_space), size)
        self.fc2 = nn.Linear(size, size)

    def torso(self, observation: Nested) -> torch.Tensor:
        x = torch.cat(_vectors(self._space, observation, self.dtype), dim=-1)
        return torch.tanh(self.fc2(torch.tanh(self.fc1(x))))


def _parts(space: Any) -> list[tuple[Any, Any]]:
    """(key, subspace) of a nested space."""
    if isinstance(space, gymnasium.spaces.Dict):
        return list(space.spaces.items())
    return list(enumerate(space.spaces))


def _width(space: Any) -> int:
    if isinstance(space, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
        return sum(_width(part) for _, part in _parts(space))
    return int(space.n) if isinstance(space, gymnasium.spaces.Discrete) else math.prod(space.shape)


def _vectors(space: Any, observation: Nested, dtype: torch.dtype) -> list[torch.Tensor]:
    """The leaves as `[N, width]`, in the space's order."""
    if isinstance(space, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
        return [vector for key, part in _parts(space) for vector in _vectors(part, observation[key], dtype)]
    if isinstance(space, gymnasium.spaces.Discrete):
        return [F.one_hot((observation - int(space.start)).long(), int(space.n)).to(dtype)]
    x = observation.reshape(len(observation), -1).to(dtype)  # a scalar Box has no axis to flatten
    return [x / 255.0 if space.dtype.name == "uint8" else x]
