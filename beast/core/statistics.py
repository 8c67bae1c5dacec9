"""Running statistics: float32 means and variances that the learner keeps, and that every actor and evaluation sees.

A forward in the learner does not change them but sums what it saw. Sums may be added over passes, micro-batches and ranks;
`Learner.apply` merges them together with their update, unless that is skipped.
"""

from __future__ import annotations

import torch
from torch import nn


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
    def observe(self, x: torch.Tensor) -> None:
        """Note what was seen: `[..., size]`. A row that two unrolls share counts in both."""
        seen = x.reshape(-1, self.size).float() - self.mean
        count = torch.full((1,), float(len(seen)), device=seen.device)
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
