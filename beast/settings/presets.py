"""Presets: sets of defaults that suit a family of environments."""

from __future__ import annotations

from typing import Any

WIDEST = {"algorithm": "appo", "model": "mlp"}
"""The algorithm and the model that have all flags which any preset's have: what may be typed before one is chosen."""

_SMALL_BATCHES: dict[str, Any] = {
    # A small network costs next to nothing beside its environment: each batch is learned from several times, and is a small
    # one, because many small updates learn from fewer steps than few large ones (docs/log.md).
    "algorithm": "appo",
    "optimiser": "adam",
    "passes": 4,  # as PPO's tuned settings have for tasks with choices
    # Two batches are on their way while one is learned from, so that the policy is few updates old.
    "num_actors": 16,
    "batch_size": 8,
    "unroll_length": 32,
    "trace_lambda": 0.95,  # PPO's usual compromise between bias and variance of advantages
    "reward_clipping": "none",
    "grad_norm_clipping": 100.0,  # of a sum over 256 steps: about 0.4 of the mean, PPO's usual clip is 0.5
    "checkpoint_every": 1.0,
}

_ANY_SIZE: dict[str, Any] = {
    # Tasks differ in the size of their numbers alone, and need no settings of their own for that.
    "normalise_observations": True,
    "scale_rewards": True,
    # Of rewards so scaled that returns have deviation 1, advantages are a fraction of that; with 0.01 LunarLander kept two
    # thirds of the largest entropy and came to 167, with this to more than 200.
    "entropy_cost": 0.003,
}
"""Settings with which a task's numbers may have any size."""

_VECTORS: dict[str, Any] = {
    **_SMALL_BATCHES,
    **_ANY_SIZE,
    # 256 steps in few long unrolls instead of many short ones: half of an unroll of 32 is nearer to its end than the 17
    # steps that lambda looks ahead. HalfCheetah came to 4,800 with that and to 5,162 with this, one seed each.
    "num_actors": 8,
    "batch_size": 4,
    "unroll_length": 64,
    "learning_rate": 5e-4,  # falls to 0; 3e-4 of PPO's implementations is for four times as many updates a step
    # As in PPO's implementations; LunarLander came to 105 without these two, to 194 with them, one seed each.
    "separate_value": True,
    "initialisation": "orthogonal",
}

PRESETS: dict[str, dict[str, Any]] = {
    # Large pictures: found on Pong and Breakout, on a CPU.
    "atari": {
        # The paper's settings, but for its batches of 32 unrolls: four times as many updates, each of a quarter as many steps,
        # learn from fewer frames (Pong is at 0 after 1.0M steps instead of 1.45M; docs/log.md).
        "batch_size": 8,
    },
    # The defaults of all flags, which are the paper's settings for Atari but for what docs/paper.md names.
    "paper": {},
    # Small arrays of whole numbers: tuned on CartPole-v1 alone, before there was `control`.
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
    # Vectors of numbers or numbered states, and actions that are choices: found on CartPole, Acrobot, MountainCar and
    # LunarLander, together.
    "control": {
        **_VECTORS,
        "total_steps": 1_000_000,
    },
    # Continuous actions: found on Pendulum, Hopper and HalfCheetah, together.
    "continuous": {
        **_VECTORS,
        # As many are PPO's custom for continuous actions. With 4 HalfCheetah learns faster but Pendulum slower, and
        # LunarLander's continuous form had 13 after 1M steps instead of 153 (both with a deviation of 0.7 at first).
        "passes": 8,
        "total_steps": 1_000_000,
        "entropy_cost": 0.0,  # with 0.01 and `control`'s other settings Pendulum's policy widened until it was noise
        "squashed_entropy": True,  # so that a bonus which is asked for does no such thing
        # As in PPO's implementations, and 1 at first. With 1 / sqrt(N) HalfCheetah and Ant are learned much faster, but
        # Walker2d, BipedalWalker and LunarLander slower (docs/log.md).
        "state_independent_std": True,
    },
    # Small grids with a sparse reward at the end: found on MiniGrid-DoorKey-5x5.
    "minigrid": {
        **_SMALL_BATCHES,
        "learning_rate": 1e-3,
        "total_steps": 1_000_000,
        "use_lstm": True,  # only what is before the agent is seen
    },
    # Small pictures, and pictures beside anything else or with continuous actions: found on MinAtar's Breakout. ViZDoom's Basic
    # comes to 79 by it within 73,000 steps, where `atari` was deterministic after 2,000 and stayed at -270.
    "small": {
        **_SMALL_BATCHES,
        **_ANY_SIZE,
        "learning_rate": 1e-3,
        "num_actors": 32,
        "batch_size": 16,
        "grad_norm_clipping": 200.0,
        "passes": 2,  # convolutions are what takes the time here
        "squashed_entropy": True,  # where actions hold numbers, as in `continuous`
        "total_steps": 10_000_000,
    },
}
