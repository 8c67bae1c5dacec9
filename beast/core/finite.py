"""Whether tensors hold NaN or infinity, computed on their device."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def spoil(number: torch.Tensor, tensors: Iterable[torch.Tensor]) -> None:
    """Make `number` `[1]` NaN, in place, unless all tensors are finite. Does not wait for their device; skips integers."""
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            for extreme in tensor.aminmax() if tensor.ndim else (tensor,):
                number.add_(extreme, alpha=0)  # 0 times infinity is NaN; one launch, while `isfinite` takes four


def all_finite(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return whether all numbers are finite, as a boolean tensor on the same device, without synchronising with it.

    Integer tensors are skipped.
    """
    finite = torch.tensor(True)  # a CPU scalar combines with tensors of any device
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            low, high = tensor.aminmax()  # passes NaN on, and is ten times as fast as isfinite().all()
            finite = low.isfinite() & high.isfinite() & finite
    return finite
