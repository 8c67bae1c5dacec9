"""MonoBeast's wiring: actor processes, or all actors in this one (serial mode), fill the store."""

from __future__ import annotations

from typing import Any

from beast.actors import ActorArguments, Unwatched, spread
from beast.trainer import Trainer
from beast.unrolls import UnrollWriter, WorkerPort
from monobeast import actor


def host(trainer: Trainer) -> None:
    """Add the actors to a run."""
    config, task = trainer.config, trainer.task

    def arguments(actors: tuple[int, ...], incarnation: int) -> ActorArguments:
        return ActorArguments(
            task.env, task.model, actors, config.run.seed, incarnation, config.actors.unroll_length
        )  # fmt: skip

    if config.actors.serial:
        everyone, watch = tuple(range(config.actors.num_actors)), Unwatched(lambda: trainer.stopping, trainer.clock)

        def make(writer: UnrollWriter, incarnation: int) -> actor.Actors:
            return actor.Actors(arguments(everyone, incarnation), task.dtype, trainer.weights, writer, watch)

        trainer.set_serial(make)
        return

    for index, actors in enumerate(spread(config.actors.num_actors, config.actors.processes)):

        def make_arguments(
            ports: list[WorkerPort], incarnation: int, actors: tuple[int, ...] = actors
        ) -> tuple[Any, ...]:
            return ports, arguments(actors, incarnation), task.dtype, trainer.weights

        trainer.add_worker(f"actor process {index}", actor.run, [len(actors)], make_arguments)
