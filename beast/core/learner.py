"""The learner: float32 parameters, moments, statistics and schedule; a gradient comes in, newer weights come out.

It knows no environment, no queue, no process, and no batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from beast.core.algorithms import Algorithm
from beast.core.gradients import Gradient, Gradients
from beast.core.optimisers import OPTIMISERS, Optimiser, OptimiserConfig


class Update(NamedTuple):
    """What came of a gradient."""

    number: int
    """Of updates made or skipped so far, this one included."""
    metrics: dict[str, torch.Tensor]
    """The gradient's scalars, `grad_norm` before the clip, and `finite`: a bool, False if the update was skipped."""


class Learner:
    """Parameters, moments, statistics and schedule.

    The model may compute in bfloat16; the optimiser's own ("master") parameters are float32 always.

    Args:
        gradients: whose model and algorithm are learned; their vectors hold the newest weights after each `apply`.
        optimiser: its settings.
        total_steps: at which a linear learning rate reaches zero.
        masters: float32 `[P]`, as `master_parameters` gave them before the model was made narrower.
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
        self.steps = 0
        """Agent steps taken in: learned from, or skipped."""
        self.updates = 0
        """Gradients taken in: the version of the policy. After one that was skipped it is the same policy."""

    @property
    def learning_rate(self) -> float:
        """For the next update."""
        if self._config.learning_rate_schedule == "constant":
            return self._config.learning_rate
        return self._config.learning_rate * max(0.0, 1.0 - self.steps / self._total_steps)

    @torch.no_grad()
    def apply(self, gradient: Gradient, steps: int) -> Update:
        """Make one update, or skip it if the gradient is not finite. Never waits for the device; the gradient is used up.

        Skipped, everything stays bit for bit as it was, while `steps` and `updates`, which the host counts, go on.

        Args:
            gradient: over all ranks and micro-batches.
            steps: agent steps that it accounts for; of several passes over a batch the first one alone has any.
        """
        vector, norm = gradient.vector, torch.linalg.vector_norm(gradient.vector)  # finite if all of it is
        finite = norm.isfinite()
        if self._config.grad_norm_clipping:
            vector.mul_((self._config.grad_norm_clipping / (norm + 1e-6)).clamp(max=1.0))
        masters, moments = self._optimiser.step(self._masters, vector, self._moments, self.learning_rate)
        before = [part.statistics.clone() for part in (self.acting, self.own)]
        split = torch.split(gradient.sums, [part.num_sums for part in (self.acting, self.own)])
        for part, sums in zip((self.acting, self.own), split, strict=True):
            part.merge(sums)
        if self._has_hook:
            self._algorithm.after_update(self._named(masters), self._statistics(*before), self._statistics())
        for new, old in ((masters, self._masters), *((moments[name], old) for name, old in self._moments.items())):
            torch.where(finite, new, old, out=old)
        for part, old in zip((self.acting, self.own), before, strict=True):
            if old.numel():
                torch.where(finite, part.statistics, old, out=part.statistics)
        self._hand_over()
        self.steps += steps
        self.updates += 1
        return Update(self.updates, {**gradient.metrics, "grad_norm": norm, "finite": finite})

    def _hand_over(self) -> None:
        """Round the masters into what the model and the algorithm compute with."""
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
        """By name: these, or as they are now."""
        theirs = self.own.statistic_views(self.own.statistics if own is None else own)
        named = self.acting.statistic_views(self.acting.statistics if acting is None else acting)
        return named | {f"algorithm.{name}": view for name, view in theirs.items()}

    # -- saving -------------------------------------------------------------------------------------------------------

    def model_state(self) -> dict[str, torch.Tensor]:
        """The model's state dict, its parameters in float32, on the CPU."""
        masters = self.acting.parameter_views(self._masters[: self.acting.parameters.numel()])
        state = self.acting.model.state_dict() | masters
        return {name: value.detach().cpu().clone() for name, value in state.items()}

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on as if nothing had happened: tensors and plain types."""
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
        """Go on from what `state_dict` gave; epsilon and the like are what this run was asked for.

        Raises:
            RuntimeError: if the state is of another model.
        """
        parts = (self.acting, self.own)
        masters = torch.split(self._masters, [part.parameters.numel() for part in parts])
        for part, own, values in zip(parts, masters, (state["model"], state["algorithm"]["module"]), strict=True):
            part.model.load_state_dict(values)  # copies in place: the views stay views
            for name, view in part.parameter_views(own).items():
                view.copy_(values[name])
        self._algorithm.load_state_dict(state["algorithm"]["state"])
        for name, moment in self._moments.items():
            if (kept := state["optimiser"]["moments"].get(name)) is not None:  # a momentum asked for now begins at zero
                if kept.shape != moment.shape:
                    raise RuntimeError(
                        f"{name} of the optimiser has {kept.numel()} numbers instead of {moment.numel()}"
                    )
                moment.copy_(kept)
        self.steps, self.updates = int(state["steps"]), int(state["updates"])


def master_parameters(model: torch.nn.Module) -> torch.Tensor:
    """All parameters of a float32 model in one new vector, in the order of `FlatModel`."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])
