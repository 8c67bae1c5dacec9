"""What squashing a Gaussian into bounds does to its entropy, and how wide the Gaussian may be."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

NODES, _SHARES = np.polynomial.hermite_e.hermegauss(24)
SHARES = _SHARES / _SHARES.sum()
"""Gauss-Hermite quadrature: the mean of f over a standard normal variable is about the sum of SHARES * f(NODES)."""


def bounded(log_std: torch.Tensor) -> torch.Tensor:
    """Hold log standard deviations between -6 and 3: unchanged in [-5, 2], outside by softsign, which keeps a gradient.

    Under a plain clamp a policy that has left the bounds could never come back.
    """
    inside = log_std.clamp(-5.0, 2.0)
    return inside + F.softsign(log_std - inside)


def mean_log_slopes(mean: torch.Tensor, std: torch.Tensor, tanh: torch.Tensor, softplus: torch.Tensor) -> torch.Tensor:
    """Return E[log(du'/du)], which squashing u to u' adds to a Gaussian's entropy.

    Args:
        mean: `[..., N]` of the Gaussian.
        std: `[..., N]`, its standard deviations.
        tanh: `[N]` bool, which numbers have two bounds.
        softplus: `[N]` bool, which have one bound; numbers without bounds are not squashed.

    Returns:
        `[..., N]`, in nats.
    """
    nodes, shares = (torch.from_numpy(x).to(mean) for x in (NODES, SHARES))
    u = mean.unsqueeze(-1) + std.unsqueeze(-1) * nodes  # [..., N, nodes]
    # log(1 - tanh(u)^2), written so that it stays finite; the derivative of softplus is the sigmoid.
    of_tanh = 2 * (math.log(2) - u - F.softplus(-2 * u))
    means = ((part * shares).sum(-1) for part in (of_tanh, F.logsigmoid(u)))
    return sum(kind.to(mean) * part for kind, part in zip((tanh, softplus), means, strict=True))  # type: ignore[return-value]
