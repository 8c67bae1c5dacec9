"""The life of a run, from its first process to its last checkpoint. `assemble` makes its parts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from beast.acting.task import Task
from beast.core.errors import CheckpointError, FailedElsewhere, RankLost
from beast.core.learner import Learner
from beast.core.names import to_type
from beast.core.ranks import Ranks
from beast.processes.launch import launch
from beast.processes.machine import usable_cores
from beast.processes.status import LocalStatus, StatusBoard
from beast.processes.supervisor import Workers
from beast.report.reports import Reports
from beast.run.callbacks import Callbacks
from beast.run.crew import Crew
from beast.run.evaluator import Evaluator
from beast.run.experience import Experience
from beast.run.learning import Learning
from beast.run.saving import Checkpoints
from beast.run.serial import Serial
from beast.run.signals import Wishes, heard
from beast.run.skipped_updates import SkippedUpdates
from beast.run.threads import Threads
from beast.settings.config import Config
from beast.store.unrolls import UnrollStore
from beast.store.weights import Weights

FIRST_CHECKPOINT = 60.0  # seconds within which the first one is written; a run killed before that leaves nothing
STOP_DEADLINE = 5.0  # seconds that workers have to end


@dataclass(eq=False)
class Trainer:
    """The parts of a run, and its life: `run` is called once."""

    config: Config
    task: Task
    folder: Path | None
    """The run's folder; None writes nothing (profile, tests)."""
    crew: Crew
    learner: Learner
    learning: Learning
    weights: Weights
    store: UnrollStore
    board: StatusBoard
    workers: Workers
    start_workers: Callable[[], None]
    reports: Reports
    skipped: SkippedUpdates
    checkpoints: Checkpoints
    wishes: Wishes
    status: LocalStatus
    """What actors and threads in this process report to."""
    callbacks: Callbacks
    experience: Experience
    ranks: Ranks
    serial: Serial | None = None
    evaluator: Evaluator | None = None

    def __post_init__(self) -> None:
        self.threads = Threads()
        self._reported = self.learner.updates
        self._failure: BaseException | None = None

    # -- the run ------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Train to the end, to a signal, or to a failure.

        Returns:
            The exit status.

        Raises:
            WorkerError, CheckpointError, FloatingPointError, ...: why the run failed, after a checkpoint was saved if possible.
        """
        with heard(self.wishes, self.board.stop, self.workers.kill):
            try:
                self._start()
                self._loop()
            except BaseException as error:
                self._failure = self._failure or error
            finally:
                self._shut_down()
        if self._failure is not None:
            raise self._failure
        return 128 + self.wishes.signal if self.wishes.signal else 0

    def _start(self) -> None:
        for note in (*self.crew.notes, *self.experience.notes):
            self.reports.log(note)
        if self.serial is not None:
            self.serial.start(self.reports.log)
        self.start_workers()
        for name, target in self.crew.threads.items():
            self.threads.start(name, lambda target=target: target(self.status))  # type: ignore[misc]
        self.checkpoints.set_generator()
        if self.serial is not None:
            self._learn_all()  # unrolls that were not learned from when the run was stopped
            return
        fewest, most = compute_threads(self.config, self.task)
        for i in range(learner_threads(self.config, self.task)):
            self.threads.start(f"learner-{i}", lambda: self.learning.serve(fewest, most, self._over))

    def _loop(self) -> None:
        run = self.config.run
        next_report = time.monotonic() + run.report_every
        next_checkpoint = time.monotonic() + min(FIRST_CHECKPOINT, 60 * run.checkpoint_every)
        saved = self.learner.updates  # there is nothing new to save until there are more
        end = time.monotonic() + 60 * (run.max_minutes or math.inf)
        while not self._finished():
            if self.serial is not None:
                self.serial.round()
                self._learn_all()
            else:
                self.threads.ended.wait(0.1)
            if not self.wishes.stopping:  # otherwise they may have ended for the same reason
                self.workers.check()
            if self.evaluator and self.evaluator.due(self.learner.steps):
                self.evaluator.request(self.learner.steps)
            now = time.monotonic()
            if now >= end:
                self.stop(f"--max_minutes {run.max_minutes:g} are over")
            if self.callbacks.stop:
                self.stop("a callback asked for the end")
            if now >= next_report:
                self._look_at(self.report())
                next_report = now + run.report_every
            if (now >= next_checkpoint and self.learner.updates > saved) or self.wishes.save:
                asked, self.wishes.save = self.wishes.save, False
                self.checkpoints.save_and_go_on(asked)
                saved = self.learner.updates
                next_checkpoint = now + 60 * run.checkpoint_every

    def _finished(self) -> bool:
        if self.threads.failure is not None:
            raise self.threads.failure
        return self.wishes.stopping or self._complete or self.ranks.ending is not None

    def _over(self) -> bool:
        """Return whether learner threads are done. A unit that was begun before a request to stop is finished."""
        return self.wishes.ending or self._complete or self.ranks.ending is not None

    @property
    def _complete(self) -> bool:
        return self.learner.steps >= self.config.learner.total_steps

    def _learn_all(self) -> None:
        while not self._finished() and (work := self.learning.source.next(0.0)) is not None:
            self.learning.learn(work, self._over)

    def _look_at(self, row: dict[str, float]) -> None:
        wanted, reached = self.config.run.stop_at_return, row.get("mean_episode_return", -math.inf)
        if wanted is not None and reached >= wanted and self.reports.window_full:
            self.stop(f"a mean return of {reached:.2f} is --stop_at_return {wanted:g} or more")

    def stop(self, reason: str = "") -> None:
        """End the run soon and cleanly; log the reason if there is one."""
        if reason:
            self.reports.log(f"{reason}: the run ends")
        self.wishes.stop = True
        self.board.stop()
        self.threads.ended.set()

    # -- reports and checkpoints --------------------------------------------------------------------------------------

    def report(self) -> dict[str, float]:
        """Write one row of the logs and return it."""
        extra = {
            "restarts": float(self.workers.restarts),
            "skipped_updates": float(self.skipped.count),
            **self.experience.report(),
            **(self.evaluator.results() if self.evaluator else {}),
        }
        with self.learning.lock:
            step, updates, learning_rate = self.learner.steps, self.learner.updates, self.learner.learning_rate
        self._reported = updates
        return self.reports.report(
            step=step, updates=updates, learning_rate=learning_rate, stages=self.board.seconds(), extra=extra
        )

    # -- the end ------------------------------------------------------------------------------------------------------

    def _shut_down(self) -> None:
        """End actors, evaluator and learner threads, save a checkpoint and close the reports."""
        self.wishes.ending = True
        self._leave_ranks()
        try:
            self.workers.stop(STOP_DEADLINE)
        except Exception as error:  # saving what was learned comes first
            self._failure = self._failure or error
        self.threads.join(60.0)
        self._failure = self._failure or self.threads.failure
        if self.serial is not None:
            with suppress(Exception):  # what was learned is worth more
                self.serial.close()
        path = None
        try:
            self.learning.reporter.flush()
        except FloatingPointError as error:
            self._failure = self._failure or error
        self.experience.close()
        try:
            if self.learner.updates > self._reported:
                self.report()
            if self.learner.updates:
                path = self.checkpoints.save()
        except FloatingPointError as error:
            self._failure = self._failure or error
        except OSError as error:
            self._failure = self._failure or CheckpointError(f"the last checkpoint could not be written: {error}")
        self.store.close()
        if self.folder is not None:
            for line in last_words(
                self.learner.steps, self.config.learner.total_steps, self.folder, path, self._failure
            ):
                self.reports.log(line)
        self.reports.close()

    def _leave_ranks(self) -> None:
        """Tell the other ranks that this one ends, unless all do; or hear why they do."""
        try:
            with self.learning.lock:  # between two units: a gradient that others wait for is on its way
                if not self._complete:
                    failed = self._failure is not None or self.threads.failure is not None
                    self.ranks.leave(self.learning.gradients.nothing(), self.wishes.signal, failed)
        except RankLost as error:
            self._failure = self._failure or self.threads.failure or error
        if (ending := self.ranks.ending) is not None:
            self.wishes.signal = self.wishes.signal or ending.signal
            if ending.failed:
                self.reports.log("another rank failed: all end")
                self._failure = self._failure or self.threads.failure or FailedElsewhere("another rank failed")


def last_words(step: int, total: int, folder: Path, saved: Path | None, failure: BaseException | None) -> list[str]:
    """Return the lines that end a run's log: how far it came, what was saved, and how to go on."""
    how = "failed" if failure else "finished" if step >= total else "stopped"
    lines = [f"{how} at step {step:,} of {total:,}; " + (f"saved {saved}" if saved else "nothing saved")]
    return lines + ([f"go on with: {to_type()} --resume {folder}"] if saved and step < total else [])


def learner_threads(config: Config, task: Task) -> int:
    """Return the number of learner threads.

    On a CPU preparing a batch takes hardly any time, and the working memory of another thread would only fill the caches.
    """
    return config.learner.num_learner_threads or (1 if task.device.type == "cpu" else 2)


def compute_threads(config: Config, task: Task) -> tuple[int, int]:
    """Return the number of threads with which PyTorch computes for the learner at the start, and the most that it may take.

    On a CPU that is half of the machine, until one learner thread alone turns out to need all of it. Rounds repeat to the last
    digit, so there the number, and with it the order of sums, does not follow the clock; nor among ranks, which wait for each
    other.
    """
    if config.actors.serial or task.device.type != "cpu":
        return 1, 1
    half = max(1, usable_cores() // 2)
    alone = learner_threads(config, task) == 1 and launch().size == 1
    return half, usable_cores() if alone and not config.pace.in_rounds else half
