"""Optimisers by name, as pure functions of one flat float32 vector. Nothing changes in place, so a step can be refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

Moments = dict[str, torch.Tensor]
"""Vectors `[P]` float32, or tensors without dimensions, by name."""


@dataclass(frozen=True)
class OptimiserConfig:
    """Optimiser"""

    optimiser: str = "rmsprop"
    """Which optimiser: rmsprop, as in the paper, or adam."""
    learning_rate: float = 6e-4
    """The learning rate at the start of training, which scales the optimiser's steps."""
    learning_rate_schedule: str = "linear"
    """The schedule of the learning rate: linear lets it fall to 0 over total_steps, constant keeps it."""
    alpha: float = 0.99
    """The decay of RMSProp's running mean of squared gradients; nearer to 1 it averages over more updates."""
    momentum: float = 0.0
    """The momentum of RMSProp; 0 means none."""
    epsilon: float = 0.01
    """The constant that RMSProp adds to its denominator, outside the square root (torch) or inside it (tf)."""
    rmsprop_form: str = "torch"
    """Whose RMSProp: PyTorch's (torch), or TensorFlow 1's (tf) as in the paper's code, where the mean square starts at 1
    and epsilon is inside the root."""
    adam_beta1: float = 0.9
    """The decay of Adam's running mean of gradients (beta 1)."""
    adam_beta2: float = 0.999
    """The decay of Adam's running mean of squared gradients (beta 2)."""
    adam_epsilon: float = 1e-5
    """The constant that Adam adds to its denominator, outside the square root."""
    grad_norm_clipping: float = 40.0
    """Scale a gradient down to this global norm if its norm is larger; 0 means no clipping."""

    def __post_init__(self) -> None:
        for name, allowed in (
            ("optimiser", tuple(OPTIMISERS)),
            ("learning_rate_schedule", ("linear", "constant")),
            ("rmsprop_form", ("torch", "tf")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"--{name} must be {' or '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("learning_rate", "epsilon", "adam_epsilon"):
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name} must be positive, got {getattr(self, name)}")
        for name in ("alpha", "adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"--{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.grad_norm_clipping < 0:
            raise ValueError(f"--grad_norm_clipping must not be negative (0 means none), got {self.grad_norm_clipping}")


class Optimiser(Protocol):
    """An optimiser with its settings: the interface of what `OPTIMISERS` makes.

    A class may say of itself (a subclass again) `elementwise = True`: each number's step depends on that number alone, and
    its moments are vectors `[P]` or tensors without dimensions. Then `step` may be given one piece of all vectors at a
    time, which is faster on a CPU.
    """

    def start(self, parameters: torch.Tensor) -> Moments:
        """Return the moments before the first step."""

    def step(
        self, parameters: torch.Tensor, gradient: torch.Tensor, moments: Moments, learning_rate: float
    ) -> tuple[torch.Tensor, Moments]:
        """Return new parameters `[P]` and new moments; the arguments are unchanged."""


class RMSProp:
    """RMSProp in PyTorch's form or TensorFlow 1's, each with its own form of momentum."""

    elementwise = True

    def __init__(self, config: OptimiserConfig) -> None:
        self._config, self._tf = config, config.rmsprop_form == "tf"

    def start(self, parameters: torch.Tensor) -> Moments:
        """Return the mean square before the first step, and the momentum if there is any."""
        square = torch.ones_like(parameters) if self._tf else torch.zeros_like(parameters)
        return {"mean_square": square} | ({"momentum": torch.zeros_like(parameters)} if self._config.momentum else {})

    def step(
        self, parameters: torch.Tensor, gradient: torch.Tensor, moments: Moments, learning_rate: float
    ) -> tuple[torch.Tensor, Moments]:
        """Return new parameters and moments after one step of RMSProp."""
        c = self._config
        square = (moments["mean_square"] * c.alpha).addcmul_(gradient, gradient, value=1 - c.alpha)
        if self._tf:  # its momentum holds steps, learning rate included
            scaled = gradient * (square + c.epsilon).rsqrt_()
            if not c.momentum:
                return parameters - scaled.mul_(learning_rate), {"mean_square": square}
            momentum = (moments["momentum"] * c.momentum).add_(scaled, alpha=learning_rate)
            return parameters - momentum, {"mean_square": square, "momentum": momentum}
        root = square.sqrt().add_(c.epsilon)
        if not c.momentum:
            return parameters.addcdiv(gradient, root, value=-learning_rate), {"mean_square": square}
        momentum = (moments["momentum"] * c.momentum).addcdiv_(gradient, root)
        return parameters.add(momentum, alpha=-learning_rate), {"mean_square": square, "momentum": momentum}


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1): both means corrected for their start at zero."""

    elementwise = True

    def __init__(self, config: OptimiserConfig) -> None:
        self._config = config

    def start(self, parameters: torch.Tensor) -> Moments:
        """Return zero means, and ones as the powers of both betas."""
        zeros = torch.zeros_like(parameters)
        ones = parameters.new_ones(())
        # The powers of both betas are moments too, so that a refused step does not count.
        return {"mean": zeros, "mean_square": zeros.clone(), "power1": ones, "power2": ones.clone()}

    def step(
        self, parameters: torch.Tensor, gradient: torch.Tensor, moments: Moments, learning_rate: float
    ) -> tuple[torch.Tensor, Moments]:
        """Return new parameters and moments after one step of Adam."""
        c = self._config
        mean = moments["mean"].lerp(gradient, 1 - c.adam_beta1)
        square = (moments["mean_square"] * c.adam_beta2).addcmul_(gradient, gradient, value=1 - c.adam_beta2)
        power1, power2 = moments["power1"] * c.adam_beta1, moments["power2"] * c.adam_beta2
        root = (square / (1 - power2)).sqrt_().add_(c.adam_epsilon)
        step = (mean / (1 - power1)).div_(root)
        fresh = {"mean": mean, "mean_square": square, "power1": power1, "power2": power2}
        return parameters.sub(step, alpha=learning_rate), fresh


OPTIMISERS: dict[str, type[RMSProp] | type[Adam]] = {"rmsprop": RMSProp, "adam": Adam}
