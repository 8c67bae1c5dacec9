"""Unrolls between two layouts: `[slots, rows, ...]` as the store keeps them, `[rows, B, ...]` as they are learned from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from beast.core.data import UNROLL_FIRST, Batch, map_nested

if TYPE_CHECKING:
    from beast.store.unrolls import UnrollSpec


class BatchLayout:
    """The axis of each of a batch's tensors that counts its unrolls.

    Args:
        spec: of one step; stacked observations have their frames, and with them the unrolls, in front.
    """

    def __init__(self, spec: UnrollSpec) -> None:
        axes: dict[str, Any] = {name: 0 if name in UNROLL_FIRST else 1 for name in Batch._fields}
        nested: dict[str, Any] = {
            "observation": map_nested(lambda s: 0 if s.stack > 1 else 1, spec.observation),
            "core_state": map_nested(lambda s: axes["core_state"], spec.core_state),
            "extra": dict.fromkeys(spec.extra, axes["extra"]),
            "agent_extra": dict.fromkeys(spec.agent_extra, axes["agent_extra"]),
        }
        self._axes = Batch(**(axes | nested))

    def gather(self, tensors: dict[str, Any], slots: torch.Tensor) -> Batch:
        """Copy unrolls into a new batch.

        Args:
            tensors: `[slots, ...]` by field, nested as their specs are; there may be more fields than a batch has.
            slots: `[B]` int64, which of them; the same one may come several times.
        """

        def read(axis: int, tensor: torch.Tensor) -> torch.Tensor:
            chosen = tensor.index_select(0, slots)
            return chosen.transpose(0, 1).contiguous() if axis else chosen

        return Batch(*map_nested(read, self._axes, _fields(tensors)))

    def scatter(self, tensors: dict[str, Any], slots: torch.Tensor, batch: Batch) -> None:
        """Copy a batch's unrolls into slots: the reverse of `gather`."""

        def write(axis: int, tensor: torch.Tensor, value: torch.Tensor) -> None:
            tensor[slots] = value.transpose(0, 1) if axis else value

        map_nested(write, self._axes, _fields(tensors), batch)

    def join(self, first: Batch, second: Batch) -> Batch:
        """A new batch of the unrolls of two, in order."""
        return Batch(*map_nested(lambda axis, *parts: torch.cat(parts, axis), self._axes, first, second))

    def part(self, batch: Batch, start: int, length: int) -> Batch:
        """Some successive unrolls of a batch, as views."""
        return Batch(*map_nested(lambda axis, value: value.narrow(axis, start, length), self._axes, batch))


def _fields(tensors: dict[str, Any]) -> Batch:
    """Of all that a slot holds what a batch has, in its order."""
    return Batch(*(tensors[name] for name in Batch._fields))
