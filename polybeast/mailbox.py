"""Where environment workers and inference leave each other's rows: one place in shared memory for each actor.

A worker writes what its environments say, then one small request into the pipe that all workers share; inference writes the
answers beside it, then one small message into that worker's own pipe. Both are single atomic pipe writes: no lock that a
killed process could keep, and the kernel does the waking.
"""

from __future__ import annotations

import itertools
import os
import select
from multiprocessing import reduction
from typing import Any, NamedTuple

import numpy as np
import torch

from beast.core.data import Array, ArraySpec, Chosen, EnvOutput, Nested, flatten, map_nested
from beast.processes.shared import SharedArrays
from beast.store.unrolls import UnrollSpec

LAST_TICKET = 0x7FFFFFFF  # then they begin at 0 again
_MESSAGE = np.dtype([("group", np.int32), ("ticket", np.int32)])


class Request(NamedTuple):
    """A group of actors waits for actions. The ticket tells this request from earlier ones, of dead workers too."""

    group_id: int
    ticket: int


class Rows(NamedTuple):
    """The rows of some actors, `[n, ...]`: views of the mailbox, or copies."""

    observation: Nested
    reward: Array
    last_action: Array
    first: Array
    noise: Array
    opening: Array
    """`[n]` bool: row 0 of an unroll, the state before it is wanted, and weights may change here."""
    extra: dict[str, Array]
    """`[n, ...]` by name: columns from the environment."""


class Mailbox:
    """Shared by workers and inference; pickles into child processes.

    Args:
        spec: of one step.
        noise_size: random numbers that one draw needs.
        num_actors: places.
    """

    def __init__(self, spec: UnrollSpec, noise_size: int, num_actors: int) -> None:
        def place(shape: tuple[int, ...] = (), dtype: Any = np.float32) -> ArraySpec:
            return ArraySpec((num_actors, *shape), np.dtype(dtype))

        self._shared = SharedArrays(
            {
                "observation": map_nested(lambda s: place(s.shape, s.dtype), spec.observation),
                "reward": place(),
                "last_action": place(spec.action.shape, spec.action.dtype),
                "first": place(dtype=bool),
                "noise": place((noise_size,)),
                "opening": place(dtype=bool),
                "extra": {name: place(s.shape, s.dtype) for name, s in spec.extra.items()},
                "agent_extra": {name: place(s.shape, s.dtype) for name, s in spec.agent_extra.items()},
                "action": place(spec.action.shape, spec.action.dtype),
                "behaviour_logits": place((spec.num_params,)),
                "policy_version": place(dtype=np.int64),
                "core_state": map_nested(lambda s: place(s.shape, s.dtype), spec.core_state),
                "finished": place(dtype=np.int64),
                "kept_state": map_nested(lambda s: ArraySpec((2, num_actors, *s.shape), s.dtype), spec.core_state),
                "kept_ticket": ArraySpec((2, num_actors), np.dtype(np.int64)),
            }
        )
        self._arrays["finished"][:] = self._arrays["kept_ticket"][:] = -1

    @property
    def _arrays(self) -> dict[str, Any]:
        arrays: dict[str, Any] = self._shared.arrays
        return arrays

    # -- the worker's side ------------------------------------------------------------------------------------------------

    def put_rows(self, places: slice, env: EnvOutput, noise: Array, opening: bool) -> None:
        """Leave a group's rows."""

        def write(array: Array, value: Array) -> None:
            array[places] = value

        arrays = self._arrays
        map_nested(write, arrays["observation"], env.observation)
        for name, value in (
            ("reward", env.reward),
            ("last_action", env.last_action),
            ("first", env.first),
            ("noise", noise),
            ("opening", opening),
        ):
            arrays[name][places] = value
        for name, array in arrays["extra"].items():
            array[places] = env.extra[name]

    def get_actions(self, places: slice) -> tuple[Chosen, int]:
        """What was chosen for a group, and the version of the policy that did."""
        arrays = self._arrays
        extra = {name: array[places] for name, array in arrays["agent_extra"].items()}
        chosen = Chosen(arrays["action"][places], arrays["behaviour_logits"][places], extra)
        return chosen, int(arrays["policy_version"][places.start])

    def core_state(self, places: slice) -> Nested:
        """The recurrent state before the row just answered, where that was an opening one."""
        return map_nested(lambda array: array[places], self._arrays["core_state"])

    def finish(self, places: slice, version: int) -> None:
        """Note that a group has a whole unroll by this version of the policy; -1: it has begun another one."""
        self._arrays["finished"][places] = version

    # -- inference's side -------------------------------------------------------------------------------------------------

    def get_rows(self, groups: list[slice], out: Rows | None = None) -> Rows:
        """Rows of several groups, one after the other; without a copy if they lie side by side.

        Args:
            out: where to copy them in any case, room for all places.
        """
        span = _one_slice(groups) if out is None else None

        def rows(array: Array, *room: Array) -> Array:
            if span is not None:
                return array[span]
            parts = [array[places] for places in groups]
            return np.concatenate(parts, out=room[0][: sum(map(len, parts))] if room else None)

        arrays = Rows(*(self._arrays[name] for name in Rows._fields))
        collected: Rows = map_nested(rows, arrays, *([] if out is None else [out]))
        return collected

    def page_locked(self) -> Rows:
        """Room for all places' rows that a GPU copies from at full speed, while the CPU goes on."""

        def like(array: Array) -> Array:
            room: Array = torch.from_numpy(array).clone().pin_memory().numpy()
            return room

        return Rows(*(map_nested(like, self._arrays[name]) for name in Rows._fields))

    def put_actions(self, groups: list[slice], chosen: Chosen, version: int) -> None:
        """Leave the answers."""
        arrays = self._arrays
        start = 0
        for places in groups:
            part = slice(start, start + places.stop - places.start)
            arrays["action"][places] = chosen.action[part]
            arrays["behaviour_logits"][places] = chosen.logits[part]
            arrays["policy_version"][places] = version
            for name, array in arrays["agent_extra"].items():
                array[places] = chosen.extra[name][part]
            start = part.stop

    def unfinished(self, groups: list[slice], version: int) -> set[int]:
        """The numbers of those groups that have no whole unroll by this version of the policy."""
        finished = self._arrays["finished"]
        return {number for number, places in enumerate(groups) if finished[places.start] != version}

    def put_state(self, places: slice, leaves: list[Array]) -> None:
        """Leave the recurrent state before an opening row."""
        for array, value in zip(flatten(self._arrays["core_state"]), leaves, strict=True):
            array[places] = value

    def keep_state(self, places: slice, ticket: int, leaves: list[Array]) -> None:
        """Leave the recurrent state `[n, ...]` after the row of a request, for a successor of this inference.

        Of two copies one is of the request before, so that a death in the midst of this harms nobody.
        """
        kept = self._arrays["kept_ticket"][ticket % 2]
        kept[places] = -1
        for array, value in zip(flatten(self._arrays["kept_state"]), leaves, strict=True):
            array[ticket % 2, places] = value
        kept[places] = ticket

    def kept_state(self, request: Request, places: slice) -> Nested | None:
        """The recurrent state before the row of a request, if a predecessor left it."""
        before = (request.ticket - 1) & LAST_TICKET
        if (self._arrays["kept_ticket"][before % 2, places] != before).any():
            return None
        return map_nested(lambda array: array[before % 2, places], self._arrays["kept_state"])


def _one_slice(groups: list[slice]) -> slice | None:
    """The slice that groups in this order make together, or None."""
    if all(before.stop == after.start for before, after in itertools.pairwise(groups)):
        return slice(groups[0].start, groups[-1].stop)
    return None


class Line:
    """A pipe for requests or answers; each process uses one end. Pickles into child processes."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self._set_up()

    def _set_up(self) -> None:
        os.set_blocking(self._read, False)

    def __getstate__(self) -> dict[str, Any]:
        return {"fds": (reduction.DupFd(self._read), reduction.DupFd(self._write))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._read, self._write = (fd.detach() for fd in state["fds"])
        self._set_up()

    def send(self, requests: list[Request]) -> None:
        """One write; atomic up to 512 messages."""
        os.write(self._write, np.array(requests, _MESSAGE).tobytes())

    def receive(self, timeout: float) -> list[Request]:
        """All that has come, waiting up to `timeout` seconds for the first."""
        if timeout > 0 and not self.wait([self], timeout):
            return []
        try:
            data = os.read(self._read, 1 << 16)
        except BlockingIOError:
            return []
        return [Request(*message) for message in np.frombuffer(data, _MESSAGE).tolist()]

    def fileno(self) -> int:
        return self._read

    @staticmethod
    def wait(lines: list[Any], timeout: float) -> bool:
        """Whether one of some objects with a `fileno` can be read within `timeout` seconds."""
        poll = select.poll()
        for line in lines:
            poll.register(line.fileno(), select.POLLIN)
        return bool(poll.poll(max(timeout, 0.0) * 1000))

    def __del__(self) -> None:
        for fd in (getattr(self, "_read", None), getattr(self, "_write", None)):
            if fd is not None:
                os.close(fd)
