"""A3C as a beast of one's own: two workers compute gradients from their own unrolls, the learner applies each as it comes."""

import multiprocessing
import multiprocessing.connection

import numpy as np
import torch

from beast.acting.actors import ActorArguments, spread
from beast.monobeast.actor import Actors
from beast.monobeast.train import acting_device as acting_device
from beast.run.assemble import make_learner
from beast.run.crew import Crew, WorkerPlan
from beast.store.sources import Work
from beast.store.unrolls import UnrollStore


class FromWorkers:
    """Gradients through a pipe for each worker."""

    behind = False

    def __init__(self, pipes):
        self._pipes = pipes

    def next(self, timeout):
        ready = multiprocessing.connection.wait(self._pipes, timeout)
        return ready[0].recv() if ready else None

    def done(self, work):
        pass


def work(status, ports, arguments, task, config, spec, weights, pipe):
    torch.set_num_threads(1)
    store = UnrollStore(spec, len(arguments.actors), arguments.unroll_length)  # this worker's own
    writer = store.attach(0, store.num_buffers).writer
    actors = Actors(arguments, task.dtype, weights, writer, status)
    gradients, _ = make_learner(config, task)
    slots = np.arange(len(arguments.actors))
    while not status.stopping and actors.unroll(slots):
        weights.read(gradients.acting.parameters, gradients.acting.statistics)
        batch, episodes = store.read(slots.tolist())
        for gradient in gradients.of(gradients.to_device(batch)):
            kept = gradient._replace(vector=gradient.vector.clone())  # its vector is used again for the next
            pipe.send(Work(batch.policy_version.numel(), batch.policy_version, episodes, gradient=kept))


def crew(task, config, spec, weights):
    ours, theirs = zip(*(multiprocessing.Pipe(duplex=False) for _ in range(2)), strict=True)

    def plan(index, actors):
        def of_life(ports, life):
            arguments = ActorArguments(task.env, task.model, actors, config.run.seed, life, config.actors.unroll_length)
            return ports, arguments, task, config, spec, weights, theirs[index]

        return WorkerPlan(f"a3c worker {index}", work, of_life)

    plans = [plan(index, actors) for index, actors in enumerate(spread(config.actors.num_actors, 2))]
    return Crew(plans, source=lambda _: FromWorkers(ours), gives_batches=False)
