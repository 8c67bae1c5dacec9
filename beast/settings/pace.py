"""Who waits for whom: the flags of the paper's synchronous systems (table 1) and of its policy-lag study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from beast.core.errors import ConfigError
from beast.settings.checks import at_least, one_of

PACES = ("free", "unroll", "step")
"""All values of `--pace`. A trainer's module may list those that it supports as PACES; without it these are the first two."""


@dataclass(frozen=True)
class PaceConfig:
    """Pace"""

    pace: str = "free"
    """Who waits for whom. free (IMPALA): actors never wait for the learner. unroll (batched A2C, synchronous by trajectory):
    each actor finishes one unroll, one update is made of them all, and all go on with its weights; batch_size is then
    num_actors. step (batched A2C, synchronous by step; --trainer polybeast): in addition the network runs once for each
    step, when all environments wait for it."""
    policy_lag: int | None = None
    """Let actors use weights that are exactly so many updates old, to study what that does (implies --pace unroll). As many
    old versions of the weights are kept in memory and in checkpoints."""

    def __post_init__(self) -> None:
        one_of(self, "pace", PACES)
        at_least(self, 0, "policy_lag")
        if self.policy_lag is not None and self.pace != "unroll":
            raise ConfigError(
                f"--policy_lag {self.policy_lag} goes with --pace unroll only, not with {self.pace}: add --pace unroll, or "
                "leave --policy_lag out"
            )

    @property
    def in_rounds(self) -> bool:
        """Whether actors and learner take turns."""
        return self.pace != "free"

    def check(self, num_actors: int, batch_size: int, inference: Any) -> None:
        """Check other settings against the pace.

        Raises:
            ConfigError: if they contradict it.
        """
        if not self.in_rounds:
            return
        if batch_size != num_actors:
            raise ConfigError(
                f"--pace {self.pace} makes each update of one unroll of every actor, so --batch_size {batch_size} must be "
                f"num_actors: leave it out, or give --batch_size {num_actors}"
            )
        if self.pace != "step":
            return
        for name in ("inference_min_batch", "inference_max_batch", "inference_timeout_ms"):
            value = getattr(inference, name)
            if value != getattr(type(inference), name) and (name, value) != ("inference_max_batch", num_actors):
                raise ConfigError(
                    f"--{name} {value} has no meaning with --pace step, where each forward is for all environments: leave it "
                    "out, or use --pace unroll"
                )


def implied(values: dict[str, Any], num_actors: Any) -> dict[str, Any]:
    """Return what pace and policy_lag imply for flags that were left out.

    Args:
        values: flags as given.
        num_actors: the number of actors if it is not among `values`.
    """
    pace = values.get("pace", "free" if values.get("policy_lag") is None else "unroll")
    batch_size = {"batch_size": values.get("num_actors", num_actors)} if pace != "free" else {}
    return {"pace": pace} | batch_size
