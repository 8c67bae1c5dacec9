"""The four ways to treat data of older policies that the paper compares (Espeholt et al. 2018, section 5.2.2 and table 2).

Each maps log(pi / mu) of the actions taken to three weights: of the temporal differences in the value targets, of the traces
between them, and of the policy gradient; and log pi to what is differentiated. Steps that are none (resets) have a log
weight of minus infinity, and weigh nothing in all four.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

EPSILON = 1e-6
"""Of the epsilon-correction: keeps log(pi + epsilon) finite where the newer policy has all but given an action up."""


class Clips(Protocol):
    """The part of a loss's settings that is needed here."""

    @property
    def clip_rho_threshold(self) -> float | None: ...
    @property
    def clip_pg_rho_threshold(self) -> float | None: ...
    @property
    def clip_c_threshold(self) -> float | None: ...
    @property
    def trace_lambda(self) -> float: ...


class Weights(NamedTuple):
    """`[T, B, ...]` each, without gradient."""

    target: torch.Tensor
    """rho of the temporal differences."""
    trace: torch.Tensor
    """c between them, trace_lambda included."""
    policy: torch.Tensor
    """Of the policy gradient."""


class Correction(NamedTuple):
    """One of the four."""

    weights: Callable[[torch.Tensor, Clips], Weights]
    """From log(pi / mu), `[T, B, ...]`."""
    log_policy: Callable[[torch.Tensor], torch.Tensor]
    """From log pi of the actions taken to what the policy gradient is the gradient of."""


def clip(weights: torch.Tensor, threshold: float | None) -> torch.Tensor:
    """None: no clip."""
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
"""By the name that `--correction` gives."""
