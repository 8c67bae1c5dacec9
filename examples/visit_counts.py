"""State that lives for an episode.

`python run.py --env FrozenLake-v1 --wrapper examples.visit_counts:wrap --model examples.visit_counts`: how often each
state was visited is counted by the environment, stored with the unroll, and seen by the model. The environment's side is a
wrapper: it keeps the state, begins it anew at each reset, and declares what `info` holds as `info_columns`. Each row of an
unroll then has it (`Batch.extra`), and the model reads it where it acts and where it learns. A model's own state of an
episode is its recurrent state: any nesting of tensors, zeroed where `first` is set.
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
    """Counts visits of each state of a Discrete observation space within the episode."""

    info_columns = {"visits": spaces.Box(0, np.inf, (), np.float32)}  # noqa: RUF012

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        self._counts: dict[Any, int] = {}
        return observation, self._counted(observation, info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, self._counted(observation, info)

    def _counted(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        self._counts[observation] = self._counts.get(observation, 0) + 1
        return info | {"visits": np.float32(self._counts[observation])}


def wrap(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """What `--wrapper` names."""
    return VisitCounts(env)


class Model(mlp.Model):
    """The built-in network, whose first layer also sees log(visits)."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.visits = torch.nn.Linear(1, self.fc1.out_features, bias=False)

    def forward(self, inputs: ModelInput, core_state: Nested) -> Any:
        self._seen = self.visits(inputs.extra["visits"].log1p().reshape(-1, 1).to(self.dtype))  # [T * B, width]
        return super().forward(inputs, core_state)

    def torso(self, observation: Nested) -> torch.Tensor:
        return torch.tanh(super().torso(observation) + self._seen)
