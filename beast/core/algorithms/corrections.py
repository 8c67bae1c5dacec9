"""The four corrections for data of older policies that the paper compares (Espeholt et al. 2018, section 5.2.2, table 2).

Each maps log(pi / mu) of the actions taken to three weights: of the temporal differences in the value targets, of the
traces between them, and of the policy gradient; and it maps log pi to what is differentiated. Resets, which are no steps,
have a log weight of minus infinity and no weight in any of the four.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

EPSILON = 1e-6
"""Constant of the epsilon-correction: log(pi + epsilon) stays finite where the newer policy hardly takes an action."""


class Clips(Protocol):
    """The part of a loss's settings that is needed here."""

    @property
    def clip_rho_threshold(self) -> float | None:
        """Clip of the weights in the value targets (rho bar); None does not clip."""

    @property
    def clip_pg_rho_threshold(self) -> float | None:
        """Clip of the weights in the policy gradient; None does not clip."""

    @property
    def clip_c_threshold(self) -> float | None:
        """Clip of the trace coefficients (c bar); None does not clip."""

    @property
    def trace_lambda(self) -> float:
        """Factor on the trace coefficients (lambda)."""


class Weights(NamedTuple):
    """The weights of all steps, `[T, B, ...]` each, without gradient."""

    target: torch.Tensor
    """Weight rho of each temporal difference."""
    trace: torch.Tensor
    """Trace coefficient c between temporal differences, including trace_lambda."""
    policy: torch.Tensor
    """Weight of each step in the policy gradient."""


class Correction(NamedTuple):
    """One of the four corrections."""

    weights: Callable[[torch.Tensor, Clips], Weights]
    """Maps log(pi / mu), `[T, B, ...]`, to the weights."""
    log_policy: Callable[[torch.Tensor], torch.Tensor]
    """Maps log pi of the actions taken to what the policy gradient differentiates."""


def clip(weights: torch.Tensor, threshold: float | None) -> torch.Tensor:
    """Clip weights at a threshold; None does not clip."""
    return weights if threshold is None else weights.clamp(max=threshold)


def _vtrace(log_rhos: torch.Tensor, clips: Clips) -> Weights:
    rhos = log_rhos.exp()
    cs = clips.trace_lambda * clip(rhos, clips.clip_c_threshold)
    return Weights(clip(rhos, clips.clip_rho_threshold), cs, clip(rhos, clips.clip_pg_rho_threshold))


def _one_step(log_rhos: torch.Tensor, clips: Clips) -> Weights:
    return _uncorrected(log_rhos, clips)._replace(policy=clip(log_rhos.exp(), clips.clip_pg_rho_threshold))


def _uncorrected(log_rhos: torch.Tensor, clips: Clips) -> Weights:
    ones = torch.where(log_rhos == -torch.inf, 0.0, 1.0).to(log_rhos.dtype)
    return Weights(ones, clips.trace_lambda * ones, ones)


CORRECTIONS: dict[str, Correction] = {
    "vtrace": Correction(_vtrace, lambda log_pi: log_pi),
    "one_step": Correction(_one_step, lambda log_pi: log_pi),
    "epsilon": Correction(_uncorrected, lambda log_pi: (log_pi.exp() + EPSILON).log()),
    "none": Correction(_uncorrected, lambda log_pi: log_pi),
}
"""The corrections by their names in `--correction`."""
