"""A3C's wiring: worker processes with environments, policy and gradients of their own; in serial mode one, in this process."""

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


def settle(config: Config, given: Collection[str]) -> Config:
    """Make the batch what a gradient comes from: one worker's unrolls.

    Raises:
        ConfigError: if another batch was asked for. (A run that goes on names the batch that it had; that asks for nothing.)
    """
    actors = config.actors
    size = max(len(hosted) for hosted in _hosted(config))
    asked, processes = config.learner.batch_size, "this process" if actors.serial else f"{actors.processes} processes"
    if "batch_size" in given and config.run.resume is None and asked != size:
        raise ConfigError(
            f"--batch_size {asked}: with --trainer a3c a gradient comes from one worker's unrolls, {size} of them for "
            f"--num_actors {actors.num_actors} in {processes}; leave it out, or change --num_actors or --num_actor_processes"
        )
    return config.replace(batch_size=size)


def crew(task: Task, config: Config, spec: UnrollSpec, weights: Weights) -> Crew:
    """One plan a worker; in serial mode MonoBeast's actors, of which a batch is a round: one worker's gradient, never stale.

    Raises:
        ConfigError: if the algorithm keeps numbers that workers would have to know.
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

    return Crew([plan(number, actors) for number, actors in enumerate(hosted)], source=source)


def _hosted(config: Config) -> list[tuple[int, ...]]:
    """The actors of each worker."""
    return spread(config.actors.num_actors, config.actors.processes)


def _gradient_slots(task: Task, config: Config, workers: int) -> GradientSlots:
    with torch.random.fork_rng(devices=[]):  # the weights of this model are nobody's
        gradients = make_gradients(config, task, task.model.build(), torch.device("cpu"))
    if gradients.own.parameters.numel() or gradients.own.statistics.numel() or gradients.algorithm.state_dict():
        raise ConfigError(
            f"--algorithm {config.learner.algorithm} keeps numbers of its own, which no worker of --trainer a3c would hear "
            "of: use --trainer monobeast or polybeast"
        )
    num_sums = sum(part.num_sums for part in gradients.parts)
    return GradientSlots(workers, gradients.acting.parameters.numel(), num_sums)
