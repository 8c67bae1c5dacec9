"""Actors: environments and their policy in one process, writing unrolls in place."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from beast.data import Array
from beast.envs import EnvChoice
from beast.policy import ModelChoice, Policy, seed_for
from beast.system import keep_freed_memory
from beast.unrolls import UnrollWriter, WorkerPort
from beast.weights import Weights
from beast.workers import Context


@dataclass(frozen=True)
class ActorArguments:
    """All that a process needs to host actors."""

    env: EnvChoice
    model: ModelChoice
    dtype: torch.dtype
    weights: Weights
    actors: tuple[int, ...]
    """Their numbers, `0 .. num_actors - 1` over the whole run."""
    seed: int
    incarnation: int
    """How often this process was restarted, or the run resumed: fresh streams each time."""
    unroll_length: int


class Stopwatch(Protocol):
    """What actors report to: a worker's Context, or the serial mode's stand-in."""

    @property
    def stopping(self) -> bool: ...
    def beat(self, steps: int = 0) -> None: ...
    def stage(self, name: str) -> AbstractContextManager[None]: ...


class Actors:
    """E actors that share a process: one environment each, one batched forward a step, one unroll each at a time."""

    def __init__(self, arguments: ActorArguments, writer: UnrollWriter, watch: Stopwatch) -> None:
        a = arguments
        self._writer, self._watch, self._unroll_length = writer, watch, a.unroll_length
        self._envs = a.env.make_group([seed_for(a.seed, "env", actor, a.incarnation) for actor in a.actors])
        self._policy = Policy(a.model, a.dtype, a.weights, len(a.actors))
        # A stream for each actor, so that the numbers do not depend on how actors are spread over processes.
        self._generators = [
            np.random.default_rng(seed_for(a.seed, "actions", actor, a.incarnation)) for actor in a.actors
        ]
        self._env = self._envs.reset()
        watch.beat()

    def unroll(self, slots: Array) -> bool:
        """Fill one slot for each actor with T steps; False if the run stops meanwhile."""
        policy, writer, watch = self._policy, self._writer, self._watch
        version = policy.refresh()
        writer.begin(slots, policy.state())
        noise = self._noise()  # [T, E, noise_size]
        for t in range(self._unroll_length):
            with watch.stage("inference"):
                action, logits = policy.act(self._env, noise[t])
            with watch.stage("store"):
                writer.write_env(slots, t, self._env)
                writer.write_agent(slots, t, action, logits, version)
            with watch.stage("environment"):
                self._env = self._envs.step(action)
            watch.beat(len(slots))
            if watch.stopping:
                return False
        writer.write_env(slots, self._unroll_length, self._env)
        return True

    def _noise(self) -> Array:
        distribution = self._policy.distribution
        return np.stack([distribution.noise(g, self._unroll_length) for g in self._generators], axis=1)

    def close(self) -> None:
        self._envs.close()


def run(context: Context, port: WorkerPort, arguments: ActorArguments) -> None:
    """The body of an actor process: unroll after unroll, until told to stop."""
    torch.set_num_threads(1)  # the environment variable would come too late: torch is imported already
    keep_freed_memory()
    actors = Actors(arguments, port.writer, context)
    while not context.stopping:
        with context.stage("wait"):
            slots = port.acquire(timeout=0.2)
        context.beat()
        if slots is not None and actors.unroll(slots):
            port.commit(slots)
    actors.close()


def spread(num_actors: int, num_processes: int) -> list[tuple[int, ...]]:
    """Actor numbers for each process, as even as can be."""
    return [tuple(int(i) for i in part) for part in np.array_split(np.arange(num_actors), num_processes)]
