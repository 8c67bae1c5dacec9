"""Asynchronous PPO: the clipped surrogate of Schulman et al. (2017, equation 7) on V-trace targets, several passes a batch.

Sample Factory and RLlib call it APPO. Each pass recomputes V-trace's targets and advantages with the weights of the passes
before it; the policy is kept near the one that acted, whose logits the batch holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from beast.core import algorithms
from beast.core.algorithms import Forward, impala
from beast.core.data import Batch, ModelOutput
from beast.core.distributions import Distribution


@dataclass(frozen=True)
class Config(impala.Config):
    """Loss (APPO)"""

    passes: int = 2
    """How many passes the learner makes over each batch; its steps count once."""
    clip_ratio: float = 0.2
    """How far the policy moves from the one that acted: beyond a probability ratio of 1 +- this number it gains nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.passes < 1:
            raise ValueError(f"--passes must be at least 1, got {self.passes}")
        if self.clip_ratio <= 0:
            raise ValueError(f"--clip_ratio must be positive, got {self.clip_ratio}")


def loss(
    outputs: ModelOutput, batch: Batch, distribution: Distribution, config: Config
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """IMPALA's terms, its policy gradient replaced by the clipped surrogate; summed over T and B.

    The advantage of a step is r + gamma v_{s+1} - V(x_s), without an importance weight: the ratio is one already.
    """
    real = ~batch.first[1:]  # [T, B]; a reset is no step of the policy
    logits = outputs.policy_logits[:-1]  # [T, B, P]
    log_prob = distribution.log_prob(logits, batch.action)
    log_ratio = torch.where(real, log_prob - distribution.log_prob(batch.behaviour_logits, batch.action), 0.0)
    vs, pg_advantages = impala.returns(log_ratio.detach(), outputs.value, batch, config, policy=real.float())

    ratio = log_ratio.exp()
    bounded = ratio.clamp(1 / (1 + config.clip_ratio), 1 + config.clip_ratio)
    pg_loss = -torch.minimum(ratio * pg_advantages, bounded * pg_advantages).sum()
    clipped = ((ratio != bounded) & real).float().sum() / real.float().sum().clamp(min=1.0)
    total_loss, terms = impala.sum_of_terms(pg_loss, vs - outputs.value[:-1], logits, real, distribution, config)
    return total_loss, {**terms, "clipped": clipped}


class Algorithm(algorithms.Algorithm):
    """An algorithm that makes several passes of `loss` over each batch."""

    additive = True
    means = ("clipped", "entropy")

    def losses(self, forward: Forward, batch: Batch) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        """Yield the loss of each pass and its terms by name."""
        for _ in range(self.config.passes):
            yield loss(forward(batch), self.scaled(batch), self.distribution, self.config)
