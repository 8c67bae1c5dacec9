"""Presets: sets of defaults that suit a family of environments."""

from __future__ import annotations

from typing import Any

WIDEST = {"algorithm": "appo", "model": "mlp"}
"""The algorithm and the model that have all flags which any preset's have: what may be typed before one is chosen."""

PRESETS: dict[str, dict[str, Any]] = {
    # The defaults are the paper's settings for Atari.
    "atari": {},
    # Low-dimensional observations: tuned on CartPole-v1 alone (docs/log.md names what it does not learn yet).
    "classic": {
        "num_actors": 16,
        "batch_size": 8,
        "total_steps": 500_000,
        "learning_rate": 5e-3,
        # Unclipped rewards make gradients of any size: they are not clipped, and a large epsilon damps small ones.
        "epsilon": 1.0,
        "grad_norm_clipping": 0.0,
        "baseline_cost": 0.1,
        "reward_clipping": "none",
        "checkpoint_every": 1.0,
    },
    # Small grids with a sparse reward at the end.
    "minigrid": {
        "num_actors": 32,
        "total_steps": 10_000_000,
        "learning_rate": 1e-3,
        "reward_clipping": "none",
        "entropy_cost": 0.005,
        "use_lstm": True,
    },
    # First-person 3-D tasks (the paper's appendix D): one point within the ranges that the paper searched.
    "dmlab": {
        "model": "impala_resnet",
        "use_lstm": True,
        "unroll_length": 100,
        "total_steps": 250_000_000,
        "learning_rate": 2e-4,
        "entropy_cost": 3e-3,
        "epsilon": 1e-3,
        "grad_norm_clipping": 0.0,
        "reward_clipping": "soft_asymmetric",
    },
}
