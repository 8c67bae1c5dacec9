"""V-trace: off-policy corrected value targets and policy-gradient advantages (Espeholt et al. 2018, section 4).

Pure functions over tensors with time first. `[T, B, ...]`: T steps, B unrolls, any trailing dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F


class VTraceReturns(NamedTuple):
    """V-trace's targets and advantages, without gradient, in the dtype of `values`."""

    vs: torch.Tensor
    """`[T, B, ...]`: v_s of equation 1, the targets of the value function."""
    pg_advantages: torch.Tensor
    """`[T, B, ...]`: rho_s (r_s + gamma v_{s+1} - V(x_s)), the weights of grad log pi(a_s | x_s)."""


def from_logits(  # noqa: PLR0913
    behaviour_policy_logits: torch.Tensor,
    target_policy_logits: torch.Tensor,
    actions: torch.Tensor,
    discounts: torch.Tensor,
    rewards: torch.Tensor,
    values: torch.Tensor,
    bootstrap_value: torch.Tensor,
    clip_rho_threshold: float | None = 1.0,
    clip_pg_rho_threshold: float | None = 1.0,
    *,
    clip_c_threshold: float | None = 1.0,
    trace_lambda: float = 1.0,
) -> VTraceReturns:
    """Compute V-trace for softmax policies.

    The arguments from `discounts` on are those of `from_importance_weights`.

    Args:
        behaviour_policy_logits: `[T, B, ..., A]`, mu: the logits that the actor sampled its actions from.
        target_policy_logits: `[T, B, ..., A]`, pi: the learner's logits for the same observations.
        actions: `[T, B, ...]` int64.
        discounts: `[T, B, ...]`.
        rewards: `[T, B, ...]`.
        values: `[T, B, ...]`.
        bootstrap_value: `[B, ...]`.
        clip_rho_threshold: rho bar; None does not clip.
        clip_pg_rho_threshold: clip of the policy gradient's weight; None does not clip.
        clip_c_threshold: c bar; None does not clip.
        trace_lambda: factor on the c_i.

    Raises:
        ValueError: on a rank mismatch, naming both ranks.
    """
    _check_rank("target_policy_logits", target_policy_logits, "behaviour_policy_logits", behaviour_policy_logits, 0)
    _check_rank("actions", actions, "behaviour_policy_logits", behaviour_policy_logits, -1)
    log_rhos = _log_prob(target_policy_logits, actions) - _log_prob(behaviour_policy_logits, actions)
    return from_importance_weights(
        log_rhos,
        discounts,
        rewards,
        values,
        bootstrap_value,
        clip_rho_threshold,
        clip_pg_rho_threshold,
        clip_c_threshold=clip_c_threshold,
        trace_lambda=trace_lambda,
    )


@torch.no_grad()
def from_importance_weights(  # noqa: PLR0913
    log_rhos: torch.Tensor,
    discounts: torch.Tensor,
    rewards: torch.Tensor,
    values: torch.Tensor,
    bootstrap_value: torch.Tensor,
    clip_rho_threshold: float | None = 1.0,
    clip_pg_rho_threshold: float | None = 1.0,
    *,
    clip_c_threshold: float | None = 1.0,
    trace_lambda: float = 1.0,
) -> VTraceReturns:
    """Compute V-trace from log importance weights (the recursion of the paper's remark 1).

    Args:
        log_rhos: `[T, B, ...]`, log(pi(a|x) / mu(a|x)). Minus infinity excludes a step: it is neither corrected nor learned
            from, and v_s = V(x_s) there.
        discounts: `[T, B, ...]`, gamma, or 0 where the step ended an episode.
        rewards: `[T, B, ...]`, rewards of the same steps.
        values: `[T, B, ...]`, V(x_s).
        bootstrap_value: `[B, ...]`, V(x_T).
        clip_rho_threshold: rho bar, the clip of the weights in the targets; None does not clip.
        clip_pg_rho_threshold: the clip of the weight in `pg_advantages`; None does not clip.
        clip_c_threshold: c bar, the clip of the trace-cutting coefficients; None does not clip.
        trace_lambda: scales only the c_i (remark 2 of the paper).

    Raises:
        ValueError: on a rank mismatch, naming both ranks.
    """
    for name, tensor, fewer in (
        ("discounts", discounts, 0),
        ("rewards", rewards, 0),
        ("values", values, 0),
        ("bootstrap_value", bootstrap_value, -1),
    ):
        _check_rank(name, tensor, "log_rhos", log_rhos, fewer)

    rhos = log_rhos.exp()
    return from_weights(
        _clip(rhos, clip_rho_threshold), trace_lambda * _clip(rhos, clip_c_threshold), _clip(rhos, clip_pg_rho_threshold),
        discounts, rewards, values, bootstrap_value,
    )  # fmt: skip


@torch.no_grad()
def from_weights(
    rhos: torch.Tensor, cs: torch.Tensor, pg_rhos: torch.Tensor, discounts: torch.Tensor, rewards: torch.Tensor,
    values: torch.Tensor, bootstrap_value: torch.Tensor,
) -> VTraceReturns:  # fmt: skip
    """Compute the recursion for given weights of the temporal differences, of the traces and of the policy gradient.

    All arguments are `[T, B, ...]`, except `bootstrap_value`, which is `[B, ...]`.
    """
    next_values = torch.cat([values[1:], bootstrap_value.unsqueeze(0)])
    deltas = rhos * (rewards + discounts * next_values - values)  # [T, B, ...]

    # v_s - V(x_s) = delta_s + gamma_s c_s (v_{s+1} - V(x_{s+1})), backwards in time; the difference is 0 at T.
    discounted_cs = discounts * cs
    correction = torch.zeros_like(bootstrap_value)
    corrections = []
    for delta, discounted_c in zip(reversed(deltas.unbind()), reversed(discounted_cs.unbind()), strict=True):
        correction = delta + discounted_c * correction
        corrections.append(correction)
    corrections.reverse()
    vs = values + torch.stack(corrections)

    next_vs = torch.cat([vs[1:], bootstrap_value.unsqueeze(0)])
    pg_advantages = pg_rhos * (rewards + discounts * next_vs - values)
    return VTraceReturns(vs, pg_advantages)


def _log_prob(logits: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    return F.log_softmax(logits, dim=-1).gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)


def _clip(weights: torch.Tensor, threshold: float | None) -> torch.Tensor:
    return weights if threshold is None else weights.clamp(max=threshold)


def _check_rank(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor, fewer: int) -> None:
    if tensor.ndim != other.ndim + fewer:
        relation = "the same rank as" if fewer == 0 else "one dimension fewer than"
        raise ValueError(
            f"{name} must have {relation} {other_name}: {name} has rank {tensor.ndim} {tuple(tensor.shape)}, "
            f"{other_name} has rank {other.ndim} {tuple(other.shape)}"
        )
