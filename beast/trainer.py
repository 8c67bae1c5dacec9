"""The loop that both beasts call: batches in, updates out, and everything that surrounds it in a run's life."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from beast import checkpoint
from beast.checkpoint import CheckpointError
from beast.config import Config, algorithm_module
from beast.data import Batch
from beast.evaluate import Evaluator
from beast.finite import SkippedUpdates, all_finite
from beast.learner import Learner
from beast.replay import Past, SerialActors
from beast.reports import Reports
from beast.system import keep_freed_memory, usable_cores, use_compute_threads
from beast.task import Task
from beast.trace import Clock
from beast.unrolls import UnrollStore, UnrollWriter, WorkerPort
from beast.weights import Weights
from beast.workers import Board, Worker, WorkerError, Workers

STOP_DEADLINE = 5.0  # seconds that workers have to leave
LEARNER_STAGES = ("wait", "batch", "copy", "learn", "publish")
_SAME_PAST = ("num_actors", "unroll_length", "batch_size", "seed")  # flags without which serial actors cannot go on
FIRST_CHECKPOINT = 60.0  # seconds until the first one, at most: until then a killed run has nothing
BEHIND = 10  # updates; then it is the learner that limits the speed, and it gets more of the machine
DOUBLE_SIGNAL = 0.5  # seconds within which a second signal is the same one


class Trainer:
    """One run: learner, store, weights, workers, reports, checkpoints.

    Args:
        config, task: as `settle` made them.
        folder: of the run; None writes nothing (profile, tests).
        state: a checkpoint to go on from.
        live: see `Reports`.
    """

    def __init__(
        self, config: Config, task: Task, folder: Path | None, state: dict[str, Any] | None = None,
        live: bool | None = None,
    ) -> None:  # fmt: skip
        self.config, self.task, self.folder = config, task, folder
        self.resumes = int(state["resumes"]) + 1 if state else 0
        keep_freed_memory()
        torch.manual_seed(config.run.seed)
        use_compute_threads(self._compute_threads())

        model = task.model.build()
        algorithm = algorithm_module(config.learner.algorithm)
        self.learner = Learner(
            model, task.model.distribution(), algorithm.loss, config.loss, config.optimiser,
            task.observation, config.learner.total_steps, task.device, task.dtype, config.learner.compile_model,
        )  # fmt: skip
        if state:
            self.learner.load_state_dict(state["learner"])
        self._torch_rng = state["torch_rng"] if state else None  # to be set when all models are made, which draw
        self.reports = Reports(
            folder, total_steps=config.learner.total_steps, action_repeat=task.env.action_repeat,
            start_step=self.learner.steps, live=live, title=f"{config.environment.env}  {config.learner.model}",
        )  # fmt: skip
        if state:
            self.reports.load_state_dict(state["reports"])
        self.skipped = SkippedUpdates(folder, config.run.max_skipped_updates, self.reports.tell)
        self._pending: tuple[int, Batch, dict[str, torch.Tensor], torch.Tensor] | None = None
        self.weights = Weights(self.learner.flat.numel(), task.dtype)
        self.weights.publish(self.learner.flat, self.learner.updates)
        self.store = UnrollStore(task.unroll, config.num_buffers, config.actors.unroll_length)
        self._past = Past(self.incarnation())
        if state and config.actors.serial and "past" in state:
            self._take_up_past(state)
        self.board = Board(config.actors.processes + 2)  # hosts, inference, evaluator
        self.workers = Workers(self.board, config.run.max_restarts, config.run.actor_timeout, self.reports.tell)
        if state:  # one of an earlier version has no counts
            self.workers.restarts, self.skipped.count = state.get("restarts", 0), state.get("skipped_updates", 0)
        self.clock = Clock()
        """This process's time by stage since the start: LEARNER_STAGES, and what actors do where they are in it."""

        self.more_counts: Callable[[], dict[str, Any]] = dict
        """Counts that a beast keeps of its own, for profile: see `summarise`."""
        self.summarise: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] = lambda before, after: {}
        """What happened between two such counts."""
        self._num_ports = 0
        self._threads: list[threading.Thread] = []
        self._serial: tuple[SerialActors, WorkerPort] | None = None
        self._evaluator: Evaluator | None = None
        self._reported = self.learner.updates
        self._learn_lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._failure: BaseException | None = None
        self._signal: int | None = None
        self._asked_to_stop = False
        self._asked_to_save = False

    def _compute_threads(self) -> int:
        """On a CPU half of the machine is about the learner's share, until it turns out that it needs more."""
        if self.config.actors.serial or self.task.device.type != "cpu":
            return 1
        return max(1, usable_cores() // 2)

    @property
    def learner_threads(self) -> int:
        """On a CPU a batch is made in no time, and working memory of its own for each thread only fills the caches."""
        return self.config.learner.num_learner_threads or (1 if self.task.device.type == "cpu" else 2)

    # -- who fills the store --------------------------------------------------------------------------------------------

    def add_worker(
        self,
        name: str,
        target: Callable[..., None],
        groups: list[int],
        make_arguments: Callable[[list[WorkerPort], int], tuple[Any, ...]],
    ) -> None:
        """Start a process.

        Args:
            groups: for each of its ports to the store, how many unrolls it writes at a time; none: it writes none.
            make_arguments: from its ports and its incarnation to the target's arguments after its Context.
        """
        index = len(self.workers.workers)
        first_port = self._num_ports
        self._num_ports += len(groups)

        def arguments(restarts: int) -> tuple[Any, ...]:
            ports = [self.store.attach(first_port + i, group) for i, group in enumerate(groups)]
            return make_arguments(ports, self.incarnation(restarts))

        def on_exit() -> str:
            lost = sum(self.store.detach(first_port + i) for i in range(len(groups)))
            return f"{lost} unfinished unrolls discarded"

        self.workers.add(Worker(name, index, target, arguments, on_exit))

    def incarnation(self, restarts: int = 0) -> int:
        """Distinct for each life of a process over all resumes: random streams start afresh in each."""
        return self.resumes * 1_000_000 + restarts

    def start_thread(self, name: str, target: Callable[[], None]) -> None:
        """Start a thread that the run depends on: it ends when `stopping`, and its failure is the run's."""

        def guarded() -> None:
            try:
                target()
            except BaseException as error:
                self._failure = self._failure or error
            finally:
                self._wake.set()

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    @property
    def stopping(self) -> bool:
        return self._stopping or self._asked_to_stop

    def set_serial(self, make: Callable[[UnrollWriter, int], SerialActors]) -> None:
        """Serial mode: all actors in this process, between updates.

        Args:
            make: from where they write and their incarnation to the actors.
        """
        port = self.store.attach(0, self.config.actors.num_actors)
        actors = make(port.writer, self._past.incarnation)
        if self._past.steps:
            self.reports.tell(f"replaying {self._past.steps:,} steps of each environment")
            if not self._past.replay(actors, lambda: self.stopping):
                self.reports.tell("the environment is not deterministic: this run goes on with fresh episodes")
                actors.close()
                self._past = Past(self.incarnation())
                actors = make(port.writer, self._past.incarnation)
        self._serial = actors, port

    def _take_up_past(self, state: dict[str, Any]) -> None:
        flags, before = self.config.flat(), state["config"]
        if changed := [name for name in _SAME_PAST if flags[name] != before[name]]:
            self.reports.tell(f"--{changed[0]} is not what it was: this run goes on with fresh episodes")
            return
        self._past = Past.from_state(state["past"])
        self.store.put_back(state["unlearned"])

    # -- the run ----------------------------------------------------------------------------------------------------------

    def run(self, host: Callable[[Trainer], None]) -> int:
        """Train to the end, to a signal, or to a failure.

        Args:
            host: adds the workers, or the serial actors.

        Returns:
            The process's exit status.

        Raises:
            WorkerError, CheckpointError, FloatingPointError, ...: what made the run fail, after a checkpoint was saved
                if one could be.
        """
        with self._signals():
            try:
                if self.config.run.eval_every:
                    self._evaluator = Evaluator(self.task, self.config, self.weights, self.learner.steps)
                host(self)
                if self._evaluator:
                    self._evaluator.start(self.workers, index=len(self.workers.workers))
                self._loop()
            except BaseException as error:
                self._failure = self._failure or error
            finally:
                self._shut_down()
        if self._failure is not None:
            raise self._failure
        return 128 + self._signal if self._signal else 0

    def _loop(self) -> None:
        if self._torch_rng is not None:
            torch.set_rng_state(self._torch_rng)
            self._torch_rng = None
        if self._serial is not None:
            self._learn_all()  # what was not learned from when the run was stopped
        else:
            for i in range(self.learner_threads):
                self.start_thread(f"learner-{i}", self._learn)
        run = self.config.run
        next_report = time.monotonic() + run.report_every
        next_checkpoint = time.monotonic() + min(FIRST_CHECKPOINT, 60 * run.checkpoint_every)
        learned = self.learner.updates  # there is nothing new to save until there are more
        while not self._finished():
            if self._serial is not None:
                self._serial_round()
            else:
                self._wake.wait(0.1)
            if not self._asked_to_stop:  # else they may be gone for the same reason
                self.workers.check()
            if self._evaluator and self._evaluator.due(self.learner.steps):
                self._evaluator.request(self.learner.steps)
            now = time.monotonic()
            if now >= next_report:
                self.report()
                next_report = now + run.report_every
            if (now >= next_checkpoint and self.learner.updates > learned) or self._asked_to_save:
                self._save_and_go_on()
                learned = self.learner.updates
                next_checkpoint = now + 60 * run.checkpoint_every

    def _finished(self) -> bool:
        if self._failure is not None:
            raise self._failure
        return self._asked_to_stop or self.learner.steps >= self.config.learner.total_steps

    def _learn(self) -> None:
        threads = self._compute_threads()
        use_compute_threads(threads)
        behind = 0  # updates in a row after which a whole batch waited already
        while not self._stopping and self.learner.steps < self.config.learner.total_steps:
            if not self.learn_once(timeout=0.2):
                continue
            behind = behind + 1 if self.store.fill()["full"] >= self.config.learner.batch_size else 0
            if behind == BEHIND and self.task.device.type == "cpu":
                use_compute_threads(min(2 * threads, usable_cores()))  # actors only wait meanwhile

    def learn_once(self, timeout: float) -> bool:
        """Wait for a batch, learn from it, publish; False if none came in time. Safe from several threads."""
        with self.clock.stage("wait"):
            slots = self.store.next_slots(self.config.learner.batch_size, timeout)
        if slots is None:
            return False
        with self.clock.stage("batch"):
            batch, episodes = self.store.read(slots)
        versions = batch.policy_version
        with self.clock.stage("copy"):
            staged = self.learner.stage(batch)
        with self._learn_lock:
            if self._stopping or self.learner.steps >= self.config.learner.total_steps:
                return False
            lags = self.learner.updates - versions
            with self.clock.stage("learn"):
                metrics = self.learner.step(staged)
            with self.clock.stage("publish"):
                self.weights.publish(self.learner.flat, self.learner.updates)
            self.reports.add_episodes(episodes)
            update = (self.learner.updates, batch, metrics, lags)
            if self.task.device.type != "cpu":  # known one update later, without waiting for the device
                self._pending, update = update, self._pending
            self._admit(update)
        return True

    def _admit(self, update: tuple[int, Batch, dict[str, torch.Tensor], torch.Tensor] | None) -> None:
        """Into the reports with it, or among the skipped ones."""
        if update is not None and self.skipped.admit(*update[:3]):
            _, _, metrics, lags = update
            self.reports.add_update({name: value for name, value in metrics.items() if name != "finite"}, lags)

    def _serial_round(self) -> None:
        assert self._serial is not None
        actors, port = self._serial
        slots = port.acquire(timeout=0.0)
        assert slots is not None, "the store has room for one unroll an actor beside a batch"
        if actors.unroll(slots):
            port.commit(slots)
            self._past.add(self.store.arrays["action"][slots], actors)
        self._learn_all()

    def _learn_all(self) -> None:
        while not self._finished() and self.learn_once(timeout=0.0):
            pass

    def stop(self) -> None:
        """End the run soon, and cleanly."""
        self._asked_to_stop = True
        self.board.stop()
        self._wake.set()

    # -- reports and checkpoints --------------------------------------------------------------------------------------------

    def report(self) -> dict[str, float]:
        """One row of the logs."""
        extra = {
            "restarts": float(self.workers.restarts),
            "skipped_updates": float(self.skipped.count),
            **(self._evaluator.results() if self._evaluator else {}),
        }
        with self._learn_lock:
            step, updates, learning_rate = self.learner.steps, self.learner.updates, self.learner.learning_rate
        self._reported = updates
        return self.reports.report(
            step=step, updates=updates, learning_rate=learning_rate, stages=self.board.seconds(), extra=extra
        )

    def save(self) -> Path | None:
        """Write a checkpoint, if this run keeps any.

        Raises:
            OSError: if it cannot be written; the one before it is kept.
            FloatingPointError: if the weights are of no use.
        """
        if self.folder is None or self.config.run.disable_checkpoint:
            return None
        if not all_finite([self.learner.flat]):
            raise FloatingPointError("the weights became infinite or NaN: try a lower --learning_rate")
        with self._learn_lock:
            state: dict[str, Any] = {
                "config": self.config.flat(),
                "learner": self.learner.state_dict(),
                "reports": self.reports.state_dict(),
                "torch_rng": torch.get_rng_state() if self._torch_rng is None else self._torch_rng,
                "resumes": self.resumes,
                "restarts": self.workers.restarts,
                "skipped_updates": self.skipped.count,
            }
        if self.config.actors.serial:
            state |= {"past": self._past.state_dict(), "unlearned": self.store.unlearned()}
        return checkpoint.save(self.folder, state, state["learner"]["steps"], self.config.run.keep_checkpoints)

    def _save_and_go_on(self) -> None:
        asked, self._asked_to_save = self._asked_to_save, False
        try:
            path = self.save()
        except OSError as error:
            self.reports.tell(f"no checkpoint written ({error}); the one before it is kept, training goes on")
            return
        if asked:
            self.reports.tell(f"saved {path}" if path else "nothing saved: this run keeps no checkpoints")

    # -- the end ------------------------------------------------------------------------------------------------------------

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """First SIGINT, SIGTERM or SIGHUP: finish cleanly. Second SIGINT: at once. SIGUSR1: a checkpoint now."""
        first_at = 0.0

        def handle(number: int, _: Any) -> None:
            nonlocal first_at
            now = time.monotonic()
            if self._signal is None:
                first_at = now
            elif now - first_at < DOUBLE_SIGNAL:
                return  # one Ctrl-C, delivered to the process and to its group
            elif number == signal.SIGINT:
                self.workers.kill()
                os._exit(128 + number)
            self._signal = number
            # Not stop(): it takes a lock, which this very thread may hold. The loop looks ten times a second.
            self._asked_to_stop = True
            self.board.stop()

        def save(number: int, _: Any) -> None:
            self._asked_to_save = True

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers: dict[int, Any] = {signal.SIGINT: handle, signal.SIGTERM: handle, signal.SIGUSR1: save}
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # else it is under nohup
            handlers[signal.SIGHUP] = handle
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _shut_down(self) -> None:
        """Actors, evaluator, learner threads, checkpoint, reports; nothing is left behind."""
        self._stopping = True
        try:
            self.workers.stop(STOP_DEADLINE)
        except Exception as error:  # whatever it is, what was learned is worth more
            self._failure = self._failure or error
        for thread in self._threads:
            thread.join(60.0)
        if self._serial is not None:
            self._serial[0].close()
        path = None
        try:
            self._admit(self._pending)
        except FloatingPointError as error:
            self._failure = self._failure or error
        try:
            if self.learner.updates > self._reported:
                self.report()
            if self.learner.updates:
                path = self.save()
        except FloatingPointError as error:
            self._failure = self._failure or error
        except OSError as error:
            self._failure = self._failure or CheckpointError(f"the last checkpoint could not be written: {error}")
        self.store.close()
        step, total = self.learner.steps, self.config.learner.total_steps
        if self.folder is not None:
            how = "failed" if self._failure else "finished" if step >= total else "stopped"
            self.reports.tell(f"{how} at step {step:,} of {total:,}; " + (f"saved {path}" if path else "nothing saved"))
            if path and step < total:
                self.reports.tell(f"go on with: python run.py --resume {self.folder}")
        self.reports.close()


__all__ = ["SerialActors", "Trainer", "WorkerError"]
