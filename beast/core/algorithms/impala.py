"""IMPALA's actor-critic loss with V-trace (Espeholt et al. 2018, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from beast.core import vtrace
from beast.core.algorithms.corrections import CORRECTIONS
from beast.core.data import Batch, ModelOutput
from beast.core.distributions import Distribution

ADDITIVE = True


@dataclass(frozen=True)
class Config:
    """Loss (IMPALA)"""

    discounting: float = 0.99
    """The discount factor (gamma): how much a reward one step later counts."""
    baseline_cost: float = 0.5
    """The weight of the value loss."""
    entropy_cost: float = 0.01
    """The weight of the entropy bonus, which keeps the policy from settling too early."""
    reward_clipping: str = "abs_one"
    """What the loss makes of a reward r: abs_one clips it to [-1, 1]; soft_asymmetric takes 5 tanh(r/5) if r > 0, else
    1.5 tanh(r/5); none leaves it. Logged returns are never clipped."""
    clip_rho_threshold: float | None = 1.0
    """The largest importance weight in V-trace's value targets (rho bar in the paper); none means unlimited."""
    clip_pg_rho_threshold: float | None = 1.0
    """The largest importance weight in the policy gradient; none means unlimited."""
    clip_c_threshold: float | None = 1.0
    """The largest of the factors that carry V-trace's corrections back in time (c bar in the paper); none means
    unlimited."""
    trace_lambda: float = 1.0
    """A factor on V-trace's trace coefficients c (lambda in the paper); below 1, corrections reach less far back in time."""
    squashed_entropy: bool = False
    """Reward the entropy of continuous actions after they are squashed into the environment's bounds, not that of the Gaussian
    before, which grows with the deviation even where every action lies at a bound already."""
    scale_rewards: bool = False
    """Divide rewards by the running standard deviation of the discounted return and clip them to [-10, 10], so that tasks of
    any reward scale have similar gradients. Logged returns are never scaled."""
    popart: bool = False
    """Learn values normalised by a moving mean and standard deviation of their targets (PopArt), and divide advantages by that
    deviation, so that rewards of any size have similar gradients; what values mean does not change when the two do. A preset's
    scale_rewards gives way to it; reward_clipping, unless it is none, comes first."""
    correction: str = "vtrace"
    """How data of older policies is treated: vtrace; or, to compare with it as the paper does, one_step (only the policy
    gradient is weighted), epsilon (log(pi + 1e-6) is differentiated) or none."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.discounting <= 1.0:
            raise ValueError(f"--discounting must lie in [0, 1], got {self.discounting}")
        if self.popart and self.scale_rewards:
            raise ValueError("--popart and --scale_rewards both normalise returns: leave one of them out")
        if self.scale_rewards and self.reward_clipping != "none":
            raise ValueError(f"--scale_rewards needs --reward_clipping none, got {self.reward_clipping}")
        if self.reward_clipping not in REWARD_CLIPPING:
            raise ValueError(
                f"--reward_clipping must be one of {', '.join(REWARD_CLIPPING)}, got {self.reward_clipping!r}"
            )
        if self.correction not in CORRECTIONS:
            raise ValueError(f"--correction must be one of {', '.join(CORRECTIONS)}, got {self.correction!r}")
        for name in ("clip_rho_threshold", "clip_pg_rho_threshold", "clip_c_threshold"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"--{name} must be positive or none, got {value}")


def _soft_asymmetric(reward: torch.Tensor) -> torch.Tensor:
    squeezed = torch.tanh(reward / 5.0)
    return 5.0 * torch.where(reward < 0, 0.3 * squeezed, squeezed)


REWARD_CLIPPING: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "abs_one": lambda reward: reward.clamp(-1.0, 1.0),
    "soft_asymmetric": _soft_asymmetric,  # the one of the authors' released code for DMLab
    "none": lambda reward: reward,
}


def loss(
    outputs: ModelOutput, batch: Batch, distribution: Distribution, config: Config
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Compute the policy-gradient, value and entropy terms, summed over T and B.

    Args:
        outputs: the learner's model on all T+1 rows of `batch`.
        batch: see `beast/core/data.py` for the alignment of rows.
        distribution: of the action space.
        config: settings of the loss.

    Returns:
        The scalar loss, and its terms by name for the logs (without gradient).
    """
    logits = outputs.policy_logits[:-1]  # [T, B, P]
    log_prob = distribution.log_prob(logits, batch.action)
    log_rhos = log_prob.detach() - distribution.log_prob(batch.behaviour_logits, batch.action)
    vs, pg_advantages = returns(log_rhos, outputs.value, batch, config)
    pg_loss = -(CORRECTIONS[config.correction].log_policy(log_prob) * pg_advantages).sum()
    return sum_of_terms(pg_loss, vs - outputs.value[:-1], logits, ~batch.first[1:], distribution, config)


def sum_of_terms(
    pg_loss: torch.Tensor, value_errors: torch.Tensor, logits: torch.Tensor, real: torch.Tensor,
    distribution: Distribution, config: Config,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:  # fmt: skip
    """Add the value loss and the entropy bonus to a policy-gradient loss; return as `loss` does.

    Args:
        pg_loss: scalar, summed over T and B.
        value_errors: `[T, B]`, targets minus values.
        logits: `[T, B, P]`, the learner's.
        real: `[T, B]` bool; the others are resets.
        distribution: of the action space.
        config: settings of the loss.
    """
    baseline_loss = config.baseline_cost * 0.5 * value_errors.square().sum()
    entropy_loss, entropy = entropy_terms(logits, real, distribution, config)
    total_loss = pg_loss + baseline_loss + entropy_loss
    metrics = {
        "total_loss": total_loss,
        "pg_loss": pg_loss,
        "baseline_loss": baseline_loss,
        "entropy_loss": entropy_loss,
        "entropy": entropy,
    }
    return total_loss, {name: value.detach() for name, value in metrics.items()}


def returns(
    log_rhos: torch.Tensor, value: torch.Tensor, batch: Batch, config: Config, policy: torch.Tensor | None = None
) -> vtrace.VTraceReturns:
    """Compute V-trace's value targets and advantages, `[T, B]` each, without gradient.

    Args:
        log_rhos: `[T, B]`, log pi - log mu of the actions taken, without gradient; those of resets are not read.
        value: `[T+1, B]`, the model's.
        batch: see `beast/core/data.py` for the alignment of rows.
        config: settings of the loss.
        policy: `[T, B]`, the advantages' weights; None: those of the correction.
    """
    rewards = REWARD_CLIPPING[config.reward_clipping](batch.reward[1:])  # [T, B]
    discounts = config.discounting * (~batch.terminated[1:]).float()  # [T, B]
    # A reset is no step of the policy: importance weight 0 removes it from every term except the entropy.
    weights = CORRECTIONS[config.correction].weights(torch.where(batch.first[1:], -torch.inf, log_rhos), config)
    if policy is not None:
        weights = weights._replace(policy=policy)
    return vtrace.from_weights(*weights, discounts, rewards, value[:-1], value[-1])


def entropy_terms(
    logits: torch.Tensor, real: torch.Tensor, distribution: Distribution, config: Config
) -> tuple[torch.Tensor, torch.Tensor]:
    """The entropy bonus, summed, and the mean entropy of a step in nats.

    Args:
        logits: `[T, B, P]`.
        real: `[T, B]` bool; the others are resets.
        distribution: of the policy.
        config: which entropy, and its weight.
    """
    entropy_of = distribution.squashed_entropy if config.squashed_entropy else distribution.entropy
    entropy = torch.where(real, entropy_of(logits), 0.0).sum()
    return -config.entropy_cost * entropy, entropy / real.sum().clamp(min=1)
