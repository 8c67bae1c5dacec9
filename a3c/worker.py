"""The worker process: computes gradients from the unrolls of its own actors, with the weights that acted in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from beast.acting.actors import ActorArguments
from beast.acting.task import Task
from beast.core.data import Array
from beast.core.gradients import Gradient
from beast.core.seeds import seed_for
from beast.monobeast.actor import Actors
from beast.processes.machine import keep_freed_memory, use_compute_threads
from beast.processes.status import WorkerStatus
from beast.run.gradients import make_gradients
from beast.settings.config import Config
from beast.store.unrolls import WorkerPort
from beast.store.weights import Weights

from .slots import GradientSlots


@dataclass(frozen=True)
class Outlet:
    """Where a worker writes its gradients, and hears that they were applied."""

    slots: GradientSlots
    worker: int
    """Number of the worker."""
    port: WorkerPort
    """Port to the worker's own store, whose slots are free after its last gradient was applied and published."""


def run(
    status: WorkerStatus, actors: ActorArguments, outlet: Outlet, task: Task, config: Config, weights: Weights
) -> None:
    """Collect unrolls, send their gradient, and wait until it was applied, until told to stop.

    Args:
        status: what the worker reports to.
        actors: environments, model and random streams of its actors.
        outlet: where its gradients go.
        task: what is learned.
        config: settings of the run.
        weights: newest weights of the learner.
    """
    use_compute_threads(1)  # the environment variable would come too late: torch is imported already
    keep_freed_memory()
    torch.manual_seed(seed_for(actors.seed, "gradients", outlet.worker, actors.life))
    gradients = make_gradients(config, task, task.model.build(weights=False), torch.device("cpu"))
    acting = gradients.acting
    held = Weights.like(acting)
    """The weights that its actors act with: exactly those that the gradient is computed with."""

    def refresh() -> None:
        version = weights.read(acting.parameters, acting.statistics)
        held.publish(acting.parameters, version, acting.statistics)

    hosted = Actors(actors, task.dtype, held, outlet.port.writer, status)
    status.at_end(hosted.close)
    slots = _free(outlet, status)
    refresh()
    while slots is not None and not status.leaving and hosted.unroll(slots):
        passes = gradients.of(gradients.to_device(outlet.port.read(slots)))
        for number, gradient in enumerate(_timed(passes, status)):
            outlet.slots.put(outlet.worker, gradient, number)
            outlet.port.commit(slots)
            slots = _free(outlet, status)
            if slots is None:
                return
            refresh()


def _free(outlet: Outlet, status: WorkerStatus) -> Array | None:
    """Wait for the worker's slots; None if the run stops first."""
    while not status.stopping:
        with status.time("wait"):
            slots = outlet.port.acquire(timeout=0.2)
        status.beat()
        if slots is not None:
            return slots
    return None


def _timed(passes: Iterator[Gradient], status: WorkerStatus) -> Iterator[Gradient]:
    while True:
        with status.time("gradient"):
            gradient = next(passes, None)
        if gradient is None:
            return
        yield gradient
