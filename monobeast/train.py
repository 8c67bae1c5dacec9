"""MonoBeast's wiring: actor processes, or all actors in this one (serial mode), fill the store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from beast.trainer import Trainer
from beast.unrolls import UnrollWriter, WorkerPort
from monobeast import actor
from monobeast.actor import ActorArguments, Actors, spread


def host(trainer: Trainer) -> None:
    """Add the actors to a run."""
    config, task = trainer.config, trainer.task

    def arguments(actors: tuple[int, ...], incarnation: int) -> ActorArguments:
        return ActorArguments(
            task.env, task.model, task.dtype, trainer.weights, actors,
            config.run.seed, incarnation, config.actors.unroll_length,
        )  # fmt: skip

    if config.actors.serial:
        everyone = tuple(range(config.actors.num_actors))

        def make(writer: UnrollWriter) -> Actors:
            return Actors(arguments(everyone, trainer.incarnation()), writer, _Unwatched())

        trainer.set_serial(make)
        return

    for index, actors in enumerate(spread(config.actors.num_actors, config.actors.processes)):

        def for_process(
            port: WorkerPort, incarnation: int, actors: tuple[int, ...] = actors
        ) -> tuple[WorkerPort, ActorArguments]:
            return port, arguments(actors, incarnation)

        trainer.add_worker(f"actor process {index}", actor.run, len(actors), for_process)


class _Unwatched:
    """What actors report to when they share the learner's process."""

    stopping = False

    def beat(self, steps: int = 0) -> None:
        pass

    @contextmanager
    def stage(self, name: str) -> Iterator[Any]:
        yield
