"""Running statistics: float32 means and variances that the learner keeps, and that every actor and evaluation sees.

A forward in the learner does not change them but sums what it saw. Sums may be added over passes, micro-batches and ranks;
`Learner.apply` merges them together with their update, unless that is skipped.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import torch
from torch import nn

from beast.core.data import ModelInput, Nested, map_nested

OBSERVATION_BOUND = 10.0
"""Of normalised observations: a number that was constant for long, and then moves, would be as large as you like."""


class RunningStatistics(nn.Module):
    """The mean and variance of each number of a vector, over all steps learned from so far.

    A model, or an algorithm's own module, has one as a submodule; its buffers are float32 whatever the model computes in.

    Args:
        size: how many numbers a step has.
    """

    count: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(size))
        self._sums: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise `[..., size]` by the statistics as they stand; float32. In training mode also note what was seen."""
        x = x.float()
        if self.training:
            self.observe(x)
        return (x - self.mean) * (self.variance + 1e-8).rsqrt()

    @torch.no_grad()
    def observe(self, x: torch.Tensor, counted: torch.Tensor | None = None) -> None:
        """Note what was seen. A row that two unrolls share counts in both.

        Args:
            x: `[..., size]`.
            counted: `[...]` bool, which rows count; None: all.
        """
        seen = x.reshape(-1, self.size).float() - self.mean
        count = torch.full((1,), float(len(seen)), device=seen.device)
        if counted is not None:
            seen = torch.where(counted.reshape(-1, 1), seen, 0.0)
            count = counted.sum().float().reshape(1)
        self._sums = torch.cat([count, seen.sum(0), seen.square().sum(0)])

    def take_sums(self) -> torch.Tensor:
        """`[1 + 2 * size]` float32 of the last forward in training mode: count, sums and square sums around `mean`.

        Zeros if there was none since the last call.
        """
        sums, self._sums = self._sums, None
        return self.mean.new_zeros(1 + 2 * self.size) if sums is None else sums

    @torch.no_grad()
    def merge(self, sums: torch.Tensor, around: torch.Tensor | None = None) -> None:
        """Take sums in, of one forward or added over several that saw the same `mean`; sums of nothing change nothing.

        Args:
            sums: as `take_sums` gave them.
            around: the `mean` that the forwards saw; None: the current one.
        """
        number, total, squares = sums[:1], sums[1 : 1 + self.size], sums[1 + self.size :]
        if around is not None:
            moved = around - self.mean
            total, squares = total + number * moved, squares + moved * (2.0 * total + number * moved)
        both = self.count + number
        shift = total / both.clamp(min=1.0)
        spread = self.variance * self.count + squares - shift.square() * both
        self.variance.copy_(torch.where(both > 0, spread / both.clamp(min=1.0), self.variance))
        self.mean.add_(shift)
        self.count.copy_(both)


class NormalisedObservation(nn.Module):
    """Observations whose vectors have mean 0 and variance 1, over all steps learned from so far, clipped to [-10, 10].

    Vectors are the parts of a space that hold floating-point numbers along at most two axes (one of them may be a frame
    stack's); pictures, choices, whole numbers and texts pass as they are.

    Args:
        space: of observations, nested to any depth.
    """

    def __init__(self, space: gymnasium.Space[Any]) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        self._places = self._places_of(space)

    def _places_of(self, space: gymnasium.Space[Any]) -> Nested:
        """Nested as the space is: the place of a vector's statistics in `parts`, None for all else. Fills `parts`."""
        if isinstance(space, gymnasium.spaces.Dict):
            return {key: self._places_of(part) for key, part in space.spaces.items()}
        if isinstance(space, gymnasium.spaces.Tuple):
            return tuple(self._places_of(part) for part in space.spaces)
        if not isinstance(space, gymnasium.spaces.Box) or space.dtype.kind != "f" or len(space.shape) > 2:
            return None
        self.parts.append(RunningStatistics(math.prod(space.shape)))
        return len(self.parts) - 1

    def forward(self, observation: Nested) -> Nested:
        """`[T, B, ...]` in every leaf, and the same out."""
        return map_nested(self._normalised, self._places, observation)

    def _normalised(self, place: int | None, x: torch.Tensor) -> torch.Tensor:
        if place is None:
            return x
        flat: torch.Tensor = self.parts[place](x.reshape(*x.shape[:2], -1))
        return flat.clamp(-OBSERVATION_BOUND, OBSERVATION_BOUND).view(x.shape)


def has_vectors(space: gymnasium.Space[Any]) -> bool:
    """Whether an observation space has any part that can be normalised."""
    return bool(NormalisedObservation(space).parts)


def normalise_observations(model: nn.Module, space: gymnasium.Space[Any]) -> None:
    """Let a model read normalised observations; the statistics become a part of it, `observation_statistics`.

    Raises:
        ValueError: if there is nothing to normalise in the space.
    """
    statistics = NormalisedObservation(space)
    if not statistics.parts:
        raise ValueError(
            f"no part of {space} is a vector of floating-point numbers, which --normalise_observations is for"
        )
    model.observation_statistics = statistics

    def normalise(_: nn.Module, arguments: tuple[ModelInput, Nested]) -> tuple[ModelInput, Nested]:
        inputs, core_state = arguments
        return inputs._replace(observation=statistics(inputs.observation)), core_state

    model.register_forward_pre_hook(normalise)
