"""What is measured, in order of value. On a CPU everything is small: it shows that the command works, no more.

Imports stand inside the functions: this list must be read where the packages are not there yet, and each part's own process
is the one that may hang or crash in them.
"""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.gpu.part import Figures, Session
from benchmarks.gpu.processes import end, start

PONG = "PongNoFrameskip-v4"
MODELS = ("atari_shallow", "impala_shallow", "impala_resnet")
BATCH_SIZES = (32, 128, 512)

# Whole runs: one flag after the other is changed from these.
MANY = {"env": PONG, "model": MODELS[0], "trainer": "polybeast", "num_actors": 480, "batch_size": 128}
FEW = MANY | {"num_actors": 48, "batch_size": 32}
SMALL = {"env": PONG, "trainer": "polybeast", "model": "impala_shallow", "num_actors": 2, "num_actor_processes": 1,
         "batch_size": 2, "unroll_length": 5}  # fmt: skip

TO_STOP = 10.0  # seconds that a training run may take to end


class RunFailed(RuntimeError):
    """run.py ended with an error; the message is its line."""


# -- machine, emulator, tests -----------------------------------------------------------------------------------------


def machine(session: Session) -> None:
    """Threads per core, clocks, versions, driver; what a launch, a wait and a copy cost."""
    from benchmarks.gpu.machine import costs, describe

    found = describe()
    session.report("machine", found)
    session.measure({"costs": partial(costs, "cuda" if found["gpu"] else "cpu", 0.3 if found["gpu"] else 0.02)})


def emulator(session: Session) -> None:
    """Steps a second of Pong, on one core and on all at once."""
    from beast.processes.machine import usable_cores
    from benchmarks.gpu.emulator import rate

    games, seconds = (30, 2.0) if session.on_gpu else (2, 0.2)
    session.measure(
        {"one core": partial(rate, 1, games, seconds), "all cores": partial(rate, usable_cores(), games, seconds)}
    )


def tests(session: Session) -> None:
    """`pytest -m gpu`, a figure a test, whole runs last. Without a GPU they are skipped."""
    import pytest

    # Without pytest-timeout its option in setup.cfg would be refused: a part has a limit of its own.
    arguments = ["-m", "gpu", "-o", "addopts=", "-p", "no:cacheprovider", "-q", "--tb=short", "tests/gpu"]
    status = pytest.main(arguments, plugins=[Outcomes(session)])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(f"pytest ended with {pytest.ExitCode(status).name}; see the log")


class Outcomes:
    """A pytest plugin: hands over what became of each test as soon as it is known."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Only those that are not known yet; those that compile or start a run of their own after the quick ones."""
        items[:] = [item for item in items if item.name not in self._session.done]
        items.sort(key=_is_long)  # otherwise they keep their order

    def pytest_runtest_protocol(self, item: Any) -> bool | None:
        """Whatever does not fit into the time that is left is not begun."""
        if self._session.left() >= (20.0 if _is_long(item) and self._session.on_gpu else 2.0):
            return None  # go on as always
        self._session.leave_out(item.name)
        return True

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Report a test's outcome, its duration and the last line of its error."""
        if report.when == "call" or report.outcome != "passed":
            error = report.longrepr if isinstance(report.longrepr, tuple) else [str(report.longrepr or "")]
            line = next((line for line in str(error[-1]).splitlines()[::-1] if line.strip()), "")
            figures = {"outcome": report.outcome, "seconds": report.duration, "why": line[:300]}
            self._session.report(report.nodeid.split("::")[-1], figures, finished=report.outcome != "failed")


def _is_long(item: Any) -> bool:
    """Whether a test starts a run or compiles."""
    return "start" in item.fixturenames or "compiled" in item.name


# -- the learner alone ------------------------------------------------------------------------------------------------


def learner(session: Session) -> None:
    """An update of each model at several batch sizes, with and without publishing; launches and hidden waits."""
    if session.on_gpu:
        base = {"env": PONG, "trainer": "polybeast"}
        flags = [base | {"model": model, "batch_size": size} for model, size in product(MODELS, BATCH_SIZES)]
        flags.append(base | {"model": MODELS[0], "batch_size": 32, "use_lstm": True})
    else:
        base = {"env": PONG, "unroll_length": 5, "batch_size": 2}
        flags = [base | {"model": model} for model in MODELS] + [base | {"model": MODELS[1], "use_lstm": True}]
    _alone(session, flags)


def compiled(session: Session) -> None:
    """An update by torch.compile, and a whole run with it."""
    if not session.on_gpu:
        _alone(session, [{"env": "Catch-v0", "model": "mlp", "batch_size": 2, "compile_model": True}])
        return
    base = {"env": PONG, "trainer": "polybeast", "compile_model": True}
    _alone(session, [base | {"model": MODELS[2], "batch_size": 128}, base | {"model": MODELS[0], "batch_size": 32}])
    _profiles(session, [MANY | {"model": MODELS[2], "compile_model": True}], needs=60.0)


def _alone(session: Session, settings: list[dict[str, Any]]) -> None:
    from benchmarks.gpu.alone import measure

    seconds = 1.0 if session.on_gpu else 0.02
    session.measure({_name(flags): partial(measure, flags, seconds) for flags in settings})


# -- whole runs -------------------------------------------------------------------------------------------------------


def runs(session: Session) -> None:
    """Steps a second of both beasts: actors, batch size, where inference runs, when weights change."""
    if not session.on_gpu:
        step = {"inference": "thread", "weights_sync": "step"}  # the other way is how `resnet` runs
        _profiles(session, [SMALL | step, SMALL | {"trainer": "monobeast"}])
        return
    mono, step, thread = {"trainer": "monobeast"}, {"weights_sync": "step"}, {"inference": "thread"}
    cores = len(os.sched_getaffinity(0))
    _profiles(
        session,
        [
            MANY,
            MANY | step,
            FEW,
            FEW | step,
            MANY | {"batch_size": 32},
            MANY | {"batch_size": 32} | step,
            MANY | thread,
            MANY | mono,
            FEW | mono,
            FEW | thread,
            MANY | {"num_actor_processes": max(1, cores - 1)},
            MANY | {"model": MODELS[1]},
            FEW | {"batch_size": 128},
            MANY | mono | {"batch_size": 32},
        ],
    )


def resnet(session: Session) -> None:
    """A whole run of the deep network."""
    if session.on_gpu:
        _profiles(session, [MANY | {"model": MODELS[2]}, MANY | {"model": MODELS[2], "batch_size": 32}])
    else:
        _profiles(session, [SMALL | {"model": MODELS[2]}])


def _profiles(session: Session, settings: list[dict[str, Any]], needs: float = 18.0) -> None:
    """`run.py profile` of each; one that hangs is ended before it has cost all others their time."""
    warm_up, seconds = (3.0, 5.0) if session.on_gpu else (0.1, 0.3)

    def measure(flags: dict[str, Any]) -> Figures:
        return profile_of(flags, warm_up, seconds, min(session.left(), 3 * needs))

    points = {_name(flags): partial(measure, flags) for flags in settings}
    session.measure(points, needs if session.on_gpu else 3.0)


def profile_of(flags: dict[str, Any], warm_up: float, seconds: float, patience: float) -> Figures:
    """What `run.py profile` finds with these flags, the command that finds it again, and what nvidia-smi saw meanwhile.

    Args:
        flags: of the trainer, by name.
        warm_up: seconds before measuring.
        seconds: how long to measure.
        patience: seconds that it may take in total.

    Raises:
        RunFailed: if it ends with an error, or not in time.
    """
    from benchmarks.gpu import nvidia

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        own = ["--no_bound", "--warm_up", f"{warm_up:g}", "--seconds", f"{seconds:g}"]
        command = ["run.py", "profile", *_arguments(flags), *own]
        with nvidia.watched() as gpu:
            run_program([sys.executable, *command, "--json", file], patience)
        figures = json.loads(file.read_text())
    kept = ("device", "dtype", "learner_threads", "whole")
    return {
        "flags": flags,
        "command": shlex.join(["python", *command]),
        **{key: figures[key] for key in kept},
        "gpu": gpu,
    }


def run_program(command: list[Any], seconds: float) -> None:
    """Run a program to its end.

    Args:
        command: the program and its arguments.
        seconds: most that it may take; then it is ended.

    Raises:
        RunFailed: with its own last line, if it fails, or if it takes too long.
    """
    with tempfile.TemporaryFile() as errors:
        process = start(command, stdin=subprocess.DEVNULL, stderr=errors)
        deadline = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        late = process.poll() is None
        if late:
            end(process, signal.SIGTERM, 2.0)
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    print(said, file=sys.stderr, end="")
    if late:
        raise RunFailed(f"it took longer than {seconds:.0f} s")
    if process.returncode:
        line = (said.strip() or f"exit status {process.returncode}").splitlines()[-1]
        raise RunFailed(line.removeprefix("run.py: error: "))


def _arguments(flags: dict[str, Any]) -> list[str]:
    """For run.py's command line; beast.settings.flags has it too, but imports torch."""
    return [
        part
        for name, value in flags.items()
        for part in (f"--{name}", str(value).lower() if value is True else str(value))
    ]


def _name(flags: dict[str, Any]) -> str:
    """Of a point, by its flags."""
    words = [flags.get("model", ""), "lstm" if flags.get("use_lstm") else "", flags.get("trainer", "")]
    words += [f"{flags['num_actors']} actors" if "num_actors" in flags else "", f"batch {flags['batch_size']}"]
    named = ("env", "model", "use_lstm", "trainer", "num_actors", "batch_size", "unroll_length")
    words += [f"{name} {value}" for name, value in flags.items() if name not in named]
    return " ".join(filter(None, words))


# -- learning ---------------------------------------------------------------------------------------------------------


def pong(session: Session) -> None:
    """The seconds from the command to a mean return of 18 in Pong: a training run, ended when it is there or time is up."""
    if session.on_gpu:
        races, level = {"published flags": FEW, "480 actors, batch 128": MANY}, 18.0
    else:  # small: over after 100 games
        races, level = {"Catch": {"env": "Catch-v0", "num_actors": 4, "num_actor_processes": 1}}, -1.0
    for name, flags in races.items():
        if name in session.done:
            continue
        seconds = session.left() - TO_STOP
        if seconds < (30.0 if session.on_gpu else 10.0):
            session.leave_out(name)
            continue
        try:
            figures = race(flags, level, seconds)
            session.report(name, figures, finished=figures["reached"] is not None or not session.on_gpu)
        except RunFailed as error:
            session.fail(name, error)


def race(flags: dict[str, Any], level: float, seconds: float) -> Figures:
    """Train until the mean return of the last 100 full games is there, or for so long, and end the run as Ctrl-C would.

    Returns:
        `reached` (seconds since the command, steps and seconds of the run's own clock; None if it was cut), `at_end` and a
        thinned `curve` of the same with returns, `ended_cleanly` and the seconds that this took.

    Raises:
        RunFailed: if the run ends by itself.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as errors:
        logs = Path(folder) / "run" / "logs.csv"
        own = ["--savedir", folder, "--xpid", "run", "--report_every", "0.5", "--disable_checkpoint"]
        command: list[Any] = [sys.executable, "run.py", *_arguments(flags), *own]
        began = time.monotonic()
        process = start(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
        seen: dict[float, float] = {}  # from a row's time to ours when it was first there
        try:
            while (now := time.monotonic() - began) < seconds:
                curve = read_curve(logs)
                for row in curve:
                    seen.setdefault(row["time"], now)
                if process.poll() is not None:
                    errors.seek(0)
                    said = errors.read().decode(errors="replace").strip() or f"exit status {process.returncode}"
                    raise RunFailed(said.splitlines()[-1].removeprefix("run.py: error: "))
                if first_at(curve, level):
                    break
                time.sleep(0.1)
            trained, stopping = time.monotonic() - began, time.monotonic()
        finally:
            cleanly = end(process, signal.SIGINT, TO_STOP)
        took = time.monotonic() - stopping
        curve = read_curve(logs)
        reached = first_at([row for row in curve if row["time"] in seen], level)
        every = max(1, len(curve) // 60)
        return {
            "flags": flags,
            "command": shlex.join(["python", "run.py", *_arguments(flags)]),
            "level": level,
            "trained_s": trained,
            "reached": {**reached, "seconds": seen[reached["time"]]} if reached else None,
            "at_end": curve[-1] if curve else None,
            "ended_cleanly": cleanly,
            "stop_s": took,
            "curve": curve[::every],
        }


def read_curve(logs: Path) -> list[dict[str, float]]:
    """Rows of logs.csv, from a run that goes on: `time` in seconds, steps, games so far, and their mean return if known."""
    rows = []
    with suppress(FileNotFoundError):
        whole, _, _ = logs.read_text().rpartition("\n")  # the last line may be half there
        for row in csv.DictReader(whole.splitlines()):
            found = {"time": float(row["time"]), "steps": float(row["step"]), "games": float(row["episodes"])}
            if row["mean_episode_return"]:
                found["return"] = float(row["mean_episode_return"])
            rows.append(found)
    return rows


def first_at(curve: list[dict[str, float]], level: float) -> dict[str, float] | None:
    """The first row whose mean over 100 full games is at the level."""
    return next((row for row in curve if row["games"] >= 100 and row.get("return", level - 1) >= level), None)


# -- all of them ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One question."""

    name: str
    share: float
    """of the time, in seconds of ten minutes"""
    least: float
    """seconds without which it is not begun; on a CPU half"""
    run: Callable[[Session], None]


PARTS = (
    Part("machine", 15, 60, machine),
    Part("emulator", 20, 30, emulator),
    Part("tests", 70, 40, tests),
    Part("learner", 75, 30, learner),
    Part("runs", 205, 40, runs),
    Part("resnet", 40, 40, resnet),
    Part("compile", 65, 60, compiled),
    Part("pong", 110, 60, pong),
)
