"""What a run's checkpoints hold, and how a run continues from one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from beast.acting.task import Task
from beast.core.finite import all_finite
from beast.processes.supervisor import Workers
from beast.report.reports import Reports
from beast.run import checkpoint
from beast.run.callbacks import Callbacks
from beast.run.learning import Learning
from beast.run.serial import Serial
from beast.run.skipped_updates import SkippedUpdates
from beast.settings.config import Config


@dataclass(eq=False)
class Checkpoints:
    """The checkpoints of a run: the state of all its parts that a resumed run continues with."""

    config: Config
    task: Task
    folder: Path | None
    """The run's folder; None writes nothing."""
    learning: Learning
    reports: Reports
    workers: Workers
    skipped: SkippedUpdates
    callbacks: Callbacks
    serial: Serial | None
    resumes: int
    """How often the run was resumed."""
    torch_rng: torch.Tensor | None = None
    """State of PyTorch's generator to continue from, until it is set; None leaves the generator as it is."""

    def go_on_from(self, state: dict[str, Any]) -> None:
        """Restore reports and counts from a checkpoint; the generator's state is kept for `set_generator`."""
        self.reports.load_state_dict(state["reports"])
        self.workers.restarts, self.skipped.count = state["restarts"], state["skipped_updates"]
        self.torch_rng = state["torch_rng"]

    def set_generator(self) -> None:
        """Set PyTorch's generator. Call it after all models are made, because they draw from it."""
        if self.torch_rng is not None:
            torch.set_rng_state(self.torch_rng)
            self.torch_rng = None

    def save(self) -> Path | None:
        """Write a checkpoint, if this run keeps any.

        Raises:
            OSError: if it cannot be written; the last one is kept.
            FloatingPointError: if the weights are not finite.
        """
        if self.folder is None or self.config.run.disable_checkpoint:
            return None
        state = self._state()
        step = state["learner"]["steps"]
        path = checkpoint.save(self.folder, state, step, self.config.run.keep_checkpoints)
        self.callbacks.after_checkpoint(step, path)
        return path

    def save_and_go_on(self, asked: bool) -> None:
        """Write a checkpoint; if that fails, say so and train on.

        Args:
            asked: whether somebody waits to hear of it.

        Raises:
            FloatingPointError: if the weights are not finite.
        """
        try:
            path = self.save()
        except OSError as error:
            self.reports.log(f"no checkpoint written ({error}); the one before it is kept, training goes on")
            return
        if asked:
            self.reports.log(f"saved {path}" if path else "nothing saved: this run keeps no checkpoints")

    def _state(self) -> dict[str, Any]:
        learner = self.learning.learner
        if not all_finite([learner.acting.parameters, learner.acting.statistics]):
            raise FloatingPointError("the weights became infinite or NaN: try a lower --learning_rate")
        with self.learning.lock:
            state: dict[str, Any] = {
                "format": checkpoint.FORMAT,
                "config": self.config.flat(),
                "spaces": self.task.model.spaces(),
                "learner": learner.state_dict(),
                "reports": self.reports.state_dict(),
                "torch_rng": torch.get_rng_state() if self.torch_rng is None else self.torch_rng,
                "resumes": self.resumes,
                "restarts": self.workers.restarts,
                "skipped_updates": self.skipped.count,
            }
            if older := self.learning.weights.state_dict():
                state["weights"] = older
        if self.serial is not None:
            state |= {"past": self.serial.state_dict(), "source": self.learning.source.state_dict()}
        return state
