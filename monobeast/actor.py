"""The actor process: it steps environments and runs their policy, with one batched forward for each step."""

from __future__ import annotations

import torch

from beast.acting.actors import ActorArguments, ActorGroup
from beast.acting.policy import Policy
from beast.core.data import Array, Nested
from beast.processes.machine import keep_freed_memory, use_compute_threads
from beast.processes.status import Status, WorkerStatus
from beast.store.unrolls import UnrollWriter, WorkerPort
from beast.store.weights import Weights


class Actors:
    """An ActorGroup with its own policy, which loads the newest weights at the start of each unroll.

    Args:
        arguments: which actors, on which task.
        dtype: dtype of the policy's parameters.
        weights: where the newest parameters are read.
        writer: writes rows into the store's slots.
        status: what the actors report to.
    """

    def __init__(
        self, arguments: ActorArguments, dtype: torch.dtype, weights: Weights, writer: UnrollWriter, status: Status
    ) -> None:
        self.group = ActorGroup(arguments, writer, status)
        self._policy = Policy(arguments.model, dtype, weights, len(arguments.actors))
        self._status = status

    def unroll(self, slots: Array) -> bool:
        """Fill one slot for each actor with T steps; return False if the run stops meanwhile."""
        group, policy, status = self.group, self._policy, self._status
        version = policy.refresh()
        group.begin(slots)
        group.remember(policy.state())
        done = False
        while not done:
            with status.time("inference"):
                chosen = policy.act(group.env, group.noise)
            done = group.step(chosen, version)
            if status.stopping:
                return False
        return True

    @property
    def core_state(self) -> Nested:
        """The policy's recurrent state, arrays `[E, ...]`."""
        return self._policy.state()

    @core_state.setter
    def core_state(self, state: Nested) -> None:
        self._policy.restore(state)

    def close(self) -> None:
        """Close the environments."""
        self.group.close()


def run(
    status: WorkerStatus, ports: list[WorkerPort], arguments: ActorArguments, dtype: torch.dtype, weights: Weights
) -> None:
    """Run an actor process: collect unrolls until told to stop."""
    use_compute_threads(1)  # the environment variable would have no effect, because torch is imported already
    keep_freed_memory()
    (port,) = ports
    actors = Actors(arguments, dtype, weights, port.writer, status)
    status.at_end(actors.close)
    while not (status.stopping or status.leaving):
        with status.time("wait"):
            slots = port.acquire(timeout=0.2)
        status.beat()
        if slots is not None and actors.unroll(slots):
            port.commit(slots)
