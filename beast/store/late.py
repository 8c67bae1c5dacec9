"""Weights that reach the actors a fixed number of updates late: for the paper's policy-lag study (Espeholt et al. 2018)."""

from __future__ import annotations

from collections import deque

import torch

from beast.store.weights import Weights


class LateWeights(Weights):
    """The newest policy, like any `Weights`; it also passes each version on to the actors' weights once it is old enough.

    After update u actors have version max(0, u - lag). If a unit of work makes several updates, they have the newest
    version that is at least so old. The versions in between wait in a ring, in the dtype that the policy acts in.

    Args:
        size, dtype, num_statistics: see `Weights`.
        acting: the weights that actors read.
        lag: in updates, at least 1.
    """

    def __init__(self, size: int, dtype: torch.dtype, num_statistics: int, acting: Weights, lag: int) -> None:
        super().__init__(size, dtype, num_statistics)
        self._acting, self._lag = acting, lag
        self._parameters = torch.zeros(lag, size, dtype=dtype)
        self._old_statistics = torch.zeros(lag, num_statistics)
        self._waiting: deque[tuple[int, int]] = deque()  # version, row of the ring; oldest first
        self._unused = list(range(lag))

    def publish(self, parameters: torch.Tensor, version: int, statistics: torch.Tensor | None = None) -> None:
        """Write a new version, and pass on the one that is now old enough. Only the learner calls this.

        Raises:
            FloatingPointError: if the new version is not all finite; readers keep the ones that they have.
        """
        parameters = parameters.cpu()
        super().publish(parameters, version, statistics)
        self._keep(parameters, version, statistics)

    def _keep(self, parameters: torch.Tensor, version: int, statistics: torch.Tensor | None) -> None:
        if self._acting.version < 0:  # there is nothing older
            self._acting.publish(parameters, version, statistics)
            return
        while self._waiting and self._waiting[0][0] <= version - self._lag:
            old, row = self._waiting.popleft()
            self._acting.publish(self._parameters[row], old, self._old_statistics[row])
            self._unused.append(row)
        row = self._unused.pop()
        self._parameters[row].copy_(parameters)
        if statistics is not None:
            self._old_statistics[row].copy_(statistics)
        self._waiting.append((version, row))

    @property
    def ring_bytes(self) -> int:
        """Memory of the waiting versions, in bytes."""
        return self._parameters.nbytes + self._old_statistics.nbytes

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the version that actors have and all that wait, except the newest, which the learner saves itself.

        Returns:
            versions `[n]` int64, parameters `[n, size]`, statistics `[n, num_statistics]`, oldest first.
        """
        waiting = list(self._waiting)[:-1]
        parameters, statistics = torch.empty_like(self._parameters[0]), torch.empty_like(self._old_statistics[0])
        acting = self._acting.read(parameters, statistics)
        rows = [row for _, row in waiting]
        return {
            "versions": torch.tensor([acting, *(version for version, _ in waiting)]),
            "parameters": torch.cat([parameters.unsqueeze(0), self._parameters[rows]]),
            "statistics": torch.cat([statistics.unsqueeze(0), self._old_statistics[rows]]),
        }

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what `state_dict` returned, before the first `publish`. The lag may be another one now.

        Raises:
            RuntimeError: if the state belongs to another model.
        """
        shapes = [vectors.shape[1:] for vectors in (self._parameters, self._old_statistics)]
        if [state[name].shape[1:] for name in ("parameters", "statistics")] != shapes:
            raise RuntimeError("the old weights of the checkpoint are another model's")
        old = zip(state["versions"].tolist(), state["parameters"], state["statistics"], strict=True)
        for version, parameters, statistics in old:
            self._keep(parameters.to(self._parameters.dtype), version, statistics)
