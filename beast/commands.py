"""The commands: the flags that each takes, the function of `api.py` that it calls, what it prints, its exit status."""

from __future__ import annotations

import difflib
import errno
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import beast
from beast import api
from beast.core import names
from beast.core.errors import BeastError, ConfigError, FailedElsewhere, RankLost
from beast.processes.launch import launch
from beast.processes.supervisor import start_fork_server
from beast.report.files import write_json
from beast.run import finding
from beast.settings.config import Config, EnvironmentConfig, LearnerConfig, RunConfig
from beast.settings.flags import Parser
from beast.settings.presets import WIDEST

_ABOUT = """{0} [train] [flags]: train a policy, or continue a run (--resume RUN).
{0} evaluate --checkpoint RUN: play full games with a trained policy.
{0} profile: train for a short time and show where the time goes.
{0} plot RUN ...: draw the curves of runs. Each command has its own --help."""


def run(command: str, arguments: list[str]) -> int:
    """Run one command and return its exit status; errors that the user can correct are one line on standard error."""
    commands = {"train": train, "evaluate": evaluate, "profile": profile, "plot": plot}
    if command not in commands:
        near = difflib.get_close_matches(command, commands, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(commands)}"
        return _fail(f"unknown command {command!r}; {hint}", 2)
    if launch().size > 1 and command != "train":
        return _fail(f"torchrun is for training alone: type {command} without it", 2)
    try:
        return commands[command](arguments)
    except FailedElsewhere as error:  # where it is told
        return error.exit_status
    except RankLost as error:
        _fail(str(error), error.exit_status)
        sys.stdout.flush()
        os._exit(error.exit_status)  # threads of torch.distributed may wait for what never comes
    except BeastError as error:
        if error.details:
            print(error.details.rstrip(), file=sys.stderr)
        return _fail(str(error), error.exit_status)
    except (MemoryError, FloatingPointError) as error:
        return _fail(str(error) or "out of memory", 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EMFILE:
            return _fail("too many open files: raise the limit (ulimit -n) or lower --num_actor_processes", 1)
        traceback.print_exc()  # most likely in the user's own code, which a traceback shows
        return _fail(f"{type(error).__name__}: {api.one_line(error)}", 1)


_LONGEST = 1000  # most characters of an error message: names in a file may have any length


def _fail(message: str, status: int) -> int:
    """Print a message as one line, whatever it contains (it may quote names from a file), and return the status."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message[:_LONGEST])
    print(f"{names.typed}: error: {line}", file=sys.stderr)
    return status


def train(arguments: list[str]) -> int:
    """Train, or continue a run."""
    parser = train_parser(names.typed, _ABOUT.format(names.to_type()), arguments)
    parser.add_argument("--version", action="version", version=f"beast {beast.__version__}")
    _add_trust(parser)
    values = parser.parse(arguments)
    trusted = values.pop("trust")
    ended = api.run_training(values, trusted, (), print)
    return 128 + ended.signal if ended.signal else 0


def evaluate(arguments: list[str]) -> int:
    """Play full games with a checkpoint."""
    parser = Parser(
        prog=f"{names.typed} evaluate",
        description="Play full games with a trained policy, on the CPU. The checkpoint knows its environment and network.",
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        required=True,
        metavar="RUN",
        help="The policy to play with: a run folder, a run's name in savedir, latest, or a checkpoint file.",
    )
    add("--episodes", type=int, default=100, metavar="N", help="How many full games to play [100].")
    add(
        "--deterministic",
        action="store_true",
        help="Take the most probable action at each step instead of sampling one.",
    )
    add(
        "--seed",
        type=int,
        metavar="N",
        help="The random seed of environments and actions [different from the one used in training].",
    )
    add("--video", metavar="DIR", help="Also record one episode, as DIR/episode.mp4.")
    add("--json", metavar="FILE", help="Write all figures to FILE as JSON.")
    add("--savedir", default="runs", metavar="DIR", help="The folder that holds the run folders [runs].")
    _add_trust(parser)
    for section in (EnvironmentConfig, LearnerConfig, RunConfig):
        parser.add_dataclass(section, only=api.EVALUATION_TAKES)
    values = parser.parse(arguments)
    video = Path(values["video"]) if values["video"] else None
    file = Path(values["json"]) if values["json"] else None
    if file:
        api.make_writable("json", file.parent)
    given = {name: values[name] for name in api.EVALUATION_TAKES if name in values}
    result = api.run_evaluation(
        values["checkpoint"], values["savedir"], values["episodes"], values["deterministic"], values["seed"], video,
        values["trust"], given, print,
    )  # fmt: skip
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
    """Run the real trainer for a while and show where the time goes."""
    parser = train_parser(
        f"{names.typed} profile",
        "Train for a short time without saving anything, and show where the time goes.",
        arguments,
    )
    add = parser.add_argument_group("Profile").add_argument
    add(
        "--seconds",
        type=float,
        metavar="X",
        help="How long to measure after the warm-up, and for at least 8 updates [30]; with --autotune: the whole search [120].",
    )
    add(
        "--warm_up",
        type=float,
        default=5.0,
        metavar="X",
        help="Seconds to wait after the first update before measuring [5].",
    )
    add(
        "--no_bound",
        action="store_true",
        help="Skip timing each part on its own (faster, but no upper bound is shown).",
    )
    add("--trace", metavar="FILE", help="Write a timeline of all processes to FILE, for chrome://tracing or Perfetto.")
    add(
        "--autotune",
        action="store_true",
        help="Search for the fastest settings on this machine; flags that you give stay fixed.",
    )
    add("--json", metavar="FILE", help="Write all figures to FILE as JSON.")
    values = parser.parse(arguments)
    own = {name: values.pop(name) for name in ("seconds", "warm_up", "no_bound", "trace", "autotune", "json")}
    if own["seconds"] is None:
        own["seconds"] = 120.0 if own["autotune"] else 30.0
    if not own["seconds"] > 0 or not own["warm_up"] >= 0:
        parser.error("--seconds must be positive, --warm_up not negative")
    files = {name: Path(own[name]) for name in ("trace", "json") if own[name]}
    for name, file in files.items():
        api.make_writable(name, file.parent)
    if own["autotune"]:
        from beast.tools.autotune import autotune

        figures = autotune(values, own["seconds"])
    else:
        start_fork_server()
        from beast.run.resolve import resolve_config
        from beast.tools.throughput import Measurement, measure, show

        config, task = resolve_config(values)
        api.check_machine(config, task)
        what = Measurement(own["seconds"], own["warm_up"], not own["no_bound"], files.get("trace"))
        figures = measure(config, task, what)
        show(figures)
    if "json" in files:
        _write_json(files["json"], figures)
    return 0


def plot(arguments: list[str]) -> int:
    """Draw the curves of runs."""
    parser = Parser(
        prog=f"{names.typed} plot", description="Draw the curves of runs, and write when each return was first reached."
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="Runs to draw: each a run folder, a run's name in savedir, or latest.")
    add(
        "--out",
        type=Path,
        default=Path("curve.png"),
        metavar="FILE",
        help="The picture to write; a JSON file with the same name goes beside it [curve.png].",
    )
    add(
        "--labels", nargs="+", metavar="NAME", help="Labels of the curves, one for each run [names of the run folders]."
    )
    add("--title", default="", metavar="TEXT", help="A heading for the picture.")
    add(
        "--levels",
        type=float,
        nargs="*",
        default=[0.0, 10.0, 18.0, 19.0, 20.0],
        metavar="X",
        help="Mean returns for which the JSON file says when each was first reached [0 10 18 19 20].",
    )
    add("--savedir", default=RunConfig.savedir, metavar="DIR", help="The folder that holds the run folders [runs].")
    values = parser.parse(arguments)
    from beast.tools.plot import draw

    folders = [finding.find_run(run, values["savedir"]) for run in values["runs"]]
    labels = values["labels"] or [folder.name for folder in folders]
    if len(labels) != len(folders):
        parser.error(f"--labels: {len(folders)} runs need as many labels, got {len(labels)}")
    api.make_writable("out", values["out"].parent)
    draw(folders, labels, values["out"], values["title"], values["levels"])
    print(f"{values['out']}, {values['out'].with_suffix('.json')}")
    return 0


def _write_json(path: Path, value: Any) -> None:
    try:
        write_json(path, value)
    except OSError as error:
        raise ConfigError(f"cannot write --json {path}: {error.strerror}") from error


def train_parser(prog: str, description: str, arguments: list[str]) -> Parser:
    """Make a parser with all settings, including those of the algorithm and the model that `arguments` name.

    Args:
        prog: what was typed, for the help.
        description: first lines of the help.
        arguments: what is to be parsed; only `--algorithm` and `--model` are looked for.
    """
    first = Parser(prog=prog, add_help=False)
    first.add_argument("--algorithm", default=WIDEST["algorithm"])
    first.add_argument("--model", default=WIDEST["model"])
    named = first.parse_known_args(arguments)[0]
    parser = Parser(prog=prog, description=description, brief=True)
    for section in Config.sections(named.algorithm, named.model).values():
        parser.add_dataclass(section)
    return parser


def _add_trust(parser: Parser) -> None:
    """Add `--trust`, which is not a setting: a checkpoint cannot set it."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="Allow a checkpoint that somebody else made to run the code that it names (docs/faults.md).",
    )
