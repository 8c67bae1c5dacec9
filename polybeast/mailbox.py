"""The mailbox: shared memory in which environment workers and inference exchange rows and actions, one entry per actor.

A worker writes the rows of its environments, then one small request into the pipe that all workers share; inference
writes the actions beside them, then one small message into that worker's own pipe. Each message is a single atomic pipe
write: there is no lock that a killed process could keep, and the kernel wakes the reader.
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
    """A group's request for actions. The ticket distinguishes it from earlier requests, also from those of dead workers."""

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
    """`[n]` bool: row 0 of an unroll; the state before it is needed, and weights may change here."""
    extra: dict[str, Array]
    """Columns from the environment by name, `[n, ...]`."""


class Mailbox:
    """Shared memory for the rows and actions of all actors. It pickles into child processes.

    Args:
        spec: spec of one step.
        noise_size: random numbers that one sample needs.
        num_actors: number of entries.
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
        """Write a group's rows."""

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
        """Return a group's actions and the version of the policy that chose them."""
        arrays = self._arrays
        extra = {name: array[places] for name, array in arrays["agent_extra"].items()}
        chosen = Chosen(arrays["action"][places], arrays["behaviour_logits"][places], extra)
        return chosen, int(arrays["policy_version"][places.start])

    def core_state(self, places: slice) -> Nested:
        """Return the recurrent state before the row that was just answered, if that was an opening row."""
        return map_nested(lambda array: array[places], self._arrays["core_state"])

    def finish(self, places: slice, version: int) -> None:
        """Note that a group finished an unroll with this version of the policy; -1: it has begun another one."""
        self._arrays["finished"][places] = version

    # -- inference's side -------------------------------------------------------------------------------------------------

    def get_rows(self, groups: list[slice], out: Rows | None = None) -> Rows:
        """Return the rows of several groups, one after the other; without a copy if they are adjacent.

        Args:
            groups: slices of the groups' rows.
            out: rows with room for all actors; if given, the rows are always copied there.
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
        """Return rows in page-locked memory for all actors, which a GPU copies from at full speed while the CPU continues."""

        def like(array: Array) -> Array:
            room: Array = torch.from_numpy(array).clone().pin_memory().numpy()
            return room

        return Rows(*(map_nested(like, self._arrays[name]) for name in Rows._fields))

    def put_actions(self, groups: list[slice], chosen: Chosen, version: int) -> None:
        """Write the actions of several groups."""
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
        """Return the numbers of the groups that have not finished an unroll with this version of the policy."""
        finished = self._arrays["finished"]
        return {number for number, places in enumerate(groups) if finished[places.start] != version}

    def put_state(self, places: slice, leaves: list[Array]) -> None:
        """Write the recurrent state before an opening row."""
        for array, value in zip(flatten(self._arrays["core_state"]), leaves, strict=True):
            array[places] = value

    def keep_state(self, places: slice, ticket: int, leaves: list[Array]) -> None:
        """Leave the recurrent state `[n, ...]` after a request's row, for a successor of this inference process.

        There are two copies, of which the other belongs to the request before, so that dying within this call does no harm.
        """
        kept = self._arrays["kept_ticket"][ticket % 2]
        kept[places] = -1
        for array, value in zip(flatten(self._arrays["kept_state"]), leaves, strict=True):
            array[ticket % 2, places] = value
        kept[places] = ticket

    def kept_state(self, request: Request, places: slice) -> Nested | None:
        """Return the recurrent state before a request's row, or None if no predecessor left it."""
        before = (request.ticket - 1) & LAST_TICKET
        if (self._arrays["kept_ticket"][before % 2, places] != before).any():
            return None
        return map_nested(lambda array: array[before % 2, places], self._arrays["kept_state"])


def _one_slice(groups: list[slice]) -> slice | None:
    """Return the slice that these groups form together in this order, or None."""
    if all(before.stop == after.start for before, after in itertools.pairwise(groups)):
        return slice(groups[0].start, groups[-1].stop)
    return None


class Line:
    """A pipe for requests or answers; each process uses one end. It pickles into child processes."""

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
        """Send requests in one write, which is atomic up to 512 messages."""
        os.write(self._write, np.array(requests, _MESSAGE).tobytes())

    def receive(self, timeout: float) -> list[Request]:
        """Return all messages that have come, waiting up to `timeout` seconds for the first."""
        if timeout > 0 and not self.wait([self], timeout):
            return []
        try:
            data = os.read(self._read, 1 << 16)
        except BlockingIOError:
            return []
        return [Request(*message) for message in np.frombuffer(data, _MESSAGE).tolist()]

    def fileno(self) -> int:
        """Return the descriptor of the reading end."""
        return self._read

    @staticmethod
    def wait(lines: list[Any], timeout: float) -> bool:
        """Return whether one of these objects with a `fileno` becomes readable within `timeout` seconds."""
        poll = select.poll()
        for line in lines:
            poll.register(line.fileno(), select.POLLIN)
        return bool(poll.poll(max(timeout, 0.0) * 1000))

    def __del__(self) -> None:
        for fd in (getattr(self, "_read", None), getattr(self, "_write", None)):
            if fd is not None:
                os.close(fd)
