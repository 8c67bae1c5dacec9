"""The newest policy, in shared memory, read without a lock.

Two copies of the flat vectors: parameters in the dtype that the policy computes in, running statistics in float32. The
learner writes publication number n into copy n % 2 and then announces n; a reader copies the announced one and checks that
the learner did not begin to write that copy again meanwhile. It retries if so, which takes a learner that publishes twice
within one memory copy. Thus no reader waits, no writer waits, and nothing torn is ever used. Publications are numbered
apart from updates: the policy's version is kept beside each copy, and may rise by any number from one to the next.
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
    """Shared by one writer and any number of readers; pickles into child processes.

    Args:
        size: how many parameters.
        dtype: what the policy acts in.
        num_statistics: how many float32 numbers go with them.
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
        """With room for this model's vectors."""
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
        """What a checkpoint must hold of versions that nobody acted with yet, beside the newest: nothing here."""
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take up what `state_dict` gave, before the first `publish`."""

    def publish(self, parameters: torch.Tensor, version: int, statistics: torch.Tensor | None = None) -> None:
        """Write a new version (the learner alone).

        Args:
            parameters: `[size]` of this dtype, on any device.
            version: how many updates they have seen.
            statistics: `[num_statistics]` float32; None if there are none.

        Raises:
            FloatingPointError: if it is not all finite; readers keep the version before it.
        """
        vectors = [parameters.cpu(), *([] if statistics is None else [statistics.cpu()])]  # waits for a GPU, this once
        if not all_finite(vectors):
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
        """Copy the newest publication into vectors of the same sizes and dtypes; returns its version.

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
