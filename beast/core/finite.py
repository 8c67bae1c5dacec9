"""Whether tensors hold NaN or infinity, found out on their device."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def all_finite(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """One bool on their device, which is not waited for. Integers are not looked at."""
    finite = torch.tensor(True)  # a CPU scalar goes with tensors of any device
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            low, high = tensor.aminmax()  # hands NaN on, and is ten times as quick as isfinite().all()
            finite = low.isfinite() & high.isfinite() & finite
    return finite
