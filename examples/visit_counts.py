"""State that lives for an episode.

`python run.py --env FrozenLake-v1 --wrapper examples.visit_counts:VisitCounts --model examples.visit_counts`: a wrapper counts
the visits of each state and clears the counts at each reset. It declares their key of `info` in `info_columns`, so each row of
an unroll holds them (`Batch.extra`), and the model reads them in acting and learning. A model's own state of an episode is
its recurrent state: any nesting of tensors, zeroed where `first` is set.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from beast.core.data import ModelInput, Nested
from beast.models import mlp


class VisitCounts(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A wrapper that counts the visits of each state of a Discrete observation space within the episode."""

    info_columns = {"visits": spaces.Box(0, np.inf, (), np.float32)}  # noqa: RUF012

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Clear the counts and count the first state."""
        observation, info = self.env.reset(**kwargs)
        self._counts: dict[Any, int] = {}
        return observation, self._counted(observation, info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take the action and count the state that it leads to."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, self._counted(observation, info)

    def _counted(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        self._counts[observation] = self._counts.get(observation, 0) + 1
        return info | {"visits": np.float32(self._counts[observation])}


class Model(mlp.Model):
    """The built-in mlp, whose first layer also reads log(1 + visits)."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.visits = torch.nn.Linear(1, self.fc1.out_features, bias=False)

    def forward(self, inputs: ModelInput, core_state: Nested) -> Any:
        """Do as mlp's forward, with the features of the visits at hand for `torso`."""
        self._seen = self.visits(inputs.extra["visits"].log1p().reshape(-1, 1).to(self.dtype))  # [T * B, width]
        return super().forward(inputs, core_state)

    def torso(self, observation: Nested) -> torch.Tensor:
        """Return features `[N, width]` of the observation and the visits."""
        return torch.tanh(super().torso(observation) + self._seen)
