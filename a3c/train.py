"""A3C's wiring: worker processes that compute gradients of their own unrolls; in serial mode one worker, in this process."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import torch

from beast.acting.actors import ActorArguments, spread
from beast.acting.task import Task
from beast.core.errors import ConfigError
from beast.monobeast import train as monobeast
from beast.run.crew import Crew, WorkerPlan
from beast.run.gradients import make_gradients
from beast.settings.config import Config
from beast.store.sources import Source, StoreSource
from beast.store.unrolls import UnrollSpec, UnrollStore, WorkerPort
from beast.store.weights import Weights

from . import worker
from .slots import GradientSlots, GradientSource, discard

acting_device = monobeast.acting_device
PACES = ("free",)
"""A worker waits for nobody but the learner."""


def settle(config: Config, given: Collection[str]) -> Config:
    """Set the batch size to the number of unrolls that a gradient comes from: one for each actor of a worker.

    Args:
        config: settings with all defaults.
        given: names of the flags that were given.

    Raises:
        ConfigError: if another batch size was given (the one that a resumed run had is replaced), or a compiled network.
    """
    actors = config.actors
    if config.learner.compile_model and not actors.serial:
        raise ConfigError(
            "--compile_model compiles the learner's network, which --trainer a3c does not run: leave it out"
        )
    size = max(len(hosted) for hosted in _hosted(config))
    asked, processes = config.learner.batch_size, "this process" if actors.serial else f"{actors.processes} processes"
    if "batch_size" in given and config.run.resume is None and asked != size:
        raise ConfigError(
            f"--batch_size {asked}: with --trainer a3c a gradient comes from one worker's unrolls, {size} of them for "
            f"--num_actors {actors.num_actors} in {processes}; leave it out, or change --num_actors or --num_actor_processes"
        )
    # A preset's scaled rewards would need numbers of the algorithm's own, which workers do not get.
    scaled = {"scale_rewards": False} if hasattr(config.loss, "scale_rewards") and "scale_rewards" not in given else {}
    return config.replace(batch_size=size, **scaled)


def crew(task: Task, config: Config, spec: UnrollSpec, weights: Weights) -> Crew:
    """Plan one worker a process.

    Serial mode is MonoBeast's with one unroll of each actor a batch: a single worker, whose gradient is never stale.

    Args:
        task: what is learned.
        config: settings of the run.
        spec: layout of the unrolls.
        weights: where the learner publishes.

    Raises:
        ConfigError: if the algorithm has parameters or a state of its own, which workers would have to know.
    """
    if config.actors.serial:
        serial: Crew = monobeast.crew(task, config, spec, weights)
        return serial
    hosted = _hosted(config)
    slots = _gradient_slots(task, config, len(hosted))
    stores = [UnrollStore(spec, len(actors), config.actors.unroll_length) for actors in hosted]

    def plan(number: int, actors: tuple[int, ...]) -> WorkerPlan:
        def of_life(ports: list[WorkerPort], life: int) -> tuple[Any, ...]:
            arguments = ActorArguments(task.env, task.model, actors, config.run.seed, life, config.actors.unroll_length)
            outlet = worker.Outlet(slots, number, stores[number].attach(0, len(actors)))
            return arguments, outlet, task, config, weights

        return WorkerPlan(
            f"a3c worker {number}", worker.run, of_life, discard=partial(discard, stores[number]), leaves=True
        )

    def source(own: StoreSource) -> Source:
        return GradientSource(slots, stores, task.device, own.clock)

    return Crew([plan(number, actors) for number, actors in enumerate(hosted)], source=source, gives_batches=False)


def _hosted(config: Config) -> list[tuple[int, ...]]:
    """Return the numbers of each worker's actors."""
    return spread(config.actors.num_actors, config.actors.processes)


def _gradient_slots(task: Task, config: Config, workers: int) -> GradientSlots:
    with torch.random.fork_rng(devices=[]):  # this model only tells sizes
        gradients = make_gradients(config, task, task.model.build(weights=False), torch.device("cpu"))
    if gradients.own.parameters.numel() or gradients.own.statistics.numel() or gradients.algorithm.state_dict():
        raise ConfigError(
            f"--algorithm {config.learner.algorithm} has numbers of its own, which the workers of --trainer a3c do not get: "
            "leave --scale_rewards or --popart out, or use --trainer monobeast or polybeast"
        )
    num_sums = sum(part.num_sums for part in gradients.parts)
    return GradientSlots(workers, gradients.acting.parameters.numel(), num_sums)
