"""The table of rows: which task, how long, how often, what is to be reached, and what others have reached.

Everything else comes from the preset that a task takes by itself; `flags` hold only what a task cannot do without, or what a
row is there to show.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

SOURCES = {
    "SB3": "Stable-Baselines3, one trained agent each, tuned per task, likeliest actions except on Atari: the benchmark "
    "page of [rl-baselines3-zoo](https://github.com/DLR-RM/rl-baselines3-zoo/blob/master/benchmark.md); its Box2D tasks "
    "are one version older than ours, its MuJoCo tasks are v3",
    "CleanRL": "means of 3 seeds at the end of training, drawn actions: "
    "[CleanRL's pages](https://docs.cleanrl.dev/rl-algorithms/ppo/)",
    "gymnax": "PPO, 10M steps (the configurations of gymnax-blines): the table of "
    "[gymnax's README](https://github.com/RobertTLange/gymnax); it has no agent for Seaquest",
    "MinAtar": "actor-critic with eligibility traces, 5M steps, means of 30 seeds, as curves alone: "
    "Young and Tian (2019), [arXiv 1903.03176](https://arxiv.org/abs/1903.03176)",
    "own": "our own measure of solved, for want of a published figure",
}
"""By the words that a row's `published` begins with."""


@dataclass(frozen=True)
class Row:
    """One task, with several seeds."""

    name: str
    """of the row, its run folders and its files"""
    env: str
    steps: int
    """agent steps of each run, fewer if the target is reached before"""
    seeds: int
    target: float | None
    """the mean return over 100 games to reach; None: the row only shows a curve"""
    published: str = ""
    """what others have reached, each figure behind its source's name, "score @ agent steps" """
    flags: dict[str, Any] = field(default_factory=dict)
    panel: str = ""
    """rows with the same are drawn into one panel, each as the mean of its seeds; "": a panel of its own, with each seed"""


def _same(env: str, steps: int, seeds: int, target: float | None, published: str = "", **flags: Any) -> Row:
    """A row that is called as its environment is."""
    return Row(env.replace("/", "-"), env, steps, seeds, target, published, flags)


_BLIND = {"wrapper": "benchmarks.learning.tasks:without_velocities"}
_HUNDREDFOLD = {"wrapper": "benchmarks.learning.tasks:hundredfold"}
_DOOM = {"resize": "60x80", "action_repeat": 4}  # its pictures are 240x320, its tics 35 a second
_TORCHBEAST = {"center_pixels": False, "initialisation": "pytorch"}
_TORCHBEASTS_SHALLOW = {"model": "atari_shallow", **_TORCHBEAST}
_DEEP = {"model": "impala_resnet"}
_TORCHBEASTS_DEEP = {**_DEEP, **_TORCHBEAST, "last_step_input": "reward"}

_SYSTEMS: dict[str, dict[str, Any]] = {
    "impala": {},
    "impala-dynamic-batching": {"trainer": "polybeast"},
    "a3c": {"trainer": "a3c", "num_actor_processes": 2},
    "sync-trajectory": {"pace": "unroll", "num_actors": 8},
    "a2c-dynamic-batching": {"trainer": "polybeast", "pace": "unroll", "num_actors": 8},
    "sync-step": {"trainer": "polybeast", "pace": "step", "num_actors": 8},
    "one_step": {"correction": "one_step"},
    "epsilon": {"correction": "epsilon"},
    "no-correction": {"correction": "none"},
    "replay": {"replay_capacity": 10_000},
    "lag-10": {"policy_lag": 10, "num_actors": 8},
    "appo": {"algorithm": "appo"},
}
"""The paper's systems and corrections, and PPO's surrogate, with 8 unrolls in each update."""

_PAPERS_BY_EIGHT = {"num_actors": 16, "batch_size": 8, "learning_rate_schedule": "constant"}
"""The paper's settings for Atari in smaller steps: with its batches of 32, Pong takes off much later (docs/log.md)."""

_CHEETAH = _same("HalfCheetah-v5", 1_000_000, 3, 5_800, "SB3 PPO 5,819 @ 1M, A2C 3,041 @ 1M")
_HOPPER = _same("Hopper-v5", 1_000_000, 3, 2_400, "SB3 PPO 2,410 @ 1M, A2C 733 @ 1M")
_WALKER = _same("Walker2d-v5", 1_000_000, 3, 3_500, "SB3 PPO 3,479 @ 1M")
_LANDER = Row(
    "LunarLanderContinuous-v3", "LunarLander-v3", 1_000_000, 3, 270, "SB3 PPO 271 @ 1M, A2C 84 @ 5M",
    {"env_kwargs": {"continuous": True}},
)  # fmt: skip

_NARROW = {"initial_std": None}
"""Continuous actions that begin with a deviation of 1 / sqrt(N), not of 1 as by the preset."""

_WITHOUT: dict[str, dict[str, Any]] = {
    "preset": {},
    "raw-observations": {"normalise_observations": False},
    "raw-rewards": {"scale_rewards": False},
    "state-dependent-std": {"state_independent_std": False},
    "shared-value": {"separate_value": False},
    "pytorch-initialisation": {"initialisation": "pytorch"},
}
"""The preset for continuous actions, and that without one of its settings each."""

ROWS: dict[str, tuple[Row, ...]] = {
    "classic": (
        _same("CartPole-v1", 100_000, 3, 500, "SB3 PPO 500 @ 100K, A2C 500 @ 500K; CleanRL PPO 489"),
        _same("Acrobot-v1", 500_000, 3, -83, "SB3 A2C -83 @ 500K, PPO -74 @ 1M; CleanRL PPO -83 @ 500K"),
        _same("MountainCar-v0", 1_000_000, 3, -111, "SB3 A2C -111 @ 1M, PPO -110 @ 1M; CleanRL PPO -200"),
        _same("Pendulum-v1", 1_000_000, 3, -163, "SB3 A2C -163 @ 1M, PPO -172 @ 100K"),
    ),
    "box2d": (
        _same("LunarLander-v3", 1_000_000, 3, 242, "SB3 PPO 242 @ 1M, A2C 156 @ 200K"),
        _LANDER,
        _same("BipedalWalker-v3", 5_000_000, 3, 213, "SB3 PPO 213 @ 5M, A2C 300 @ 5M"),
    ),
    "minigrid": (
        _same("MiniGrid-Empty-5x5-v0", 100_000, 3, 0.95, "own: 0.955 is the shortest way"),
        _same("MiniGrid-DoorKey-5x5-v0", 500_000, 3, 0.95, "SB3 PPO 0.97 (drawn actions)"),
        _same("MiniGrid-GoToDoor-5x5-v0", 1_000_000, 3, 0.9, "own: a few detours in each game"),
    ),
    "memory": (
        Row("CartPole-blind-lstm", "CartPole-v1", 500_000, 3, 475, "own: what Gymnasium calls solved of CartPole",
            {**_BLIND, "use_lstm": True}),
        Row("CartPole-blind", "CartPole-v1", 500_000, 3, 475, "own: cannot be reached without a memory", _BLIND),
        Row("MiniGrid-MemoryS7-lstm", "MiniGrid-MemoryS7-v0", 2_000_000, 3, 0.9, "own: right nearly every time",
            {"use_lstm": True}),
        Row("MiniGrid-MemoryS7", "MiniGrid-MemoryS7-v0", 2_000_000, 3, 0.9, "own: cannot be reached without a memory",
            {"use_lstm": False}),
    ),
    "mujoco": (
        _CHEETAH,
        _HOPPER,
        _WALKER,
        # No longer than SB3's PPO takes for its 1M steps on one core of the same kind (docs/log.md).
        replace(_WALKER, name="Walker2d-v5-4M", steps=4_000_000, seeds=1),
    ),
    "minatar": (
        _same("MinAtar/Asterix-v1", 10_000_000, 1, 15, "gymnax PPO 15 @ 10M"),
        _same("MinAtar/Breakout-v1", 10_000_000, 1, 28, "gymnax PPO 28 @ 10M"),
        _same("MinAtar/Freeway-v1", 10_000_000, 1, 58, "gymnax PPO 58 @ 10M"),
        _same("MinAtar/Seaquest-v1", 10_000_000, 1, None, "MinAtar: a curve alone"),
        _same("MinAtar/SpaceInvaders-v1", 10_000_000, 1, 131, "gymnax PPO 131 @ 10M"),
    ),
    "vizdoom": (
        _same("VizdoomBasic-v1", 1_000_000, 1, 80, "own: a hit with nearly every first shot", **_DOOM),
        _same("VizdoomHealthGathering-v1", 3_000_000, 1, 2_000, "own: alive to the end, at 2,100, in nearly every game",
              **_DOOM),
    ),
    "miniworld": (
        _same("MiniWorld-Hallway-v0", 100_000, 1, 0.9, "own: the straight way, nearly every time"),
    ),
    "atari": (
        Row("Pong", "PongNoFrameskip-v4", 5_000_000, 3, 20,
            "SB3 A2C 17 @ 10M, PPO 21 @ 10M; CleanRL PPO 20.3 @ 10M, Baselines' PPO 20.4 @ 10M"),
        Row("Breakout", "BreakoutNoFrameskip-v4", 10_000_000, 1, 432,
            "SB3 A2C 280 @ 10M, PPO 398 @ 10M; CleanRL PPO 432 @ 10M, Baselines' PPO 389 @ 10M"),
        Row("SpaceInvaders", "SpaceInvadersNoFrameskip-v4", 10_000_000, 1, 1_162,
            "SB3 A2C 627 @ 10M, PPO 960 @ 10M; CleanRL PPO 1,162 @ 10M, Baselines' PPO 1,018 @ 10M"),
    ),
    "flags": (
        *(
            Row(f"CartPole-{name}", "CartPole-v1", 100_000, 2, None, flags=flags, panel="CartPole-optimiser")
            for name, flags in (
                ("preset", {}), ("rmsprop", {"optimiser": "rmsprop"}),
                ("constant-rate", {"learning_rate_schedule": "constant"}),
            )
        ),
        *(
            Row(f"{name}-hundredfold{how}", env, steps, 2, None, panel=f"{name}-hundredfold",
                flags={**_HUNDREDFOLD, **flags})
            for name, env, steps in (("CartPole", "CartPole-v1", 100_000), ("Pendulum", "Pendulum-v1", 150_000))
            for how, flags in (("", {"scale_rewards": False}), ("-popart", {"popart": True}), ("-scaled", {}))
        ),
        *(
            Row(f"Hopper-{name}", "Hopper-v5", 250_000, 2, None, flags=flags, panel="Hopper-without")
            for name, flags in _WITHOUT.items()
        ),
        *(
            Row(f"HalfCheetah-{name}", "HalfCheetah-v5", 250_000, 2, None, flags=flags, panel="HalfCheetah-initial-std")
            for name, flags in (("preset", {}), ("initial-std-none", _NARROW))
        ),
        *(
            replace(row, name=f"{row.name}-initial-std-none", seeds=seeds, flags={**row.flags, **_NARROW})
            for row, seeds in ((_CHEETAH, 3), (_HOPPER, 1), (_WALKER, 2), (_LANDER, 1))
        ),
        *(
            Row(f"Pendulum-bonus-{name}", "Pendulum-v1", 400_000, 2, None, flags={"entropy_cost": 0.01, **flags},
                panel="Pendulum-bonus")
            for name, flags in (("squashed", {}), ("unsquashed", {"squashed_entropy": False}))
        ),
    ),
    "systems": tuple(
        Row(f"{name}-{system}", env, steps, seeds, None, flags={**settings, **flags}, panel=name)
        for name, env, steps, seeds, settings in (
            ("CartPole", "CartPole-v1", 100_000, 3, {"preset": "classic"}),
            ("Breakout-MinAtar", "MinAtar/Breakout-v1", 500_000, 3, {"preset": "classic"}),
            ("Pong", "PongNoFrameskip-v4", 1_000_000, 1, _PAPERS_BY_EIGHT),
        )
        for system, flags in _SYSTEMS.items()
    ),
    "networks": tuple(
        Row(f"{game}-{name}", f"{game}NoFrameskip-v4", 2_500_000, 1, None, flags=flags)
        for game in ("Pong", "Breakout", "SpaceInvaders")
        for name, flags in (
            ("shallow", {"model": "atari_shallow"}), ("shallow-torchbeast", _TORCHBEASTS_SHALLOW),
            ("resnet", _DEEP), ("resnet-torchbeast", _TORCHBEASTS_DEEP),
        )
    ),
}  # fmt: skip
"""By the part of the page that they stand in."""
