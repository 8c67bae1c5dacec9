"""Updates that the learner skipped because of NaN or infinity: logged, counted, and their batches kept for inspection."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from beast.core.data import Batch, flatten
from beast.core.finite import all_finite
from beast.report.files import write_tensors

KEPT = 5  # batches that a run keeps for inspection


_REMEDIES = {
    "observation": "mend the environment's reset() and step()",
    "reward": "mend the environment's step()",
    "loss": "try a lower --learning_rate",
    "gradient": "try a lower --learning_rate",
}


class SkippedUpdates:
    """The account of updates that the learner skipped.

    Args:
        folder: the run's folder; batches are kept in its `bad_batches/update_N.pt`. None keeps none.
        most: skipped updates in a row with which the run ends.
        log: writes a line to the console and the log.
    """

    def __init__(self, folder: Path | None, most: int, log: Callable[[str], None]) -> None:
        self._folder, self._most, self._log = folder, most, log
        self.count = 0
        self._in_a_row = 0

    def record(self, update: int, batch: Batch | None, metrics: dict[str, torch.Tensor]) -> bool:
        """Return whether the learner made this update; if not, log and count it. Waits for the device.

        Args:
            update: its number.
            batch: as the store returned it, on the CPU; None if the gradient came without one.
            metrics: as the learner returned them.

        Raises:
            FloatingPointError: if too many in a row were skipped.
        """
        if metrics["finite"]:
            self._in_a_row = 0
            return True
        self.count += 1
        self._in_a_row += 1
        field = _culprit(batch, metrics)
        self._log(f"update {update} skipped: NaN or infinity in the {field}; {self._keep(update, field, batch)}")
        if self._in_a_row >= self._most:
            raise FloatingPointError(
                f"{self._in_a_row} updates in a row were skipped (--max_skipped_updates), update {update} for NaN or "
                f"infinity in the {field}: {_REMEDIES[field]}"
            )
        return False

    def _keep(self, update: int, field: str, batch: Batch | None) -> str:
        """Write a batch as a dict of its fields (`beast/core/data.py`); return a text that says where, or why not."""
        if self._folder is None or batch is None:
            return "its batch is not kept"
        folder = self._folder / "bad_batches"
        if len(list(folder.glob("update_*.pt"))) >= KEPT:
            return f"{folder} holds {KEPT} batches already"
        path = folder / f"update_{update}.pt"
        try:
            folder.mkdir(exist_ok=True)
            write_tensors(path, {"update": update, "field": field, "batch": batch._asdict()})
        except OSError as error:
            return f"its batch could not be written ({error})"
        return f"its batch is {path}"


def _culprit(batch: Batch | None, metrics: dict[str, torch.Tensor]) -> str:
    """Return the first field that is not finite, in the order in which one affects the next."""
    if batch is not None and not all_finite(flatten(batch.observation)):
        return "observation"
    if batch is not None and not all_finite([batch.reward]):
        return "reward"
    return "gradient" if metrics["total_loss"].isfinite() else "loss"
