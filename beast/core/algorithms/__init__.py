"""Algorithms: one file each, with a `Config` whose fields become flags, and in short form a function

    loss(outputs, batch, distribution, config) -> (scalar, metrics by name)

A module whose loss is a sum over the batch's unrolls may declare `ADDITIVE = True`, and `MEANS`, the names of those terms that
are means (see `Algorithm.additive`).

An algorithm that needs more (several passes over a batch, parameters of its own, a state, columns of its own, a hook after each
update) defines a class `Algorithm` instead, a subclass of the one below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from beast.core.data import DISCOUNTED_RETURN, ArraySpec, Batch, ModelOutput
from beast.core.distributions import Distribution
from beast.core.errors import ConfigError
from beast.core.names import NoSuchModule, import_named
from beast.core.statistics import RunningStatistics

Loss = Callable[..., tuple[torch.Tensor, dict[str, torch.Tensor]]]
Forward = Callable[[Batch], ModelOutput]
Tensors = Mapping[str, torch.Tensor]


class Algorithm:
    """What the learner asks an algorithm for.

    Args:
        config: the module's `Config`, as set by flags.
        distribution: of the action space.
    """

    info_columns: Mapping[str, ArraySpec] = {}
    """Further columns that it needs of each step: keys of the environment's `info`, in `Batch.extra` as `[T+1, B, ...]`."""
    additive: bool = False
    """Whether the losses of a batch's parts (some of its unrolls each), and their terms, add up to those of the whole batch. If
    so, a batch that would need too much memory is learned from in parts, and `losses` is called for each of them."""
    means: tuple[str, ...] = ("entropy",)
    """Names of terms that are means over the batch instead of sums; the mean over the parts is reported."""

    def __init__(self, config: Any, distribution: Distribution) -> None:
        self.config, self.distribution = config, distribution
        self.module = nn.Module()
        """Parameters and running statistics of its own: float32, on the learner's device, optimised with the model's, saved,
        never published."""
        if getattr(config, "scale_rewards", False):
            self.module.discounted_returns = RunningStatistics(1)

    def losses(self, forward: Forward, batch: Batch) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        """Yield one scalar loss and its terms by name for each pass over a batch.

        Between two passes an update is made, so `forward(batch)` returns the outputs of newer weights. All passes are one unit:
        steps count once, and nothing is published, saved or stopped in between.
        """
        raise NotImplementedError

    def scaled(self, batch: Batch) -> Batch:
        """The batch as a loss is to see it, its rewards scaled if the settings say `scale_rewards`.

        What the model reads stays as the environment said it: `forward` gets the batch, a loss the scaled one. As in Engstrom
        et al. 2020 (Implementation Matters in Deep Policy Gradients, section 3), rewards are divided by the standard deviation
        of the discounted return so far, over all steps learned from, and then clipped to [-10, 10].
        """
        returns = getattr(self.module, "discounted_returns", None)
        if returns is None:
            return batch
        returns.observe(batch.extra[DISCOUNTED_RETURN][1:].unsqueeze(-1), ~batch.first[1:])
        return batch._replace(reward=(batch.reward * (returns.variance + 1e-8).rsqrt()).clamp(-10.0, 10.0))

    def bind(self, model: nn.Module) -> None:
        """Look up in the model that is learned what must be known of it, such as names of parameters; called once.

        Raises:
            ModelError: if it cannot be learned with this algorithm.
        """

    def after_update(self, parameters: Tensors, before: Tensors, now: Tensors) -> None:
        """Change the float32 parameters in place after the optimiser's step.

        What it does is undone if the update is skipped. It must not wait for the device.

        Args:
            parameters: views by name, the algorithm's own as `algorithm.NAME`.
            before: running statistics by name, before this update.
            now: running statistics by name, with this update's sums merged.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what else it must keep when the run is resumed: tensors and plain types."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class PlainLoss(Algorithm):
    """The short form of an algorithm: one pass with a function `loss`.

    Args:
        config: the module's `Config`, as set by flags.
        distribution: of the action space.
        loss: the function.
        additive: as in `Algorithm`.
        means: as in `Algorithm`.
    """

    def __init__(
        self,
        config: Any,
        distribution: Distribution,
        loss: Loss,
        additive: bool = False,
        means: tuple[str, ...] = ("entropy",),
    ) -> None:
        super().__init__(config, distribution)
        self._loss, self.additive, self.means = loss, additive, means

    def losses(self, forward: Forward, batch: Batch) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        """Yield the loss of the only pass and its terms."""
        yield self._loss(forward(batch), self.scaled(batch), self.distribution, self.config)


def algorithm_of(module: Any, config: Any, distribution: Distribution) -> Algorithm:
    """Make the algorithm that a module defines, in either form, with PopArt around it if the settings say so."""
    if getattr(config, "popart", False):
        from beast.core.algorithms.popart import PopArt  # an algorithm itself, so it imports this file

        return PopArt(config, distribution, lambda inner: algorithm_of(module, inner, distribution))
    if hasattr(module, "Algorithm"):
        algorithm: Algorithm = module.Algorithm(config, distribution)
        return algorithm
    adds_up, means = getattr(module, "ADDITIVE", False), getattr(module, "MEANS", Algorithm.means)
    return PlainLoss(config, distribution, module.loss, adds_up, means)


def algorithm_module(name: str) -> Any:
    """Import an algorithm's module, which defines `Config`, and `loss` or `Algorithm` (see the docstring of this file).

    Raises:
        ConfigError: if there is none.
    """
    path = name if "." in name else f"beast.core.algorithms.{name}"
    try:
        module = import_named(path)
    except NoSuchModule as error:
        raise ConfigError(
            f"no algorithm {name!r}: use impala, appo, or a module of your own that can be imported"
        ) from error
    for needed in (("Config",), ("loss", "Algorithm")):
        if not any(hasattr(module, one) for one in needed):
            raise ConfigError(
                f"--algorithm {name}: the module defines no {' or '.join(needed)} (see beast/core/algorithms/impala.py)"
            )
    return module
