"""The learner: float32 parameters, moments, statistics and schedule. It turns a gradient into newer weights.

It knows no environment, no queue, no process and no batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from beast.core.algorithms import Algorithm
from beast.core.gradients import Gradient, Gradients
from beast.core.optimisers import OPTIMISERS, Moments, Optimiser, OptimiserConfig

PIECE = 1 << 17
"""Numbers of a vector that an elementwise optimiser steps at once on a CPU: so few that what one operation writes is still in
the core's cache for the next."""


class Update(NamedTuple):
    """The result of one gradient."""

    number: int
    """Number of updates made or skipped so far, including this one."""
    metrics: dict[str, torch.Tensor]
    """The gradient's scalars, `grad_norm` before the clip, and `finite`: a bool, False if the update was skipped."""


class Learner:
    """The parameters of a policy, their moments and statistics, and the schedule of the learning rate.

    The model may compute in bfloat16; the optimiser's own ("master") parameters are always float32.

    Args:
        gradients: the model and the algorithm to learn; their vectors hold the newest weights after each `apply`.
        optimiser: settings of the optimiser.
        total_steps: agent steps at which a linear learning rate reaches zero.
        masters: float32 `[P]`, as `master_parameters` returned them before the model was converted to a narrower dtype.
    """

    def __init__(
        self, gradients: Gradients, optimiser: OptimiserConfig, total_steps: int, masters: torch.Tensor
    ) -> None:
        self.acting, self.own = gradients.parts
        self._algorithm, self._config, self._total_steps = gradients.algorithm, optimiser, total_steps
        self._masters = torch.cat([masters.to(self.acting.parameters.device), self.own.parameters])
        self._optimiser: Optimiser = OPTIMISERS[optimiser.optimiser](optimiser)
        self._moments = self._optimiser.start(self._masters)
        self._has_hook = type(self._algorithm).after_update is not Algorithm.after_update
        size = self._masters.numel()
        # Not inherited, because a subclass of an elementwise optimiser need not be one.
        elementwise = vars(type(self._optimiser)).get("elementwise", False)
        in_pieces = elementwise and not self._has_hook and self._masters.device.type == "cpu"
        pieces = [slice(start, start + PIECE) for start in range(0, max(size, 1), PIECE)]
        self._pieces = pieces if in_pieces else [slice(None)]
        self.steps = 0
        """Agent steps so far, learned from or skipped."""
        self.updates = 0
        """Gradients so far, applied or skipped: the version of the policy. A skipped one leaves the policy unchanged."""

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next update."""
        if self._config.learning_rate_schedule == "constant":
            return self._config.learning_rate
        return self._config.learning_rate * max(0.0, 1.0 - self.steps / self._total_steps)

    @torch.no_grad()
    def apply(self, gradient: Gradient, steps: int) -> Update:
        """Make one update, or skip it if the gradient is not finite. Never waits for the device; overwrites the gradient.

        If it is skipped, everything stays bit for bit the same, except that `steps` and `updates`, which the host counts, rise.

        Args:
            gradient: summed over all ranks and micro-batches.
            steps: agent steps that it accounts for; of several passes over a batch only the first has any.
        """
        norm = torch.linalg.vector_norm(gradient.vector)  # finite only if every element is
        finite = norm.isfinite()
        before = [part.statistics.clone() for part in (self.acting, self.own)]
        split = torch.split(gradient.sums, [part.num_sums for part in (self.acting, self.own)])
        for part, sums in zip((self.acting, self.own), split, strict=True):
            part.merge(sums)
        self._step(gradient.vector, norm, finite, before)
        for part, old in zip((self.acting, self.own), before, strict=True):
            if old.numel():
                torch.where(finite, part.statistics, old, out=part.statistics)
        self._hand_over()
        self.steps += steps
        self.updates += 1
        return Update(self.updates, {**gradient.metrics, "grad_norm": norm, "finite": finite})

    def _step(self, vector: torch.Tensor, norm: torch.Tensor, finite: torch.Tensor, before: list[torch.Tensor]) -> None:
        """Clip the gradient and step masters and moments, piece by piece, wherever it is finite."""
        clip, rate = self._config.grad_norm_clipping, self.learning_rate
        scale = (clip / (norm + 1e-6)).clamp(max=1.0) if clip else None
        moments: Moments = {}
        for piece in self._pieces:
            masters, old = self._masters[piece], {name: x[piece] if x.dim() else x for name, x in self._moments.items()}
            gradient = vector[piece] if scale is None else vector[piece].mul_(scale)
            stepped, moments = self._optimiser.step(masters, gradient, old, rate)
            if self._has_hook:
                self._algorithm.after_update(self._named(stepped), self._statistics(*before), self._statistics())
            _replace(finite, masters, stepped)
            for name, x in old.items():
                if x.dim():
                    _replace(finite, x, moments[name])
        for name, x in self._moments.items():  # a single number is the same for all pieces, so each needs the old one
            if not x.dim():
                _replace(finite, x, moments[name])

    def _hand_over(self) -> None:
        """Round the masters into the vectors that the model and the algorithm compute with."""
        size = self.acting.parameters.numel()
        self.acting.parameters.copy_(self._masters[:size])
        self.own.parameters.copy_(self._masters[size:])

    def _named(self, masters: torch.Tensor) -> dict[str, torch.Tensor]:
        size = self.acting.parameters.numel()
        own = self.own.parameter_views(masters[size:])
        return self.acting.parameter_views(masters[:size]) | {f"algorithm.{name}": view for name, view in own.items()}

    def _statistics(
        self, acting: torch.Tensor | None = None, own: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Return these statistics, or the current ones, by name."""
        theirs = self.own.statistic_views(self.own.statistics if own is None else own)
        named = self.acting.statistic_views(self.acting.statistics if acting is None else acting)
        return named | {f"algorithm.{name}": view for name, view in theirs.items()}

    # -- saving -------------------------------------------------------------------------------------------------------

    def model_state(self) -> dict[str, torch.Tensor]:
        """Return the model's state dict on the CPU, its parameters in float32."""
        masters = self.acting.parameter_views(self._masters[: self.acting.parameters.numel()])
        state = self.acting.model.state_dict() | masters
        return {name: value.detach().cpu().clone() for name, value in state.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return all that `load_state_dict` needs to continue exactly: tensors and plain types."""
        own = self.own.parameter_views(self._masters[self.acting.parameters.numel() :])
        return {
            "model": self.model_state(),
            "algorithm": {
                "module": {name: x.detach().cpu().clone() for name, x in (self.own.model.state_dict() | own).items()},
                "state": self._algorithm.state_dict(),
            },
            "optimiser": {
                "name": self._config.optimiser,
                "moments": {name: moment.cpu().clone() for name, moment in self._moments.items()},
            },
            "steps": self.steps,
            "updates": self.updates,
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned; settings such as epsilon are those of this run.

        Raises:
            RuntimeError: if the state belongs to another model.
        """
        parts = (self.acting, self.own)
        masters = torch.split(self._masters, [part.parameters.numel() for part in parts])
        for part, own, values in zip(parts, masters, (state["model"], state["algorithm"]["module"]), strict=True):
            part.model.load_state_dict(values)  # copies in place, so that the views remain
            for name, view in part.parameter_views(own).items():
                view.copy_(values[name])
        self._algorithm.load_state_dict(state["algorithm"]["state"])
        for name, moment in self._moments.items():
            if (
                kept := state["optimiser"]["moments"].get(name)
            ) is not None:  # a momentum that is new in this run starts at zero
                if kept.shape != moment.shape:
                    raise RuntimeError(
                        f"{name} of the optimiser has {kept.numel()} numbers instead of {moment.numel()}"
                    )
                moment.copy_(kept)
        self.steps, self.updates = int(state["steps"]), int(state["updates"])


def _replace(condition: torch.Tensor, old: torch.Tensor, new: torch.Tensor) -> None:
    """Write `new` into `old` if the condition holds. A CPU may look at it; for a GPU that would mean to wait."""
    if condition.device.type != "cpu":
        torch.where(condition, new, old, out=old)
    elif condition:
        old.copy_(new)


def master_parameters(model: torch.nn.Module) -> torch.Tensor:
    """Return a copy of all parameters of a float32 model in one vector, in the order of `FlatModel`."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])
