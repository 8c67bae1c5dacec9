"""PolyBeast's wiring: environment workers, and inference in a thread beside the learner or in a process of its own."""

from __future__ import annotations

from typing import Any

import torch

from beast.actors import ActorArguments, ActorGroup, Unwatched, spread
from beast.data import Array, Nested
from beast.system import use_compute_threads
from beast.trainer import Trainer
from beast.unrolls import UnrollWriter, WorkerPort
from polybeast import env_worker, inference
from polybeast.env_worker import Lines, RemoteActors, places_of
from polybeast.inference import Inference, InferenceArguments, Statistics
from polybeast.mailbox import Line, Mailbox

# Of an inference process: it is handed both ends of each one's pipe, and multiprocessing hands over 256 descriptors at most.
MOST_WORKERS = 100


def host(trainer: Trainer) -> None:
    """Add environment workers and inference to a run."""
    config, task = trainer.config, trainer.task
    everyone = tuple(range(config.actors.num_actors))
    hosted = [everyone] if config.actors.serial else spread(config.actors.num_actors, config.actors.processes)
    groups_of = [_parts(actors, _groups(len(hosted), trainer)) for actors in hosted]
    all_groups = [(worker, group) for worker, groups in enumerate(groups_of) for group in groups]
    mailbox = Mailbox(trainer.store.spec, task.model.distribution().noise_size, config.actors.num_actors)
    serving = InferenceArguments(
        model=task.model,
        dtype=task.dtype,
        device=task.device,
        weights=trainer.weights,
        mailbox=mailbox,
        requests=Line(),
        answers=[Line() for _ in groups_of],
        groups=[places_of(actors) for _, actors in all_groups],
        worker_of=[worker for worker, _ in all_groups],
        min_batch=config.inference.inference_min_batch,
        max_batch=config.inference.inference_max_batch or config.actors.num_actors,
        timeout=config.inference.inference_timeout_ms / 1e3,
        sync_every_step=config.inference.weights_sync == "step",
        statistics=Statistics(config.actors.num_actors),
    )
    trainer.more_counts, trainer.summarise = serving.statistics.counts, Statistics.summary

    def arguments(actors: tuple[int, ...], incarnation: int) -> ActorArguments:
        return ActorArguments(
            task.env, task.model, actors, config.run.seed, incarnation, config.actors.unroll_length
        )  # fmt: skip

    if config.actors.serial:
        watch = Unwatched(lambda: trainer.stopping, trainer.clock)
        served = Inference(serving, watch)

        def make(writer: UnrollWriter, incarnation: int) -> Serial:
            return Serial(arguments(everyone, incarnation), mailbox, writer, watch, served)

        trainer.set_serial(make)
        return

    number = 0
    for worker, groups in enumerate(groups_of):
        numbers = list(range(number, number + len(groups)))
        number += len(groups)
        lines = Lines(serving.requests, serving.answers[worker])

        def make_arguments(
            ports: list[WorkerPort],
            incarnation: int,
            groups: list[tuple[int, ...]] = groups,
            numbers: list[int] = numbers,
            lines: Lines = lines,
        ) -> tuple[Any, ...]:
            return ports, numbers, [arguments(actors, incarnation) for actors in groups], mailbox, lines

        trainer.add_worker(f"env worker {worker}", env_worker.run, [len(g) for g in groups], make_arguments)

    in_process = config.inference.inference == "process"
    if in_process and len(groups_of) > MOST_WORKERS:
        trainer.reports.tell(f"inference runs in a thread: a process can serve {MOST_WORKERS} workers at most")
        in_process = False
    if in_process:
        trainer.add_worker("inference process", inference.run, [], lambda ports, _: (ports, serving))
    else:
        served = Inference(serving, trainer.clock)

        def serve() -> None:
            use_compute_threads(1)
            # On a GPU, a stream of its own: forwards do not queue behind the learner's kernels.
            stream = torch.cuda.Stream(task.device) if task.device.type == "cuda" else None  # type: ignore[no-untyped-call]
            with torch.cuda.stream(stream):
                served.serve(lambda: trainer.stopping, lambda: None)

        trainer.start_thread("inference", serve)


def _groups(workers: int, trainer: Trainer) -> int:
    """Into how many a worker's environments are split: of two, one steps while the other's forward runs.

    Where forwards run on the cores that workers step on, another worker does as well, and larger batches are worth more.
    """
    if trainer.config.actors.serial:
        return 1
    return 2 if workers == 1 or trainer.task.device.type != "cpu" else 1


def _parts(actors: tuple[int, ...], parts: int) -> list[tuple[int, ...]]:
    """Actors that follow each other, in groups as even as can be."""
    return [tuple(actors[i] for i in part) for part in spread(len(actors), min(parts, len(actors)))]


class Serial:
    """All environments and inference in this process, one after the other."""

    def __init__(
        self, arguments: ActorArguments, mailbox: Mailbox, writer: UnrollWriter, watch: Unwatched, served: Inference
    ) -> None:
        self._actors = RemoteActors(0, arguments, mailbox, writer, watch)
        self._watch, self._served = watch, served

    def unroll(self, slots: Array) -> bool:
        """Fill one slot for each actor with T steps; False if the run stops meanwhile."""
        self._actors.begin(slots)
        self._served.admit(0)
        self._served.forward([0])
        while not self._actors.take():
            if self._watch.stopping:
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
