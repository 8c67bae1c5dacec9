"""PolyBeast's wiring: environment workers, and inference in a thread beside the learner or in a process of its own."""

from __future__ import annotations

from typing import Any

import torch

from beast.acting.actors import ActorArguments, ActorGroup, spread
from beast.acting.task import Task
from beast.core.data import Array, Nested
from beast.processes.machine import use_compute_threads
from beast.processes.status import LocalStatus
from beast.run.crew import Crew, WorkerPlan
from beast.settings.config import Config
from beast.store.unrolls import UnrollSpec, UnrollWriter, WorkerPort
from beast.store.weights import Weights

from . import env_worker, inference
from .env_worker import Lines, RemoteActors, places_of
from .inference import Inference, InferenceArguments, Statistics
from .mailbox import Line, Mailbox

PACES = ("free", "unroll", "step")
# Of an inference process: it is handed both ends of each one's pipe, and multiprocessing hands over 256 descriptors at most.
MOST_WORKERS = 100


def acting_device(device: torch.device) -> torch.device:
    """Inference runs all forwards where the learner is."""
    return device


def crew(task: Task, config: Config, spec: UnrollSpec, weights: Weights) -> Crew:
    """One plan an environment worker, and inference; in serial mode everything in this process."""
    everyone = tuple(range(config.actors.num_actors))
    hosted = [everyone] if config.actors.serial else spread(config.actors.num_actors, config.actors.processes)
    groups_of = [_parts(actors, _groups(len(hosted), config, task)) for actors in hosted]
    all_groups = [(worker, group) for worker, groups in enumerate(groups_of) for group in groups]
    mailbox = Mailbox(spec, task.model.distribution().noise_size, config.actors.num_actors)
    serving = InferenceArguments(
        model=task.model,
        dtype=task.dtype,
        device=task.device,
        weights=weights,
        mailbox=mailbox,
        requests=Line(),
        answers=[Line() for _ in groups_of],
        groups=[places_of(actors) for _, actors in all_groups],
        worker_of=[worker for worker, _ in all_groups],
        min_batch=config.inference.inference_min_batch,
        max_batch=config.inference.inference_max_batch or config.actors.num_actors,
        timeout=config.inference.inference_timeout_ms / 1e3,
        sync_every_step=config.inference.weights_sync == "step",
        lockstep=config.pace.pace == "step",
        keep_states=config.pace.in_rounds and config.inference.inference == "process",
        statistics=Statistics(config.actors.num_actors),
    )
    counts, summarise = serving.statistics.counts, Statistics.summary

    def arguments(actors: tuple[int, ...], life: int) -> ActorArguments:
        return ActorArguments(task.env, task.model, actors, config.run.seed, life, config.actors.unroll_length)

    if config.actors.serial:

        def make(writer: UnrollWriter, life: int, status: LocalStatus) -> Serial:
            return Serial(arguments(everyone, life), mailbox, writer, status, Inference(serving, status))

        return Crew(serial=make, counts=counts, summarise=summarise)

    def plan(worker: int, groups: list[tuple[int, ...]]) -> WorkerPlan:
        numbers = [number for number, (owner, _) in enumerate(all_groups) if owner == worker]
        lines = Lines(serving.requests, serving.answers[worker])

        def of_life(ports: list[WorkerPort], life: int) -> tuple[Any, ...]:
            return ports, numbers, [arguments(actors, life) for actors in groups], mailbox, lines

        return WorkerPlan(f"env worker {worker}", env_worker.run, of_life, tuple(len(group) for group in groups))

    workers = [plan(worker, groups) for worker, groups in enumerate(groups_of)]
    in_process = config.inference.inference == "process"
    if in_process and len(groups_of) <= MOST_WORKERS:
        workers.append(WorkerPlan("inference process", inference.run, lambda ports, _: (ports, serving)))
        return Crew(workers, counts=counts, summarise=summarise)
    note = (f"inference runs in a thread: a process can serve {MOST_WORKERS} workers at most",) if in_process else ()

    def serve(status: LocalStatus) -> None:
        use_compute_threads(1)
        # On a GPU, a stream of its own: forwards do not queue behind the learner's kernels.
        stream = torch.cuda.Stream(task.device) if task.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            Inference(serving, status).serve(lambda: status.stopping, lambda: None)

    return Crew(workers, threads={"inference": serve}, counts=counts, summarise=summarise, notes=note)


def _groups(workers: int, config: Config, task: Task) -> int:
    """Into how many a worker's environments are split: of two, one steps while the other's forward runs.

    Where forwards run on the cores that workers step on, another worker does as well, and larger batches are worth more.
    """
    if config.actors.serial or config.pace.pace == "step":  # where all wait for all anyway
        return 1
    return 2 if workers == 1 or task.device.type != "cpu" else 1


def _parts(actors: tuple[int, ...], parts: int) -> list[tuple[int, ...]]:
    """Actors that follow each other, in groups as even as can be."""
    return [tuple(actors[i] for i in part) for part in spread(len(actors), min(parts, len(actors)))]


class Serial:
    """All environments and inference in this process, one after the other."""

    def __init__(
        self, arguments: ActorArguments, mailbox: Mailbox, writer: UnrollWriter, status: LocalStatus, served: Inference
    ) -> None:
        self._actors = RemoteActors(0, arguments, mailbox, writer, status)
        self._status, self._served = status, served

    def unroll(self, slots: Array) -> bool:
        """Fill one slot for each actor with T steps; False if the run stops meanwhile."""
        self._actors.begin(slots)
        self._served.admit(0)
        self._served.forward([0])
        while not self._actors.take():
            if self._status.stopping:
                return False
            self._actors.ask()
            self._served.forward([0])
        return True

    @property
    def group(self) -> ActorGroup:
        return self._actors.actors

    @property
    def core_state(self) -> Nested:
        """Arrays `[E, ...]`."""
        return self._served.core_state

    @core_state.setter
    def core_state(self, state: Nested) -> None:
        self._served.core_state = state

    def close(self) -> None:
        self._actors.close()
