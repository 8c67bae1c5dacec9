"""A loss of your own: `python run.py --env CartPole-v1 --algorithm examples.custom_algorithm --kl_cost 0.1`.

IMPALA with one more term: stay close to the policy that acted. Its Config's fields are flags, its metrics are in the logs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from beast.core.algorithms import impala
from beast.core.data import Batch, ModelOutput
from beast.core.distributions import Distribution


@dataclass(frozen=True)
class Config(impala.Config):
    """Loss (IMPALA with a penalty on leaving the behaviour policy)"""

    kl_cost: float = 0.1
    """The weight of the penalty."""


def loss(
    outputs: ModelOutput, batch: Batch, distribution: Distribution, config: Config
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """IMPALA's loss plus kl_cost times an estimate of KL(mu || pi) from the actions taken."""
    total, metrics = impala.loss(outputs, batch, distribution, config)
    behaviour = distribution.log_prob(batch.behaviour_logits, batch.action)  # [T, B]
    target = distribution.log_prob(outputs.policy_logits[:-1], batch.action)
    kl_loss = config.kl_cost * torch.where(batch.first[1:], 0.0, behaviour - target).sum()
    return total + kl_loss, {**metrics, "total_loss": (total + kl_loss).detach(), "kl_loss": kl_loss.detach()}
