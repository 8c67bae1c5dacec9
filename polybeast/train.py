"""PolyBeast's wiring: environment workers, and inference in a process of its own or in a thread beside the learner."""

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
# An inference process receives both ends of each worker's pipe, and multiprocessing sends at most 256 descriptors.
MOST_WORKERS = 100


def acting_device(device: torch.device) -> torch.device:
    """Return the learner's device: inference runs all forwards there."""
    return device


def crew(task: Task, config: Config, spec: UnrollSpec, weights: Weights) -> Crew:
    """Plan the environment workers and inference; in serial mode everything runs in this process."""
    everyone = tuple(range(config.actors.num_actors))
    hosted = [everyone] if config.actors.serial else spread(config.actors.num_actors, config.actors.processes)
    groups_of = [_parts(actors, _groups(len(hosted), config, task)) for actors in hosted]
    all_groups = [(worker, group) for worker, groups in enumerate(groups_of) for group in groups]
    mailbox = Mailbox(spec, task.model.distribution().noise_size, config.actors.num_actors)
    serving = InferenceArguments(
        model=task.model, dtype=task.dtype, device=task.device, weights=weights, mailbox=mailbox,
        requests=Line(), answers=[Line() for _ in groups_of],
        groups=[places_of(actors) for _, actors in all_groups],
        worker_of=[worker for worker, _ in all_groups],
        min_batch=config.inference.inference_min_batch,
        max_batch=config.inference.inference_max_batch or config.actors.num_actors,
        timeout=config.inference.inference_timeout_ms / 1e3,
        sync_every_step=config.inference.weights_sync == "step",
        lockstep=config.pace.pace == "step",
        keep_states=config.pace.in_rounds and config.inference.inference == "process",
        statistics=Statistics(config.actors.num_actors),
    )  # fmt: skip
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
        # On a GPU inference has its own stream, so that forwards do not queue behind the learner's kernels.
        stream = torch.cuda.Stream(task.device) if task.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            Inference(serving, status).serve(lambda: status.stopping, lambda: None)

    return Crew(workers, threads={"inference": serve}, counts=counts, summarise=summarise, notes=note)


def _groups(workers: int, config: Config, task: Task) -> int:
    """Return into how many groups a worker's environments are split: of two, one steps while the other's forward runs.

    Where forwards run on the workers' own cores, one group is better: another worker steps meanwhile, and batches are larger.
    """
    if config.actors.serial or config.pace.pace == "step":  # where all wait for all anyway
        return 1
    return 2 if workers == 1 or task.device.type != "cpu" else 1


def _parts(actors: tuple[int, ...], parts: int) -> list[tuple[int, ...]]:
    """Divide the actors into groups of consecutive numbers, as evenly as possible."""
    return [tuple(actors[i] for i in part) for part in spread(len(actors), min(parts, len(actors)))]


class Serial:
    """All environments and inference in this process, one after the other.

    Args:
        arguments: which actors, on which task.
        mailbox: where rows and actions are exchanged.
        writer: writes rows into the store's slots.
        status: what they report to.
        served: inference.
    """

    def __init__(
        self, arguments: ActorArguments, mailbox: Mailbox, writer: UnrollWriter, status: LocalStatus, served: Inference
    ) -> None:
        self._actors = RemoteActors(0, arguments, mailbox, writer, status)
        self._status, self._served = status, served

    def unroll(self, slots: Array) -> bool:
        """Fill one slot for each actor with T steps; return False if the run stops meanwhile."""
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
        """The actors and their environments."""
        return self._actors.actors

    @property
    def core_state(self) -> Nested:
        """The recurrent state, arrays `[E, ...]`."""
        return self._served.core_state

    @core_state.setter
    def core_state(self, state: Nested) -> None:
        self._served.core_state = state

    def close(self) -> None:
        """Close the environments."""
        self._actors.close()
