"""What this program does, as functions of values: the command line and Python both call these.

`train`, `evaluate` and `load` are `beast.train`, `beast.evaluate` and `beast.load`. They raise what the command line
prints in one line: ConfigError, EnvError, ModelError, CheckpointError, WorkerError, MemoryError or FloatingPointError.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from beast.acting.models import ModelChoice
from beast.acting.policy import Policy
from beast.core.errors import BeastError, CheckpointError, ConfigError
from beast.processes.launch import launch
from beast.processes.machine import allow_open_files
from beast.processes.supervisor import start_fork_server
from beast.run import finding
from beast.run import folder as run_folder
from beast.run.trust import NAMES_CODE, settings_of
from beast.settings.checks import section
from beast.settings.config import Config, LearnerConfig, ModelConfig, RunConfig

if TYPE_CHECKING:
    import torch

    from beast.acting.agent import Agent
    from beast.acting.task import Task
    from beast.core.ranks import Ranks

_live = threading.Lock()
"""Held while this process trains, because training seeds PyTorch and uses the one fork server."""


REPLACEABLE = ("env", "env_kwargs", "max_episode_steps")
"""Settings of a checkpoint's task for which an evaluation may have others."""
EVALUATION_TAKES = tuple(dict.fromkeys((*NAMES_CODE, *REPLACEABLE)))
"""The settings that may be given to an evaluation: those, and what names code, to confirm that it is known."""


class Ended(NamedTuple):
    """How a run ended that did not fail."""

    folder: Path
    signal: int | None
    """The signal that stopped it; None if none did."""


# -- from Python ------------------------------------------------------------------------------------------------------


def train(*, callbacks: Sequence[Any] = (), trust: bool = False, **flags: Any) -> Path:
    """Train a policy, or continue a run.

    It works in any thread, with one training at a time in a process. A signal that ends it (Ctrl-C) is raised again after
    the checkpoint is written: Ctrl-C raises KeyboardInterrupt. A second Ctrl-C ends the process at once. Only the main
    thread receives signals; elsewhere a callback that returns True ends the run. PyTorch's generator is seeded, and its
    number of threads is set for this thread.

    Args:
        callbacks: objects whose methods are called after updates, episodes and checkpoints (`beast/run/callbacks.py`).
        trust: whether a checkpoint that somebody else made (`resume`) may run the code that it names.
        flags: those of the command line, by name: `env="CartPole-v1", total_steps=300_000`; the others have their
            defaults. What they name (an environment, a model) is imported in each process, so it must be in a module;
            functions defined in a notebook cannot be named.

    Returns:
        The run folder.

    Raises:
        ConfigError, EnvError, ModelError, CheckpointError: before the first step; the run leaves nothing then.
        WorkerError, FloatingPointError, CheckpointError: the run failed, after a checkpoint was saved if possible.
    """
    ended = run_training(_plain(flags), trust, callbacks, warnings.warn)
    if ended.signal is not None:
        signal.raise_signal(ended.signal)
    return ended.folder


def evaluate(
    run: str | os.PathLike[str], episodes: int = 100, *, deterministic: bool = False, seed: int | None = None,
    video: str | os.PathLike[str] | None = None, savedir: str | os.PathLike[str] = RunConfig.savedir, trust: bool = False,
    **given: Any,
) -> dict[str, Any]:  # fmt: skip
    """Play full games with a checkpoint.

    Args:
        run: a run folder, a run's name in `savedir`, `latest`, or a checkpoint file.
        episodes: number of games.
        deterministic: take the most probable action instead of sampling.
        seed: of environments and actions; None derives it from the run's seed.
        video: a folder; one episode is also recorded there, as `episode.mp4`.
        savedir: the folder that holds the run folders.
        trust: whether a checkpoint that somebody else made may run the code that it names.
        given: `env`, `env_kwargs` and `max_episode_steps` (for tasks whose games may last for ever) replace those of the
            checkpoint; other flags that name code (`model`, ...) must equal the checkpoint's, and confirm that you know them.

    Returns:
        env, model, step, seed, deterministic, episodes (a count), returns and lengths (lists, in steps), and of the returns
        mean, median, std, min, max.

    Raises:
        ConfigError, EnvError, ModelError, CheckpointError: each with a message of one line.
    """
    folder = Path(video) if video is not None else None
    return run_evaluation(
        os.fspath(run), os.fspath(savedir), episodes, deterministic, seed, folder, trust, _plain(given), warnings.warn
    )


def load(
    run: str | os.PathLike[str], deterministic: bool = False, seed: int | None = None,
    savedir: str | os.PathLike[str] = RunConfig.savedir, trust: bool = False,
) -> Agent:  # fmt: skip
    """Load a policy to act with, on the CPU.

    No environment is made, except for checkpoints of the first format (before 0.1.0), which do not hold their spaces.

    Args:
        run: a run folder, a run's name in `savedir`, `latest`, or a checkpoint file.
        deterministic: take the most probable action instead of sampling.
        seed: of the sampling; None takes a different one each time.
        savedir: the folder that holds the run folders.
        trust: whether a checkpoint that somebody else made may run the code that it names.

    Raises:
        CheckpointError: if there is none, it is damaged, or it names code and somebody else made it.
        ConfigError, ModelError, EnvError: if what it names is missing or has changed.
    """
    import torch

    from beast.acting.agent import Agent
    from beast.tools.evaluation import load_model

    path, state = finding.load_newest(os.fspath(run), os.fspath(savedir), warnings.warn)
    # If the checkpoint holds its spaces, only the model that it names is imported.
    unused = tuple(name for name in NAMES_CODE if name != "model") if "spaces" in state else ()
    flags = settings_of(path, state, None, trust, unused)
    with torch.random.fork_rng(devices=[]):  # a new model draws weights before they are loaded
        choice, dtype = _model_of(state, flags)
        policy = Policy(choice, dtype, None, 1)
    load_model(policy, state["learner"]["model"], path)
    return Agent(policy, deterministic, seed)


def _model_of(state: dict[str, Any], flags: dict[str, Any]) -> tuple[ModelChoice, torch.dtype]:
    """Return the model of a checkpoint, and the dtype in which it computes on this machine's CPU."""
    import torch

    from beast.acting.models import model_module
    from beast.run.resolve import compute_dtype, resolve_config
    from beast.tools.evaluation import evaluated, trained_spaces

    if "spaces" not in state:
        _, task = resolve_config(evaluated(flags), complete=True)
        return task.model, task.dtype
    learner = section(LearnerConfig, flags)
    settings = section(getattr(model_module(learner.model).Model, "Config", ModelConfig), flags)
    observation, action = trained_spaces(state).values()
    choice = ModelChoice(
        learner.model,
        learner.use_lstm,
        observation,
        action,
        dataclasses.asdict(settings),
        learner.normalise_observations,
    )
    cpu = torch.device("cpu")
    return choice, compute_dtype(learner.precision, choice, cpu, cpu)


def _plain(flags: dict[str, Any]) -> dict[str, Any]:
    """Convert paths to text, which flags hold."""
    return {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in flags.items()}


# -- from anywhere ----------------------------------------------------------------------------------------------------


def run_training(values: dict[str, Any], trusted: bool, callbacks: Sequence[Any], log: Callable[[str], Any]) -> Ended:
    """Train, or continue a run.

    Args:
        values: flags that were given, by name.
        trusted: see `trust.settings_of`.
        callbacks: see `assemble`.
        log: takes lines for the user that belong to no run's log.
    """
    if not _live.acquire(blocking=False):
        raise ConfigError("a run is live in this process already: wait for its end, or start another process")
    try:
        return _run_training(values, trusted, callbacks, log)
    finally:
        _live.release()


def _run_training(values: dict[str, Any], trusted: bool, callbacks: Sequence[Any], log: Callable[[str], Any]) -> Ended:
    if values.get("num_actor_processes") != 0:
        start_fork_server()  # it imports torch on another core while this process imports it too
    from beast.run.resolve import resolve_config
    from beast.run.torchrun import joined

    with joined() as ranks, ExitStack() as held:  # of several ranks the first alone has the folder, and its lock
        start = ranks.of_first(lambda: _start(values, trusted, held))
        # Before anything is made.
        config, task = ranks.together(lambda: resolve_config(start.flags, start.folder is not None))
        if start.folder is not None and start.steps >= config.learner.total_steps:
            done = f"{start.folder} is finished: {start.steps:,} steps. To go on, give a larger --total_steps."
            for line in (*start.notes, done) if ranks.first else ():
                log(line)
            return Ended(start.folder, None)
        ranks.together(lambda: check_machine(config, task))
        folder = ranks.of_first(lambda: _enter(start, config, held))
        return _run(config, task, folder, start, callbacks if ranks.first else (), ranks)


class _Start(NamedTuple):
    """What a run starts from."""

    flags: dict[str, Any]
    folder: Path | None = None
    """Of a run that goes on; it is locked."""
    state: dict[str, Any] | None = None
    """Its checkpoint."""
    notes: tuple[str, ...] = ()
    """For its log."""

    @property
    def steps(self) -> int:
        return int(self.state["learner"]["steps"]) if self.state else 0


def _start(values: dict[str, Any], trusted: bool, held: ExitStack) -> _Start:
    """Find the run that is to go on, if there is one, lock its folder until `held` ends and read its newest checkpoint."""
    folder = run_folder.run_to_resume(values)
    if folder is None:
        return _Start(values)
    held.enter_context(run_folder.locked(folder))
    notes: list[str] = []
    name = values["resume"] if values["resume"] != "auto" else str(folder)
    path, state = finding.load_newest(name, values.get("savedir", RunConfig.savedir), notes.append)
    flags = settings_of(path, state, values, trusted)
    if flags.get("record_unrolls") and not values.get("record_unrolls"):
        notes.append(f"unrolls are no longer recorded: give --record_unrolls {flags['record_unrolls']!r:.200} again")
    return _Start(run_folder.flags_to_resume(folder, flags, values), folder, state, tuple(notes))


def _enter(start: _Start, config: Config, held: ExitStack) -> Path:
    """Make and lock a new run's folder, or note in that of an old one that it goes on."""
    if start.folder is not None:
        run_folder.record_resume(start.folder, config, start.steps)
        return start.folder
    folder = run_folder.make(config)
    held.enter_context(run_folder.locked(folder))
    run_folder.begin(folder, config)
    return folder


def _run(config: Config, task: Task, folder: Path, start: _Start, callbacks: Sequence[Any], ranks: Ranks) -> Ended:
    """Train in a folder that the first rank has locked."""
    from beast.run.assemble import assemble

    state = start.state
    try:
        trainer = assemble(config, task, folder if ranks.first else None, state, ranks=ranks, callbacks=callbacks)
    except BaseException as error:
        if state is None and ranks.first:
            run_folder.undo(folder)
        if isinstance(error, OSError):
            raise ConfigError(f"cannot start in {folder}: {error}") from error
        if state is None or isinstance(error, BeastError | MemoryError) or not isinstance(error, Exception):
            raise
        kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "  # torch's message is enough
        raise CheckpointError(  # the keys or shapes are another network's
            f"{folder}: its checkpoint does not fit --model {config.learner.model}: {kind}{one_line(error)}"
        ) from error
    if ranks.first:
        run_folder.point_latest_to(folder)
        actors = config.actors
        where = "this process" if actors.serial else f"{actors.processes} processes"
        for line in (
            *start.notes,
            f"{'resuming' if state else 'training'} {config.environment.env} with {config.learner.model}, "
            f"preset {config.run.preset}, {f'{ranks.size} ranks with ' if ranks.size > 1 else ''}{actors.num_actors} "
            f"actors in {where}, {str(task.dtype).removeprefix('torch.')} on {task.device}; run folder {folder}",
        ):
            trainer.reports.log(line)
    status = trainer.run()
    return Ended(folder, status - 128 if status else None)


def run_evaluation(  # noqa: PLR0913
    run: str, savedir: str, episodes: int, deterministic: bool, seed: int | None, video: Path | None, trusted: bool,
    given: dict[str, Any], log: Callable[[str], Any],
) -> dict[str, Any]:  # fmt: skip
    """Do as `evaluate`; `log` takes a line for each damaged checkpoint that is skipped."""
    for name, value, least in (("episodes", episodes, 1), ("seed", 0 if seed is None else seed, 0)):
        if type(value) is not int or value < least:
            raise ConfigError(f"--{name} must be at least {least}, got {value!r}")
    if unknown := given.keys() - set(EVALUATION_TAKES):
        raise ConfigError(
            f"unknown settings: {', '.join(sorted(unknown))}; evaluate takes {', '.join(EVALUATION_TAKES)}"
        )
    if video:
        make_writable("video", video)
    path, state = finding.load_newest(run, savedir, log)
    # A value unlike the file's asks for another task with the same spaces; an equal one confirms that the reader knows it.
    own: dict[str, Any] = state["config"]
    other = {name: given[name] for name in REPLACEABLE if name in given and given[name] != own.get(name)}
    if "env" in other:
        other.setdefault("env_kwargs", {})
    flags = settings_of(path, state, given | other, trusted, replaced=tuple(other))
    for name, value in given.items():
        if name not in other and value != flags.get(name):
            raise ConfigError(f"--{name} {value}: {path} was made with {flags.get(name)}")
    from beast.tools.evaluation import from_checkpoint

    return from_checkpoint(path, state, episodes, seed, deterministic, video, other)


def check_machine(config: Config, task: Task) -> None:
    """Check memory and the limit of open files before anything is written.

    Raises:
        ConfigError: if there is too little memory, or the limit of open files is too low and may not be raised, or a folder
            of recordings is wrong, or one process alone is asked for in several ranks.
    """
    from beast.run.memory import check_memory
    from beast.run.recordings import prepare

    if config.actors.serial and launch().size > 1:
        raise ConfigError(
            "--num_actor_processes 0 does everything in one process: leave it out, or run without torchrun"
        )
    check_memory(config, task)
    if (limit := allow_open_files()) < config.open_files:
        raise ConfigError(
            f"up to {config.open_files} open files are needed, the limit is {limit}: raise it (ulimit -n "
            f"{config.open_files}) or lower --num_actor_processes"
        )
    if folder := config.replay.record_unrolls:
        make_writable("record_unrolls", Path(folder))
        prepare(Path(folder), task.unroll, config.actors.unroll_length, task.env.env)


def make_writable(flag: str, folder: Path) -> None:
    """Make a folder and test that it is writable, before the work whose result goes there.

    Raises:
        ConfigError: if that fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(f"--{flag}: cannot write to {folder}: {error.strerror}") from error


def one_line(error: BaseException) -> str:
    """Return an error's message in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]
