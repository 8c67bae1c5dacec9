"""The numbers of a run at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Report:
    """The state of a run at one moment; None marks what is not known yet.

    Steps are agent steps, frames are steps times the action repeat, times are in seconds, `sps` and `fps` are per second.
    Speeds, losses, policy lag (updates between acting and learning) and shares (of the actors' time, 0 to 1) cover the
    time since the last report; episode means cover the last `window` full games of `episodes` so far.
    """

    total_steps: int
    step: int = 0
    frames: int = 0
    updates: int = 0
    elapsed: float = 0.0
    left: float | None = None
    sps: float | None = None
    fps: float | None = None
    episodes: int = 0
    window: int = 0
    mean_episode_return: float | None = None
    mean_episode_steps: float | None = None
    history: tuple[tuple[int, float], ...] = ()
    """Pairs (step, mean return) of this report and earlier ones."""
    losses: Mapping[str, float] = field(default_factory=dict)
    """The learner's metrics by name."""
    learning_rate: float | None = None
    policy_lag_mean: float | None = None
    policy_lag_max: float | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    env: Mapping[str, float] = field(default_factory=dict)
    """The environment's own metrics, averaged over the last games that reported them."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """Further columns that the caller reports."""

    def sections(self) -> dict[str, dict[str, float | None]]:
        """Return the numbers for the logs by column, under the names of TensorBoard's sections."""

        def fields(*names: str) -> dict[str, float | None]:
            return {name: getattr(self, name) for name in names}

        return {
            "run": {"time": self.elapsed, **fields("step", "frames", "updates")},
            "speed": fields("sps", "fps"),
            "episode": fields("mean_episode_return", "mean_episode_steps", "episodes"),
            "loss": dict(self.losses),
            "policy": fields("learning_rate", "policy_lag_mean", "policy_lag_max"),
            "actors": {f"share_{stage}": share for stage, share in self.shares.items()},
            "env": {f"env/{name}": value for name, value in self.env.items()},
            "extra": dict(self.extra),
        }
