"""The newest policy, in shared memory, read without a lock.

There are two copies of the flat vectors: parameters in the policy's dtype, running statistics in float32. The learner
writes publication number n into copy n % 2 and then announces n; a reader copies the announced one and checks that the
learner has not begun to overwrite that copy meanwhile. If it has, the reader tries again; that needs a learner that
publishes twice within one memory copy. So neither readers nor the writer wait, and no torn copy is ever used.
Publications are numbered apart from updates: each copy also holds the policy's version, which may rise by any number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from beast.core.data import ArraySpec
from beast.core.finite import all_finite
from beast.core.flat import FlatModel
from beast.processes.shared import SharedArrays


class Weights:
    """The newest weights, shared by one writer and any number of readers. It pickles into child processes.

    Args:
        size: number of parameters.
        dtype: dtype in which the policy acts.
        num_statistics: number of float32 running statistics.
    """

    def __init__(self, size: int, dtype: torch.dtype, num_statistics: int = 0) -> None:
        self._dtype = dtype
        bits = np.dtype(np.uint16 if dtype == torch.bfloat16 else np.uint32)  # NumPy knows no bfloat16
        self._shared = SharedArrays(
            {
                "copies": ArraySpec((2, size), bits),
                "statistics": ArraySpec((2, num_statistics), np.dtype(np.float32)),
                "versions": ArraySpec((2,), np.dtype(np.int64)),
                "begun": ArraySpec((1,), np.dtype(np.int64)),
                "announced": ArraySpec((1,), np.dtype(np.int64)),
            }
        )
        self._shared.arrays["announced"][0] = -1
        self._view()

    @classmethod
    def like(cls, flat: FlatModel) -> Weights:
        """Make room for this model's vectors."""
        return cls(flat.parameters.numel(), flat.parameters.dtype, flat.statistics.numel())

    def _view(self) -> None:
        arrays = self._shared.arrays
        self._begun, self._announced, self._versions = arrays["begun"], arrays["announced"], arrays["versions"]
        self._copies = torch.from_numpy(arrays["copies"]).view(self._dtype)
        self._statistics = torch.from_numpy(arrays["statistics"])

    def __getstate__(self) -> dict[str, Any]:
        return {"dtype": self._dtype, "shared": self._shared}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._dtype, self._shared = state["dtype"], state["shared"]
        self._view()

    @property
    def version(self) -> int:
        """The newest complete version; -1 before the first."""
        number = int(self._announced[0])
        return -1 if number < 0 else int(self._versions[number % 2])

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the versions that a checkpoint must hold beside the newest: none here."""
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what `state_dict` returned, before the first `publish`."""

    def publish(self, parameters: torch.Tensor, version: int, statistics: torch.Tensor | None = None) -> None:
        """Write a new version. Only the learner may call this.

        Args:
            parameters: `[size]` in this dtype, on any device.
            version: number of updates that they have seen.
            statistics: `[num_statistics]` float32; may be None if there are none.

        Raises:
            FloatingPointError: if a number is not finite; readers keep the last version.
        """
        vectors = [parameters, *([] if statistics is None else [statistics])]
        if not all_finite(vectors):  # checked on their device; the only wait for a GPU, but for the copies below
            raise FloatingPointError(
                f"the weights of update {version} are infinite or NaN: try a lower --learning_rate"
            )
        number = int(self._announced[0]) + 1
        self._begun[0] = number
        for copies, vector in zip((self._copies, self._statistics), vectors, strict=False):
            copies[number % 2].copy_(vector)
        self._versions[number % 2] = version
        self._announced[0] = number

    def read(self, parameters: torch.Tensor, statistics: torch.Tensor | None = None) -> int:
        """Copy the newest publication into vectors of the same sizes and dtypes, and return its version.

        Raises:
            RuntimeError: if nothing was published yet.
        """
        while True:
            number = int(self._announced[0])
            if number < 0:
                raise RuntimeError("no policy has been published yet")
            parameters.copy_(self._copies[number % 2])
            if statistics is not None:
                statistics.copy_(self._statistics[number % 2])
            version = int(self._versions[number % 2])
            if int(self._begun[0]) < number + 2:
                return version
