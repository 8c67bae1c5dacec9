"""A3C as a beast of one's own: two workers compute gradients from their own unrolls, the learner applies each as it comes."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection

import numpy as np
import torch

from beast.acting.actors import ActorArguments
from beast.core.algorithms import algorithm_module, algorithm_of
from beast.core.flat import FlatModel
from beast.core.gradients import Gradient, Gradients
from beast.monobeast.actor import Actors
from beast.run.crew import Crew, WorkerPlan
from beast.store.sources import Work
from beast.store.unrolls import UnrollStore


class FromWorkers:
    """Gradients through a pipe for each worker."""

    behind = False

    def __init__(self, pipes):
        self._pipes = pipes

    def next(self, timeout):
        for pipe in multiprocessing.connection.wait(self._pipes, timeout):
            vector, sums, metrics, versions, episodes = pipe.recv()
            gradient = Gradient(torch.from_numpy(vector), torch.from_numpy(sums), metrics)
            return Work(versions.numel(), versions, episodes, gradient=gradient)
        return None

    def done(self, work):
        pass


def work(context, ports, arguments, task, config, spec, weights, pipe):
    torch.set_num_threads(1)
    store = UnrollStore(spec, len(arguments.actors), arguments.unroll_length)  # this worker's own
    actors = Actors(arguments, task.dtype, weights, port_writer(store), context)
    algorithm = algorithm_of(algorithm_module(config.learner.algorithm), config.loss, task.model.distribution())
    gradients = Gradients(FlatModel(task.model.build(), dtype=task.dtype), algorithm, task.observation, task.device)
    slots = np.arange(len(arguments.actors))
    while not context.stopping and actors.unroll(slots):
        weights.read(gradients.acting.parameters, gradients.acting.statistics)
        batch, episodes = store.read(slots.tolist())
        for g in gradients.of(gradients.to_device(batch)):
            pipe.send((g.vector.numpy(), g.sums.numpy(), g.metrics, batch.policy_version, episodes))


def port_writer(store):
    return store.attach(0, store.num_buffers).writer


def acting_device(device):
    return torch.device("cpu")


def crew(task, config, spec, weights):
    ours, theirs = zip(*(multiprocessing.Pipe(duplex=False) for _ in range(2)), strict=True)

    def plan(index, actors):
        def of_life(ports, life):
            arguments = ActorArguments(task.env, task.model, actors, config.run.seed, life, config.actors.unroll_length)
            return ports, arguments, task, config, spec, weights, theirs[index]

        return WorkerPlan(f"a3c worker {index}", work, of_life)

    half = config.actors.num_actors // 2
    plans = [plan(0, tuple(range(half))), plan(1, tuple(range(half, config.actors.num_actors)))]
    return Crew(plans, source=lambda _: FromWorkers(ours))
