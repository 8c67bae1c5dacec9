"""MonoBeast's wiring: actor processes, or all actors in this process (serial mode), fill the store."""

from __future__ import annotations

from typing import Any

import torch

from beast.acting.actors import ActorArguments, spread
from beast.acting.task import Task
from beast.processes.status import LocalStatus
from beast.run.crew import Crew, WorkerPlan
from beast.settings.config import Config
from beast.store.unrolls import UnrollSpec, UnrollWriter, WorkerPort
from beast.store.weights import Weights

from . import actor


def acting_device(device: torch.device) -> torch.device:
    """Return the CPU: actors run their own forwards there, wherever the learner is."""
    return torch.device("cpu")


def crew(task: Task, config: Config, spec: UnrollSpec, weights: Weights) -> Crew:
    """Plan one process for each set of actors; in serial mode all actors run in this process."""

    def arguments(actors: tuple[int, ...], life: int) -> ActorArguments:
        return ActorArguments(task.env, task.model, actors, config.run.seed, life, config.actors.unroll_length)

    if config.actors.serial:
        everyone = tuple(range(config.actors.num_actors))

        def make(writer: UnrollWriter, life: int, status: LocalStatus) -> actor.Actors:
            return actor.Actors(arguments(everyone, life), task.dtype, weights, writer, status)

        return Crew(serial=make)

    def plan(index: int, actors: tuple[int, ...]) -> WorkerPlan:
        def of_life(ports: list[WorkerPort], life: int) -> tuple[Any, ...]:
            return ports, arguments(actors, life), task.dtype, weights

        return WorkerPlan(f"actor process {index}", actor.run, of_life, (len(actors),))

    hosted = spread(config.actors.num_actors, config.actors.processes)
    return Crew([plan(index, actors) for index, actors in enumerate(hosted)])
