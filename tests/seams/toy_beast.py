"""A beast of one's own, in one file: actors that follow a fixed random policy, whoever learns."""

from __future__ import annotations

import numpy as np
import torch

from beast.acting.actors import ActorArguments, ActorGroup
from beast.core.data import Chosen
from beast.run.crew import Crew, WorkerPlan


class RandomActors:
    """All actions alike, whatever the weights are."""

    core_state = ()

    def __init__(self, arguments, writer, status):
        self.group = ActorGroup(arguments, writer, status)
        self._distribution = arguments.model.distribution()
        self._logits = np.zeros((len(arguments.actors), self._distribution.num_params), np.float32)

    def unroll(self, slots):
        self.group.begin(slots)
        self.group.remember(())
        done = False
        while not done:
            action = self._distribution.sample(torch.from_numpy(self._logits), torch.from_numpy(self.group.noise))
            done = self.group.step(Chosen(action.numpy(), self._logits), policy_version=0)
        return True

    def close(self):
        self.group.close()


def work(status, ports, arguments):
    (port,) = ports
    actors = RandomActors(arguments, port.writer, status)
    while not status.stopping:
        status.beat()
        if (slots := port.acquire(timeout=0.2)) is not None and actors.unroll(slots):
            port.commit(slots)


def acting_device(device):
    return torch.device("cpu")


def crew(task, config, spec, weights):
    def arguments(life):
        everyone = tuple(range(config.actors.num_actors))
        return ActorArguments(task.env, task.model, everyone, config.run.seed, life, config.actors.unroll_length)

    if config.actors.serial:
        return Crew(serial=lambda writer, life, status: RandomActors(arguments(life), writer, status))
    plan = WorkerPlan("random", work, lambda ports, life: (ports, arguments(life)), (config.actors.num_actors,))
    return Crew([plan])
