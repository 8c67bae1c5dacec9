"""The assembly of a run: all parts are made here in order and passed to each other; no other file knows all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from beast.acting.task import Task
from beast.core.errors import ConfigError
from beast.core.gradients import Gradients
from beast.core.learner import Learner, master_parameters
from beast.core.ranks import Ranks
from beast.core.seeds import seed_for
from beast.processes.machine import keep_freed_memory, use_compute_threads
from beast.processes.status import Clock, LocalStatus, StatusBoard, WorkerStatus
from beast.processes.supervisor import Worker, Workers
from beast.report.reports import Reports
from beast.report.stall import Stall, largest_entropy
from beast.report.timeline import Trace
from beast.run.action_log import ActionLog
from beast.run.callbacks import Callbacks, callback_module
from beast.run.crew import Crew, WorkerPlan, beast_module
from beast.run.evaluator import Evaluator
from beast.run.experience import Experience
from beast.run.gradients import make_gradients
from beast.run.learning import Learning
from beast.run.reporter import Reporter
from beast.run.saving import Checkpoints
from beast.run.serial import SAME_ACTIONS, Serial
from beast.run.signals import Wishes
from beast.run.skipped_updates import SkippedUpdates
from beast.run.trainer import Trainer, compute_threads
from beast.settings.config import Config
from beast.store.late import LateWeights
from beast.store.rounds import RoundSource, RoundStore
from beast.store.sources import Source, StoreSource
from beast.store.unrolls import UnrollStore, WorkerPort
from beast.store.weights import Weights


def assemble(
    config: Config, task: Task, folder: Path | None, state: dict[str, Any] | None = None, live: bool | None = None,
    trace: Trace | None = None, ranks: Ranks | None = None, callbacks: Sequence[Any] = (),
) -> Trainer:  # fmt: skip
    """Make everything that a run needs; no process is started and no environment is made.

    Args:
        config: as `resolve_config` returned it.
        task: as `resolve_config` returned it.
        folder: the run's folder; None writes nothing (profile, tests).
        state: a checkpoint to continue from.
        live: see `Reports`.
        trace: keeps a timeline of the run.
        ranks: all learners of the same policy; None means this process alone.
        callbacks: objects of the caller, in addition to the module that `--callback` names.

    Raises:
        ConfigError, ModelError, OSError, MemoryError: if a part cannot be made; RuntimeError: if the checkpoint is unfit.
    """
    keep_freed_memory()
    torch.manual_seed(config.run.seed)
    use_compute_threads(compute_threads(config, task)[0])
    ranks = ranks or Ranks()
    resumes = int(state["resumes"]) + 1 if state else 0
    life = resumes * 1_000_000  # distinct for each life of a process over all resumes

    gradients, learner = make_learner(config, task)
    config = _begin(learner, config, state, ranks)
    reports, skipped, heard = _listeners(config, task, folder, learner.steps, live, callbacks)
    clock = trace.clock if trace else Clock()
    newest, weights = _weights(config, learner, state, reports.log)
    store_class = RoundStore if config.pace.in_rounds else UnrollStore
    store = store_class(task.unroll, config.num_buffers, config.actors.unroll_length)
    crew: Crew = beast_module(config.learner.trainer).crew(task, config, task.unroll, weights)
    experience = _experience(crew, store, config, task, life, clock, reports.log)
    reporter = Reporter(reports, skipped, heard, task.device.type != "cpu", experience.learned)
    learning = Learning(experience.source, gradients, learner, newest, reporter, ranks, clock)
    learning.publish()

    board = StatusBoard(len(crew.workers) + 1)  # the last entry is the evaluator's
    workers = _workers(config, board, trace, reports.log)
    evaluator = Evaluator(task, config, newest, learner.steps) if config.run.eval_every else None
    wishes = Wishes()
    ranks.watch(lambda: wishes.stopping, config.run.rank_timeout)
    status = LocalStatus(lambda: wishes.stopping, clock)
    serial = None
    if crew.serial:
        past = _action_log(config, state, life, reports.log, experience.source)
        serial = Serial(store, config.actors.num_actors, crew.serial, status, past, life)
    checkpoints = Checkpoints(config, task, folder, learning, reports, workers, skipped, heard, serial, resumes)
    if state and ranks.first:
        checkpoints.go_on_from(state)

    return Trainer(
        config=config, task=task, folder=folder, crew=crew, learner=learner, learning=learning, weights=weights,
        store=store, board=board, workers=workers, reports=reports, skipped=skipped, experience=experience,
        checkpoints=checkpoints, wishes=wishes, status=status, callbacks=heard, ranks=ranks, serial=serial,
        evaluator=evaluator, start_workers=partial(_start, crew, workers, store, life, evaluator),
    )  # fmt: skip


def _experience(
    crew: Crew, store: UnrollStore, config: Config, task: Task, life: int, clock: Clock, log: Callable[[str], None]
) -> Experience:
    """Make the source of work, with a replay and a recorder if they are asked for.

    Raises:
        ConfigError: if unrolls are to be kept or recorded that the learner never sees.
    """
    replayed = config.replay.unrolls(config.learner.batch_size)
    if not crew.gives_batches and (replayed or config.replay.record_unrolls):
        raise ConfigError(
            "--replay_capacity, --demonstrations and --record_unrolls do not go with "
            f"--trainer {config.learner.trainer}, whose workers send gradients"
        )
    source_class = RoundSource if config.pace.in_rounds else StoreSource
    fresh = crew.source(source_class(store, config.fresh_unrolls, clock))
    return Experience(fresh, config, task, life, clock, log)


def _begin(learner: Learner, config: Config, state: dict[str, Any] | None, ranks: Ranks) -> Config:
    """Give a learner the weights of the checkpoint and of the first rank, and return its own rank's settings.

    The random streams of each rank are others, and only the first has a say in what one alone decides and does.
    """
    if state:
        learner.load_state_dict(state["learner"])
    if ranks.size > 1:
        learner.load_state_dict(ranks.of_first(learner.state_dict))  # since machines may round differently
    if ranks.first:
        return config
    seed = seed_for(config.run.seed, "rank", ranks.number)
    torch.manual_seed(seed + (int(state["resumes"]) + 1 if state else 0))
    return config.replace(
        seed=seed, eval_every=0, callback=None, max_minutes=None, stop_at_return=None, record_unrolls=None
    )


def _workers(config: Config, board: StatusBoard, trace: Trace | None, log: Callable[[str], None]) -> Workers:
    """Make the keeper of all processes; none is started."""
    run = config.run
    workers = Workers(board, run.max_restarts, run.actor_timeout, log, max_memory=run.max_actor_memory)
    workers.status_of = partial(trace.status_of if trace else WorkerStatus, board)
    return workers


def _listeners(
    config: Config, task: Task, folder: Path | None, start_step: int, live: bool | None, callbacks: Sequence[Any]
) -> tuple[Reports, SkippedUpdates, Callbacks]:
    """Make what is told about updates: the reports, the account of skipped updates, the user's callbacks."""
    largest = largest_entropy(task.model.distribution())
    reports = Reports(
        folder, total_steps=config.learner.total_steps, action_repeat=task.env.action_repeat,
        start_step=start_step, live=live, title=f"{config.environment.env}  {config.learner.model}",
        stall=Stall(largest) if largest else None,
    )  # fmt: skip
    skipped = SkippedUpdates(folder, config.run.max_skipped_updates, reports.log)
    named = [callback_module(config.run.callback)] if config.run.callback else []
    return reports, skipped, Callbacks([*named, *callbacks])


def make_learner(config: Config, task: Task) -> tuple[Gradients, Learner]:
    """Make a learner with fresh weights, drawn from PyTorch's generator, and what computes its gradients."""
    model = task.model.build()
    masters = master_parameters(model)
    gradients = make_gradients(config, task, model, task.device)
    return gradients, Learner(gradients, config.optimiser, config.learner.total_steps, masters)


def _weights(
    config: Config, learner: Learner, state: dict[str, Any] | None, log: Callable[[str], None]
) -> tuple[Weights, Weights]:
    """Make the weights that the learner publishes and those that actors read; without a policy lag they are the same."""
    acting, lag = Weights.like(learner.acting), config.pace.policy_lag
    if not lag:
        return acting, acting
    flat = learner.acting
    newest = LateWeights(
        flat.parameters.numel(), flat.parameters.dtype, flat.statistics.numel(), acting=acting, lag=lag
    )
    megabytes = newest.ring_bytes / 1e6
    log(f"--policy_lag {lag}: old weights take {megabytes:,.1f} MB of memory, and of each checkpoint")
    if state and "weights" in state:
        newest.load_state_dict(state["weights"])
    elif state:
        log(f"the checkpoint has no older weights: the policy lag grows from 0 to {lag} during {lag} updates")
    return newest, acting


def _action_log(
    config: Config, state: dict[str, Any] | None, life: int, log: Callable[[str], None], source: Source
) -> ActionLog:
    """Return the log of what serial actors have done; unrolls that were not learned from return to the source."""
    if not state or "past" not in state:
        return ActionLog(life)
    if changed := [name for name in SAME_ACTIONS if config.flat()[name] != state["config"][name]]:
        log(f"--{changed[0]} is not what it was: this run goes on with fresh episodes")
        return ActionLog(life)
    source.load_state_dict(state["source"])
    return ActionLog.from_state(state["past"])


def _start(crew: Crew, workers: Workers, store: UnrollStore, life: int, evaluator: Evaluator | None) -> None:
    """Start a crew's processes, each with its own ports, and the evaluator."""
    port = 0
    for index, plan in enumerate(crew.workers):
        workers.add(_worker(plan, index, port, store, life))
        port += len(plan.groups)
    if evaluator:
        evaluator.start(workers, index=len(crew.workers))


def _worker(plan: WorkerPlan, index: int, first_port: int, store: UnrollStore, life: int) -> Worker:
    """Make a supervised worker from a plan: each life gets fresh ports, which are taken back when it ends."""
    numbers = range(first_port, first_port + len(plan.groups))

    def arguments(restarts: int) -> tuple[Any, ...]:
        ports: list[WorkerPort] = [store.attach(n, group) for n, group in zip(numbers, plan.groups, strict=True)]
        return plan.arguments(ports, life + restarts)

    def on_exit() -> str:
        lost = sum(store.detach(number) for number in numbers) + plan.discard()
        return f"{lost} unfinished unrolls discarded"

    leaves = plan.leaves or bool(plan.groups)
    return Worker(plan.name, index, plan.target, arguments, on_exit, leaves)
