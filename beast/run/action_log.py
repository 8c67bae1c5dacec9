"""How serial actors come back to where they were: environments cannot be saved, but all that was done to them can.

A checkpoint holds the actions of all complete unrolls. Environments of the same seeds that are given the same actions are
in the same state, and each actor's random stream has advanced as far: training then goes on bit for bit.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from beast.acting.actors import ActorGroup
from beast.core.data import Array, EnvOutput, Nested, flatten, map_nested


class SerialActors(Protocol):
    """All actors in this process (serial mode)."""

    core_state: Nested
    """The policy's recurrent state, arrays `[E, ...]`."""

    @property
    def group(self) -> ActorGroup: ...
    def unroll(self, slots: Array) -> bool: ...
    def close(self) -> None: ...


class ActionLog:
    """What serial actors have done since their environments were made.

    Args:
        life: of the environments' seeds.
    """

    def __init__(self, life: int) -> None:
        self.life = life
        self._unrolls: list[Array] = []  # actions [E, T] (+ [N]) each
        self._checks: list[int] = []  # of what the environments said at each unroll's end
        self._core_state: list[Array] | None = None  # None: the initial one
        self._metrics: int | None = None  # how many the environments gave when they were checked; None: as many as now

    @property
    def steps(self) -> int:
        """Of each environment."""
        return sum(unroll.shape[1] for unroll in self._unrolls)

    def add(self, actions: Array, actors: SerialActors) -> None:
        """One more unroll: its actions `[E, T]` (+ `[N]`), and the actors as it left them."""
        if actions.dtype.kind == "i":  # as long runs have many
            actions = actions.astype(np.uint8 if actors.group.num_params <= 256 else np.int32)
        self._unrolls.append(actions.copy())
        self._metrics = actors.group.env.metrics.shape[1]
        self._checks.append(_check(actors.group.env, self._metrics))
        self._core_state = [leaf.copy() for leaf in flatten(actors.core_state)]

    def fast_forward(self, actors: SerialActors, stopping: Callable[[], bool]) -> bool:
        """Bring new actors to the same point; False if their environments turn out to be in another state."""
        if self._core_state is not None:
            wanted = [leaf.shape for leaf in flatten(actors.core_state)]
            if len(self._checks) != len(self._unrolls) or [leaf.shape for leaf in self._core_state] != wanted:
                return False  # of other actors
        for actions, check in zip(self._unrolls, self._checks, strict=False):
            if stopping():
                return True  # nobody will go on from here
            try:
                actors.group.fast_forward(actions)
            except Exception:  # an action that this state does not allow, perhaps; the first time it did not fail
                return False
            if _check(actors.group.env, self._metrics) != check:
                return False
        if self._core_state is not None:
            leaves = iter(self._core_state)
            actors.core_state = map_nested(lambda _: next(leaves), actors.core_state)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types only."""
        return {
            "incarnation": self.life,
            "metrics": self._metrics,
            "actions": torch.from_numpy(np.stack(self._unrolls)) if self._unrolls else None,  # [unrolls, E, T] (+ [N])
            "checks": torch.tensor(self._checks, dtype=torch.int64),
            "core_state": None if self._core_state is None else [torch.from_numpy(leaf) for leaf in self._core_state],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> ActionLog:
        log = cls(state["incarnation"])
        log._metrics = state["metrics"]
        log._unrolls = [] if state["actions"] is None else list(state["actions"].numpy())
        log._checks = state["checks"].tolist()
        if state["core_state"] is not None:
            log._core_state = [leaf.numpy() for leaf in state["core_state"]]
        return log


def _check(env: EnvOutput, metrics: int | None) -> int:
    """A checksum of all that environments said, of their metrics the first ones: later versions may know more."""
    check, env = 0, env._replace(metrics=env.metrics[:, :metrics])
    for leaf in flatten(tuple(env)):
        check = zlib.crc32(np.ascontiguousarray(leaf).data, check)
    return check
