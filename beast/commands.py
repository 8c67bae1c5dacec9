"""The three commands: what they take, what they call, how they end."""

from __future__ import annotations

import difflib
import errno
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beast import checkpoint, run_folder, trust
from beast.checkpoint import CheckpointError
from beast.config import Config, ConfigError, EnvironmentConfig, LearnerConfig, RunConfig
from beast.envs import EnvError
from beast.flags import Parser, preset_help
from beast.policy import ModelError
from beast.system import allow_open_files
from beast.workers import WorkerError, warm_up

if TYPE_CHECKING:
    from beast.task import Task

_ABOUT = """python run.py [train] [flags]: train a policy, or go on with a run (--resume RUN).
python run.py evaluate --checkpoint RUN: play full games with it.
python run.py profile: say where the time goes. Each command has its own --help."""


def run(command: str, arguments: list[str]) -> int:
    """Run one command. Errors that a user can mend are one line on stderr."""
    commands = {"train": train, "evaluate": evaluate, "profile": profile}
    if command not in commands:
        near = difflib.get_close_matches(command, commands, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(commands)}"
        return _fail(f"unknown command {command!r}; {hint}", 2)
    try:
        return commands[command](arguments)
    except (ConfigError, EnvError, ModelError, CheckpointError) as error:
        return _fail(str(error), 2)
    except WorkerError as error:
        if error.details:
            print(error.details.rstrip(), file=sys.stderr)
        return _fail(str(error), 1)
    except (MemoryError, FloatingPointError) as error:
        return _fail(str(error) or "out of memory", 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EMFILE:
            return _fail("too many open files: raise the limit (ulimit -n) or lower --num_actor_processes", 1)
        traceback.print_exc()  # of the user's own code, most likely: where it happened says more than we can
        return _fail(f"{type(error).__name__}: {_line(error)}", 1)


_LONGEST = 1000  # letters of an error: names in a file may have any length


def _fail(message: str, status: int) -> int:
    """One line, whatever is in the message: it may quote names from a file."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message[:_LONGEST])
    print(f"run.py: error: {line}", file=sys.stderr)
    return status


def train(arguments: list[str]) -> int:
    """Train, or go on with a run."""
    parser = _train_parser("run.py", _ABOUT, arguments)
    _add_trust(parser)
    values = parser.parse(arguments)
    trusted = values.pop("trust")
    if values.get("num_actor_processes") != 0:
        warm_up()  # it imports torch on another core while this process does
    from beast.task import settle

    folder = run_folder.to_resume(values)
    if folder is None:
        config, task = settle(values)  # before anything is made
        _check_machine(config, task)
        folder = run_folder.make(config)
        with run_folder.locked(folder):
            run_folder.begin(folder, config)
            return _train(config, task, folder, None, [])
    with run_folder.locked(folder):
        notes: list[str] = []
        name = values["resume"] if values["resume"] != "auto" else str(folder)
        path, state = checkpoint.load_newest(name, values.get("savedir", RunConfig.savedir), notes.append)
        flags = checkpoint.settings_of(path, state, values, trusted)
        config, task = settle(run_folder.flags_to_resume(folder, flags, values))
        steps = state["learner"]["steps"]
        if steps >= config.learner.total_steps:
            print(*notes, f"{folder} is finished: {steps:,} steps. To go on, give a larger --total_steps.", sep="\n")
            return 0
        _check_machine(config, task)
        run_folder.take_up(folder, config, steps)
        return _train(config, task, folder, state, notes)


def _train(config: Config, task: Task, folder: Path, state: dict[str, Any] | None, notes: list[str]) -> int:
    """Train in a folder that is locked; `notes` are for its log."""
    from beast.assemble import assemble

    try:
        trainer = assemble(config, task, folder, state)
    except BaseException as error:
        if state is None:
            run_folder.undo(folder)
        if isinstance(error, OSError):
            raise ConfigError(f"cannot start in {folder}: {error}") from error
        known = ConfigError, EnvError, ModelError, CheckpointError, MemoryError
        if state is None or isinstance(error, known) or not isinstance(error, Exception):
            raise
        kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "  # torch's says enough
        raise CheckpointError(  # keys or shapes of another network
            f"{folder}: its checkpoint does not fit --model {config.learner.model}: {kind}{_line(error)}"
        ) from error
    run_folder.point_latest_to(folder)
    for note in notes:
        trainer.reports.tell(note)
    actors = config.actors
    trainer.reports.tell(
        f"{'resuming' if state else 'training'} {config.environment.env} with {config.learner.model}, "
        f"{actors.num_actors} actors in {'this process' if actors.serial else f'{actors.processes} processes'}, "
        f"{str(task.dtype).removeprefix('torch.')} on {task.device}; run folder {folder}"
    )
    return trainer.run()


def _check_machine(config: Config, task: Task) -> None:
    """Before anything is written.

    Raises:
        ConfigError: if there is too little memory, or the limit of open files is too low and may not be raised.
    """
    from beast.memory import check_memory

    check_memory(config, task)
    if (limit := allow_open_files()) < config.open_files:
        raise ConfigError(
            f"up to {config.open_files} open files are needed, the limit is {limit}: raise it (ulimit -n "
            f"{config.open_files}) or lower --num_actor_processes"
        )


def evaluate(arguments: list[str]) -> int:
    """Play episodes with a checkpoint."""
    parser = Parser(prog="run.py evaluate", description="Play full games with a checkpoint; it holds every setting.")
    add = parser.add_argument
    add(
        "--checkpoint",
        required=True,
        metavar="RUN",
        help="a run folder, a run's name in savedir, latest, or a checkpoint file",
    )
    add("--episodes", type=int, default=100, metavar="N", help="full games to play [100]")
    add("--deterministic", action="store_true", help="take the likeliest action instead of drawing one")
    add("--seed", type=int, metavar="N", help="of environments and actions [the run's, moved]")
    add("--video", metavar="DIR", help="also record one episode as DIR/episode.mp4")
    add("--json", metavar="FILE", help="write all figures to FILE")
    add("--savedir", default="runs", metavar="DIR", help="where runs are [runs]")
    _add_trust(parser)
    for group in (EnvironmentConfig, LearnerConfig, RunConfig):
        parser.add_dataclass(group, only=trust.NAMES_CODE)
    values = parser.parse(arguments)
    for name, least in (("episodes", 1), ("seed", 0)):
        if values[name] is not None and values[name] < least:
            parser.error(f"--{name} must be at least {least}, got {values[name]}")
    video = Path(values["video"]) if values["video"] else None
    file = Path(values["json"]) if values["json"] else None
    if video:
        _make_writable("video", video)
    if file:
        _make_writable("json", file.parent)
    path, state = checkpoint.load_newest(values["checkpoint"], values["savedir"], print)
    given = {name: values[name] for name in trust.NAMES_CODE if name in values}
    # What differs from the file is another task of the same spaces; what equals it says that the reader knows of it.
    own: dict[str, Any] = state["config"]
    replaceable = [name for name in ("env", "env_kwargs") if name in given]
    other: dict[str, Any] = {name: given[name] for name in replaceable if given[name] != own.get(name)}
    if "env" in other:
        other.setdefault("env_kwargs", {})
    flags = checkpoint.settings_of(path, state, given | other, values["trust"], replaced=tuple(other))
    for name, value in given.items():
        if name not in other and value != flags.get(name):
            raise ConfigError(f"--{name} {value}: {path} was made with {flags.get(name)}")
    from beast.evaluate import from_checkpoint

    result = from_checkpoint(path, state, values["episodes"], values["seed"], values["deterministic"], video, other)
    print(
        f"{result['env']} at step {result['step']:,}: mean return {result['mean']:.2f}, median {result['median']:.2f}, "
        f"standard deviation {result['std']:.2f}, from {result['min']:g} to {result['max']:g} over {result['episodes']} "
        f"full games ({'deterministic' if result['deterministic'] else 'sampled'} actions)"
    )
    print("returns: " + " ".join(f"{value:g}" for value in result["returns"]))
    if video:
        print(f"video: {video / 'episode.mp4'}")
    if file:
        _write_json(file, result)
    return 0


def profile(arguments: list[str]) -> int:
    """Run the real trainer for a while and say where the time goes."""
    parser = _train_parser(
        "run.py profile", "Train for a while without saving anything, and say where the time goes.", arguments
    )
    add = parser.add_argument_group("Profile").add_argument
    add(
        "--seconds",
        type=float,
        metavar="X",
        help="to measure, and 8 updates at least, after the warm-up [30]; with --autotune: for the whole search [120]",
    )
    add("--warm_up", type=float, default=5.0, metavar="X", help="seconds from the first update until then [5]")
    add("--no_bound", action="store_true", help="leave out the parts alone, and the bound")
    add("--trace", metavar="FILE", help="write what every process did when, for chrome://tracing or Perfetto, to FILE")
    add(
        "--autotune",
        action="store_true",
        help="try processes, actors, trainer, batch size, learner threads and precision where no flag says otherwise",
    )
    add("--json", metavar="FILE", help="write all figures to FILE")
    values = parser.parse(arguments)
    own = {name: values.pop(name) for name in ("seconds", "warm_up", "no_bound", "trace", "autotune", "json")}
    if own["seconds"] is None:
        own["seconds"] = 120.0 if own["autotune"] else 30.0
    if not own["seconds"] > 0 or not own["warm_up"] >= 0:
        parser.error("--seconds must be positive, --warm_up not negative")
    files = {name: Path(own[name]) for name in ("trace", "json") if own[name]}
    for name, file in files.items():
        _make_writable(name, file.parent)
    if own["autotune"]:
        from beast.autotune import autotune

        figures = autotune(values, own["seconds"])
    else:
        warm_up()
        from beast.profile import Measurement, measure, show
        from beast.task import settle

        config, task = settle(values)
        _check_machine(config, task)
        what = Measurement(own["seconds"], own["warm_up"], not own["no_bound"], files.get("trace"))
        figures = measure(config, task, what)
        show(figures)
    if "json" in files:
        _write_json(files["json"], figures)
    return 0


def _make_writable(flag: str, folder: Path) -> None:
    """Make a folder and try it, before the work whose result goes there.

    Raises:
        ConfigError: if that fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(f"--{flag}: cannot write to {folder}: {error.strerror}") from error


def _write_json(path: Path, value: Any) -> None:
    try:
        checkpoint.write_json(path, value)
    except OSError as error:
        raise ConfigError(f"cannot write --json {path}: {error.strerror}") from error


def _train_parser(prog: str, description: str, arguments: list[str]) -> Parser:
    """With the flags of the algorithm and the model that `--algorithm` and `--model` name."""
    first = Parser(prog=prog, add_help=False)
    first.add_argument("--algorithm", default=LearnerConfig.algorithm)
    first.add_argument("--model")
    named = first.parse_known_args(arguments)[0]
    parser = Parser(prog=prog, description=description, epilog=preset_help())
    for group in Config.groups(named.algorithm, named.model).values():
        parser.add_dataclass(group)
    return parser


def _add_trust(parser: Parser) -> None:
    """Not a setting: what a checkpoint says of it does not count."""
    parser.add_argument(
        "--trust", action="store_true", help="run the code that a checkpoint names, though somebody else made it"
    )


def _train_values(arguments: list[str]) -> dict[str, Any]:
    return _train_parser("run.py", _ABOUT, arguments).parse(arguments)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
