"""What becomes of unrolls that were learned from: a replay keeps them, a recorder writes them, or they are dropped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from beast.acting.task import Task
from beast.core.errors import ConfigError
from beast.core.seeds import seed_for
from beast.processes.shared import total_bytes
from beast.processes.status import Clock
from beast.run.recordings import Recorder, Recordings, open_recordings, prepare
from beast.settings.config import Config
from beast.store.replay import Replay, ReplaySource, replay_specs
from beast.store.sources import Source, Work


class Experience:
    """The replay of a run and its recorder, where it has them.

    Args:
        source: of fresh work.
        config, task: of the run.
        life: the number of this life of the run: resumed, it draws others.
        clock: times `batch`.
        log: takes one line for the user.

    Raises:
        ConfigError: if a folder of recordings is wrong.
        MemoryError: if there is no room for the replay.
    """

    def __init__(
        self, source: Source, config: Config, task: Task, life: int, clock: Clock, log: Callable[[str], None]
    ) -> None:
        settings, length = config.replay, config.actors.unroll_length
        replayed = settings.unrolls(config.learner.batch_size)
        self.source = source
        """The source that the learner is to ask."""
        self.notes: tuple[str, ...] = ()
        """Lines to print at the start."""
        self._source: ReplaySource | None = None
        if replayed:
            found = demonstrations(config, task)
            number = found.count if found else 0
            seed = seed_for(config.run.seed, "replay", life)
            replay = Replay(task.unroll, length, settings.replay_capacity, seed, number)
            if found:
                found.load(replay.tensors, task.model.distribution())
            self.source = self._source = ReplaySource(source, replay, replayed, clock)
            self.notes = (
                _told(config, replay, number, replayed),
                *(() if not life or not settings.replay_capacity else (_LOST,)),
            )
        self._recorder: Recorder | None = None
        if settings.record_unrolls:
            folder = Path(settings.record_unrolls)
            prepare(folder, task.unroll, length, task.env.env)
            self._recorder = Recorder(folder, task.unroll, length, settings.record_limit, log)

    def learned(self, work: Work, number: int) -> None:
        """Take in a unit of which no update was skipped; `number` is that of its first update."""
        if self._source:
            self._source.learned(work, number)
        if self._recorder and work.unseen is not None:
            self._recorder.add(work.unseen)

    def report(self) -> dict[str, float]:
        """Return columns for the logs, of the time since the last report."""
        return self._source.report() if self._source else {}

    def close(self) -> None:
        """Write the unrolls that are in no file yet."""
        if self._recorder:
            self._recorder.flush()


_LOST = "the replay begins empty: checkpoints do not hold the unrolls that it had"


def _told(config: Config, replay: Replay, demonstrations: int, replayed: int) -> str:
    parts = [f"{config.replay.replay_capacity:,} unrolls"] if config.replay.replay_capacity else []
    parts += [f"{demonstrations:,} demonstrations"] if demonstrations else []
    return (
        f"replay: {' and '.join(parts)} take {_size(replay.nbytes)} of memory; {replayed} of the "
        f"{config.learner.batch_size} unrolls of a batch are drawn from them"
    )


def _size(number: int) -> str:
    return f"{number / 1e9:,.2f} GB" if number >= 1e8 else f"{number / 1e6:.2g} MB"


def demonstrations(config: Config, task: Task) -> Recordings | None:
    """Return the recordings that a run learns from, before they are read; None if there are none.

    Raises:
        ConfigError: if they are wrong, or too few.
    """
    if not (folder := config.replay.demonstrations):
        return None
    found = open_recordings(Path(folder), task.unroll, config.actors.unroll_length)
    replayed = config.replay.unrolls(config.learner.batch_size)
    if not config.replay.replay_capacity and found.count < replayed:
        raise ConfigError(
            f"--demonstrations {folder}: it holds {found.count} unrolls, each batch draws {replayed}: add "
            "--replay_capacity, or record more"
        )
    return found


def replay_bytes(config: Config, task: Task) -> int:
    """Return how much memory a run's replay takes, in bytes.

    Raises:
        ConfigError: as `demonstrations` does.
    """
    found = demonstrations(config, task)
    unrolls = config.replay.replay_capacity + (found.count if found else 0)
    return unrolls and total_bytes(replay_specs(task.unroll, unrolls, config.actors.unroll_length))
