"""Evaluation beside training, in a separate process."""

from __future__ import annotations

import multiprocessing
from contextlib import suppress
from typing import Any

import numpy as np

from beast.acting.agent import Agent
from beast.acting.play import play
from beast.acting.policy import Policy
from beast.acting.task import Task
from beast.core.seeds import seed_for
from beast.processes.machine import keep_freed_memory, use_compute_threads
from beast.processes.status import WorkerStatus
from beast.processes.supervisor import Worker, Workers
from beast.settings.config import Config
from beast.store.weights import Weights


class Evaluator:
    """The evaluation of the newest weights at intervals of steps, in a separate process."""

    def __init__(self, task: Task, config: Config, weights: Weights, step: int) -> None:
        self._task, self._config = task, config
        self.weights = weights
        """What it evaluates: the newest weights, whatever the policy lag."""
        self._every = config.run.eval_every
        self._next = (step // self._every + 1) * self._every
        self._requests: Any = None
        self._answers: Any = None

    def start(self, workers: Workers, index: int) -> None:
        """Start its process, at this index of the status board."""

        def make_arguments(restarts: int) -> tuple[Any, ...]:
            inbox, self._requests = multiprocessing.Pipe(duplex=False)
            self._answers, outbox = multiprocessing.Pipe(duplex=False)
            run = self._config.run
            return (self._task, self.weights, run.eval_episodes, run.seed, inbox, outbox)

        workers.add(Worker("evaluator", index, _evaluator, make_arguments, lambda: "its evaluation is lost"))

    def due(self, step: int) -> bool:
        """Return whether an evaluation is due at this step."""
        return step >= self._next

    def request(self, step: int) -> None:
        """Request an evaluation of the current weights."""
        self._next = (step // self._every + 1) * self._every
        with suppress(OSError):
            self._requests.send(step)

    def results(self) -> dict[str, float]:
        """Return the newest result since the last call, or an empty dict."""
        found: dict[str, float] = {}
        with suppress(OSError, EOFError):
            while self._answers is not None and self._answers.poll():
                step, mean = self._answers.recv()
                found = {"eval_step": float(step), "eval_return_mean": mean}
        return found


def _evaluator(
    status: WorkerStatus, task: Task, weights: Weights, episodes: int, seed: int, inbox: Any, outbox: Any
) -> None:
    use_compute_threads(1)
    keep_freed_memory()
    policy = Policy(task.model, task.dtype, weights, 1)
    status.beat(1)
    while not status.stopping:
        status.beat()
        if not inbox.poll(0.2):
            continue
        step = inbox.recv()
        policy.refresh()
        seed_now = seed_for(seed, "evaluation", step)
        agent = Agent(policy, seed=seed_for(seed_now, "evaluation actions"))

        def alive() -> bool:
            status.beat()
            return not status.stopping

        returns, _ = play(task, agent, episodes, seed_now, alive)
        if alive():
            # Short enough to be written to the pipe at once: a partial message would block its reader.
            outbox.send((step, float(np.mean(returns))))
