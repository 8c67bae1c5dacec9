"""The environment worker: it steps environments and writes unrolls, and never holds a model.

Its environments may form two groups: while one waits for its actions, the other steps.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from beast.acting.actors import ActorArguments, ActorGroup
from beast.core.data import Array
from beast.processes.machine import keep_freed_memory, use_compute_threads
from beast.processes.status import Status, WorkerStatus
from beast.store.unrolls import UnrollWriter, WorkerPort

from .mailbox import LAST_TICKET, Line, Mailbox, Request

PATIENCE = 1.0  # seconds without an answer after which a request is repeated (inference may have been restarted)


class RemoteActors:
    """An ActorGroup whose policy runs elsewhere: `ask` for actions, and `take` them when the answer is there.

    Args:
        group: number of the group.
        arguments: which actors, on which task.
        mailbox: where rows and actions are exchanged.
        writer: writes rows into the store's slots.
        status: what the actors report to.
    """

    def __init__(
        self, group: int, arguments: ActorArguments, mailbox: Mailbox, writer: UnrollWriter, status: Status
    ) -> None:
        self.group, self._mailbox = group, mailbox
        self._places = places_of(arguments.actors)
        self.actors = ActorGroup(arguments, writer, status)
        # No two lives of a worker use the same tickets, so that answers to a dead worker are recognised.
        self.ticket = (arguments.life * 0x9E3779B1 + 1) & 0x3FFFFFFF
        self.slots: Array | None = None
        self.asked = 0.0

    def begin(self, slots: Array) -> Request:
        """Start an unroll in these slots and return its first request."""
        self.slots = slots
        self._mailbox.finish(self._places, -1)  # one that died before its commit may have said otherwise
        self.actors.begin(slots)
        return self.ask()

    def ask(self) -> Request:
        """Put this row into the mailbox and return the request for its actions."""
        actors = self.actors
        self._mailbox.put_rows(self._places, actors.env, actors.noise, opening=actors.row == 0)
        self.ticket = (self.ticket + 1) & LAST_TICKET
        return self.repeat()

    def repeat(self) -> Request:
        """Return the current request again."""
        self.asked = time.monotonic()
        return Request(self.group, self.ticket)

    def take(self) -> bool:
        """Take the actions from the mailbox and step; return True when the unroll is complete."""
        if self.actors.row == 0:
            self.actors.remember(self._mailbox.core_state(self._places))
        chosen, version = self._mailbox.get_actions(self._places)
        complete = self.actors.step(chosen, version)
        if complete:
            self._mailbox.finish(self._places, version)
        return complete

    def close(self) -> None:
        """Close the environments."""
        self.actors.close()


def places_of(actors: tuple[int, ...]) -> slice:
    """Return the slice of a group's rows in the mailbox; actor numbers of a group are consecutive."""
    return slice(actors[0], actors[-1] + 1)


@dataclass(frozen=True)
class Lines:
    """A worker's pipes: the shared one for requests, its own for answers."""

    requests: Line
    answers: Line


def run(
    status: WorkerStatus,
    ports: list[WorkerPort],
    groups: list[int],
    arguments: list[ActorArguments],
    mailbox: Mailbox,
    lines: Lines,
) -> None:
    """Run an environment worker until told to stop.

    Args:
        status: what it reports to.
        ports: ports to the store, one for each group.
        groups: the groups' numbers.
        arguments: which actors, one for each group.
        mailbox: where rows and actions are exchanged.
        lines: pipes for requests and answers.
    """
    use_compute_threads(1)
    keep_freed_memory()
    actors: dict[int, RemoteActors] = {}
    for group, each, port in zip(groups, arguments, ports, strict=True):
        actors[group] = RemoteActors(group, each, mailbox, port.writer, status)
        status.at_end(actors[group].close)
    port_of = dict(zip(groups, ports, strict=True))
    while not status.stopping:
        status.beat()
        leaving = status.leaving
        if leaving and all(a.slots is None for a in actors.values()):
            return
        for group, a in actors.items():
            if a.slots is None and not leaving and (slots := port_of[group].acquire(timeout=0.0)) is not None:
                lines.requests.send([a.begin(slots)])
        idle = [port_of[group] for group, a in actors.items() if a.slots is None and not leaving]
        with status.time("wait"):
            Line.wait([lines.answers, *idle], 0.2)
        for request in lines.answers.receive(0.0):
            a = actors[request.group_id]
            if request.ticket != a.ticket or a.slots is None:
                continue  # an answer to a former worker, or a repeated one
            if a.take():
                port_of[request.group_id].commit(a.slots)
                a.slots = None
            else:
                lines.requests.send([a.ask()])
        late = time.monotonic() - PATIENCE
        for a in actors.values():
            if a.slots is not None and a.asked < late:
                lines.requests.send([a.repeat()])
