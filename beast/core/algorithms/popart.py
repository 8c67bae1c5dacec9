"""PopArt: values are learned normalised, and what they mean is preserved when the normalisation moves.

Van Hasselt et al. 2016 (Learning values across many orders of magnitude), with V-trace and in IMPALA as in Hessel et al. 2018
(Multi-task deep reinforcement learning with PopArt). With n the model's output, a value is V = sigma n + mu, where mu and sigma
are the moving mean and standard deviation of the value targets. V-trace is computed on V; advantages are divided by sigma; the
value loss is the squared error of n.

All of this can be done around any algorithm, because V-trace is linear: given rewards / sigma and V / sigma = n + mu / sigma,
it returns its targets and advantages divided by sigma, and the error of V / sigma is that of n.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from beast.core.algorithms import Algorithm, Forward, Tensors, impala
from beast.core.data import Batch, ModelOutput
from beast.core.distributions import Distribution
from beast.core.errors import ModelError
from beast.core.statistics import RunningStatistics

STEP = 3e-4
"""Weight of one new target in the moving averages (Hessel et al. 2018): they remember 1 / STEP = 3,333 targets."""
BOUNDS = 1e-4, 1e6
"""Of sigma, as in the same paper."""


class TargetStatistics(RunningStatistics):
    """The moving mean and variance of value targets, 0 and 1 before the first one.

    Unlike observations, targets move as the policy improves, so all that is older than the newest counts as 1 / STEP targets.
    """

    def __init__(self) -> None:
        """Make statistics of one number."""
        super().__init__(1)

    @property
    def sigma(self) -> torch.Tensor:
        """The standard deviation within BOUNDS, `[1]` float32."""
        return _sigma(self.variance)

    @torch.no_grad()
    def merge(self, sums: torch.Tensor, around: torch.Tensor | None = None) -> None:
        """Take in the targets of one update; the arguments are those of `RunningStatistics.merge`."""
        self.count.fill_(1 / STEP)
        super().merge(sums, around)


def _sigma(variance: torch.Tensor) -> torch.Tensor:
    low, high = BOUNDS
    return variance.clamp(low**2, high**2).sqrt()


class PopArt(Algorithm):
    """An algorithm around another one, which sees values and rewards divided by sigma.

    The model's attribute `baseline` must be the linear layer whose only output is the value.

    Args:
        config: the other's settings; `reward_clipping` happens here, before the division.
        distribution: of the action space.
        make: makes the other algorithm with the settings that are left for it.
    """

    def __init__(self, config: Any, distribution: Distribution, make: Callable[[Any], Algorithm]) -> None:
        super().__init__(config, distribution)
        self._rest = dataclasses.replace(config, popart=False, reward_clipping="none")
        self._inner = inner = make(self._rest)
        self.additive, self.means = inner.additive, (*inner.means, "target_mean", "target_std")
        self.module = inner.module
        self.module.popart = self._targets = TargetStatistics()
        self._head: list[str] = []

    def bind(self, model: nn.Module) -> None:
        """Find the names of the value head's parameters.

        Raises:
            ModelError: if there is no such head.
        """
        head = getattr(model, "baseline", None)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._head = [names.get(id(getattr(head, part, None)), "") for part in ("weight", "bias")]
        if not isinstance(head, nn.Linear) or head.out_features != 1 or not all(self._head):
            raise ModelError(
                "--popart needs to know the last layer of the model's values: give the model an attribute `baseline`, "
                "an nn.Linear with one output and a bias (see models/base.py), or leave --popart out"
            )
        self._inner.bind(model)

    def losses(self, forward: Forward, batch: Batch) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        """Yield the other algorithm's losses of each pass, computed with normalised values.

        The first batch is only measured: while sigma is still 1 its gradient could be of any size, and the optimiser's mean
        square would remember that for hundreds of updates.
        """
        statistics = self._targets
        rewards = impala.REWARD_CLIPPING[self.config.reward_clipping](batch.reward)
        scaled = batch._replace(reward=rewards / statistics.sigma)

        def normalised(of: Batch) -> ModelOutput:
            # The model reads rewards as the environment said them.
            outputs = forward(of._replace(reward=batch.reward) if of.reward is scaled.reward else of)
            outputs = outputs._replace(value=outputs.value + statistics.mean / statistics.sigma)
            self._observe(outputs, of)
            return outputs

        for loss, terms in self._inner.losses(normalised, scaled):
            known = {"target_mean": statistics.mean[0].clone(), "target_std": statistics.sigma[0]}
            yield loss * (statistics.count[0] > 0), {**terms, **known}
            scaled.reward.copy_(rewards / statistics.sigma)  # an update has moved it since

    @torch.no_grad()
    def _observe(self, outputs: ModelOutput, batch: Batch) -> None:
        """Note the targets of values and rewards that are divided by sigma; those of resets are none."""
        new, old = outputs.policy_logits[:-1], batch.behaviour_logits
        log_rhos = self.distribution.log_prob(new, batch.action) - self.distribution.log_prob(old, batch.action)
        vs = impala.returns(log_rhos, outputs.value, batch, self._rest).vs
        self._targets.observe((vs * self._targets.sigma).unsqueeze(-1), ~batch.first[1:])

    def after_update(self, parameters: Tensors, before: Tensors, now: Tensors) -> None:
        """Let the other's hook change the parameters, then change the value head so that sigma n + mu stays what it was."""
        self._inner.after_update(parameters, before, now)
        weight, bias = (parameters[name] for name in self._head)
        (mean, old), (new_mean, new) = (
            (of["algorithm.popart.mean"], _sigma(of["algorithm.popart.variance"])) for of in (before, now)
        )
        weight.mul_(old / new)
        bias.mul_(old / new).add_((mean - new_mean) / new)

    def state_dict(self) -> dict[str, Any]:
        """Return the other algorithm's state; the statistics are saved with its parameters."""
        return self._inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._inner.load_state_dict(state)
