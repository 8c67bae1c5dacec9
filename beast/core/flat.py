"""A model in two vectors: its parameters in the dtype that it computes in, its floating-point buffers in float32.

Clipping, the optimiser, publishing and reading are then one operation each, for any model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from beast.core.statistics import RunningStatistics


class FlatModel:
    """A model whose parameters and floating-point buffers are views of one vector each.

    Args:
        model: in float32; it is changed in place.
        device: where it computes.
        dtype: dtype in which it computes.

    Raises:
        ValueError: if its parameters are not all of one dtype.
    """

    def __init__(
        self, model: nn.Module, device: torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        self.model = model.to(device)
        parameters = list(model.parameters())
        buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        if len({p.dtype for p in parameters}) > 1:
            raise ValueError("a model's parameters must share one dtype")
        self.parameters = _move_together(parameters, dtype, device)
        """All parameters, `[P]` in the dtype that the model computes in."""
        self.statistics = _move_together(buffers, torch.float32, device)
        """All floating-point buffers, `[S]` float32, never rounded."""
        self.running = [part for part in model.modules() if isinstance(part, RunningStatistics)]

    def parameter_views(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the parts of another `[P]` vector, by parameter name and in its shape."""
        return _views(vector, [(name, p) for name, p in self.model.named_parameters()])

    def statistic_views(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the parts of another `[S]` vector, by buffer name and in its shape."""
        return _views(vector, [(name, b) for name, b in self.model.named_buffers() if b.is_floating_point()])

    @property
    def num_sums(self) -> int:
        """Number of elements of `sums`."""
        size = self.statistics.numel()
        return (1 + size if size else 0) + sum(1 + 2 * part.size for part in self.running)

    def sums(self) -> torch.Tensor:
        """Return what the last forward saw, `[num_sums]` float32: a one, the buffers after it, and all running sums."""
        if not self.num_sums:
            return self.statistics
        return torch.cat([self.statistics.new_ones(1), self.statistics, *(part.take_sums() for part in self.running)])

    def merge(self, sums: torch.Tensor) -> None:
        """Merge what forwards saw; buffers that a forward changes itself (BatchNorm's) become the mean over forwards.

        The forwards may have seen older statistics than today's; running ones count every step all the same.
        """
        if not self.num_sums:
            return
        size = self.statistics.numel()
        number, left = sums[:1], sums[1 : 1 + size]
        now = [[buffer.clone() for buffer in part.buffers()] for part in self.running]
        self.statistics.copy_(torch.where(number > 0, left / number.clamp(min=1.0), self.statistics))
        offset = 1 + size
        for part, buffers in zip(self.running, now, strict=True):
            around = part.mean.clone()
            for buffer, value in zip(part.buffers(), buffers, strict=True):
                buffer.copy_(value)
            part.merge(sums[offset : offset + 1 + 2 * part.size], around)
            offset += 1 + 2 * part.size


def _move_together(tensors: Sequence[torch.Tensor], dtype: torch.dtype, device: torch.device | None) -> torch.Tensor:
    """Concatenate tensors into one vector, of which they become views."""
    if not tensors:
        return torch.zeros(0, dtype=dtype, device=device)
    vector = torch.cat([tensor.detach().reshape(-1).to(dtype) for tensor in tensors])
    for tensor, view in zip(tensors, _split(vector, tensors), strict=True):
        tensor.data = view
    return vector


def _split(vector: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    sizes = [tensor.numel() for tensor in like]
    return [part.view(tensor.shape) for part, tensor in zip(torch.split(vector, sizes), like, strict=True)]


def _views(vector: torch.Tensor, named: list[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return dict(zip([name for name, _ in named], _split(vector, [tensor for _, tensor in named]), strict=True))
