"""The action log, from which serial actors return to their state: environments cannot be saved, but actions can be repeated.

A checkpoint holds the actions of all complete unrolls. Environments with the same seeds that are given the same actions
reach the same state, and each actor's random stream advances as far: training then continues bit for bit.
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
    def group(self) -> ActorGroup:
        """The actors and their environments."""

    def unroll(self, slots: Array) -> bool:
        """Fill one slot for each actor with T steps; return False if the run stops meanwhile."""

    def close(self) -> None:
        """Close the environments."""


class ActionLog:
    """The actions of serial actors since their environments were made.

    Args:
        life: number that the environments' seeds were made with.
    """

    def __init__(self, life: int) -> None:
        self.life = life
        self._unrolls: list[Array] = []  # actions [E, T] (+ [N]) each
        self._checks: list[int] = []  # checksums of the environments' rows at the end of each unroll
        self._core_state: list[Array] | None = None  # None: the initial state
        self._metrics: int | None = None  # how many metrics the checksums cover; None: all

    @property
    def steps(self) -> int:
        """Steps of each environment so far."""
        return sum(unroll.shape[1] for unroll in self._unrolls)

    def add(self, actions: Array, actors: SerialActors) -> None:
        """Add one unroll: its actions `[E, T]` (+ `[N]`), and the actors after it."""
        if actions.dtype.kind == "i":  # a small dtype, because long runs have many actions
            actions = actions.astype(np.uint8 if actors.group.num_params <= 256 else np.int32)
        self._unrolls.append(actions.copy())
        self._metrics = actors.group.env.metrics.shape[1]
        self._checks.append(_check(actors.group.env, self._metrics))
        self._core_state = [leaf.copy() for leaf in flatten(actors.core_state)]

    def fast_forward(self, actors: SerialActors, stopping: Callable[[], bool]) -> bool:
        """Bring new actors to the same state; return False if their environments reach another one."""
        if self._core_state is not None:
            wanted = [leaf.shape for leaf in flatten(actors.core_state)]
            if len(self._checks) != len(self._unrolls) or [leaf.shape for leaf in self._core_state] != wanted:
                return False  # the actions are of other actors
        for actions, check in zip(self._unrolls, self._checks, strict=False):
            if stopping():
                return True  # the run is stopping, so the state does not matter
            try:
                actors.group.fast_forward(actions)
            except Exception:  # for example an action that is not allowed in this state, which is then another one
                return False
            if _check(actors.group.env, self._metrics) != check:
                return False
        if self._core_state is not None:
            leaves = iter(self._core_state)
            actors.core_state = map_nested(lambda _: next(leaves), actors.core_state)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the log as tensors and plain types."""
        return {
            "incarnation": self.life,
            "metrics": self._metrics,
            "actions": torch.from_numpy(np.stack(self._unrolls)) if self._unrolls else None,  # [unrolls, E, T] (+ [N])
            "checks": torch.tensor(self._checks, dtype=torch.int64),
            "core_state": None if self._core_state is None else [torch.from_numpy(leaf) for leaf in self._core_state],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> ActionLog:
        """Make the log that `state_dict` returned."""
        log = cls(state["incarnation"])
        log._metrics = state["metrics"]
        log._unrolls = [] if state["actions"] is None else list(state["actions"].numpy())
        log._checks = state["checks"].tolist()
        if state["core_state"] is not None:
            log._core_state = [leaf.numpy() for leaf in state["core_state"]]
        return log


def _check(env: EnvOutput, metrics: int | None) -> int:
    """Return a checksum of a row, over its first `metrics` metrics (later versions may report more)."""
    check, env = 0, env._replace(metrics=env.metrics[:, :metrics])
    for leaf in flatten(tuple(env)):
        check = zlib.crc32(np.ascontiguousarray(leaf).data, check)
    return check
