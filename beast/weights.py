"""The newest policy, in shared memory, read without a lock.

Two copies of the flat parameter vector. The learner writes version v into copy v % 2 and then announces v; a reader copies
the announced one and checks that the learner did not begin to write that copy again meanwhile. It retries if so, which takes
a learner that publishes twice within one memory copy. Thus no reader waits, no writer waits, and nothing torn is ever used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from beast.data import ArraySpec
from beast.finite import all_finite
from beast.shared import SharedArrays


class Weights:
    """Shared by one writer and any number of readers; pickles into child processes.

    Args:
        size: numbers in the flat vector.
        dtype: what the policy acts in.
    """

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self._dtype = dtype
        bits = np.dtype(np.uint16 if dtype == torch.bfloat16 else np.uint32)  # NumPy knows no bfloat16
        self._shared = SharedArrays(
            {
                "copies": ArraySpec((2, size), bits),
                "begun": ArraySpec((1,), np.dtype(np.int64)),
                "announced": ArraySpec((1,), np.dtype(np.int64)),
            }
        )
        self._shared.arrays["announced"][0] = -1
        self._view()

    def _view(self) -> None:
        arrays = self._shared.arrays
        self._begun, self._announced = arrays["begun"], arrays["announced"]
        self._copies = torch.from_numpy(arrays["copies"]).view(self._dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {"dtype": self._dtype, "shared": self._shared}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._dtype, self._shared = state["dtype"], state["shared"]
        self._view()

    @property
    def version(self) -> int:
        """The newest complete version; -1 before the first."""
        return int(self._announced[0])

    def publish(self, flat: torch.Tensor, version: int) -> None:
        """Write a new version (the learner alone).

        Raises:
            FloatingPointError: if it is not all finite; readers keep the version before it.
        """
        flat = flat.cpu()  # waits for a GPU, this once
        if not all_finite([flat]):
            raise FloatingPointError(
                f"the weights of update {version} are infinite or NaN: try a lower --learning_rate"
            )
        self._begun[0] = version
        self._copies[version % 2].copy_(flat)
        self._announced[0] = version

    def read(self, out: torch.Tensor) -> int:
        """Copy the newest version into `out`, a vector of this dtype; returns its number.

        Raises:
            RuntimeError: if nothing was published yet.
        """
        while True:
            version = self.version
            if version < 0:
                raise RuntimeError("no policy has been published yet")
            out.copy_(self._copies[version % 2])
            if int(self._begun[0]) < version + 2:
                return version


def flatten_parameters(model: nn.Module) -> torch.Tensor:
    """Move all parameters, and the floating-point buffers after them, into one vector; they become views of it.

    Raises:
        ValueError: if they are not all of one dtype and device.
    """
    tensors = list(model.parameters()) + [b for b in model.buffers() if b.is_floating_point()]
    if len({(t.dtype, t.device) for t in tensors}) != 1:
        raise ValueError("a model's parameters and buffers must share one dtype and one device")
    flat = torch.cat([t.detach().reshape(-1) for t in tensors])
    offset = 0
    for tensor in tensors:
        tensor.data = flat[offset : offset + tensor.numel()].view(tensor.shape)
        offset += tensor.numel()
    return flat
