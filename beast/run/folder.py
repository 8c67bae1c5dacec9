"""The folder of a run: its name, what is written at the start, and how a run is resumed."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import psutil

import beast
from beast.core.errors import CheckpointError, ConfigError
from beast.processes import machine, paths
from beast.processes.launch import launch
from beast.report.files import write_json
from beast.run import checkpoint, finding
from beast.settings.config import Config, RunConfig, is_name

_LOCK = ".lock"

# Another value of one of these means another network, task or optimiser, which no checkpoint fits.
_FIXED = (
    "env", "env_kwargs", "full_action_set", "action_repeat", "frame_stack", "resize", "grayscale", "max_episode_steps",
    "wrapper", "repeat_action_probability", "life_loss", "fire_on_life_loss", "preset", "model", "use_lstm",
    "normalise_observations", "scale_rewards", "popart", "algorithm", "rmsprop_form", "momentum", "center_pixels",
    "last_step_input",
)  # fmt: skip


def make(config: Config) -> Path:
    """Make the folder of a new run.

    Raises:
        ConfigError: if it cannot be made.
    """
    name = config.run.xpid or f"{_plain(config.environment.env)}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = Path(config.run.savedir) / name
    with _writing_to(folder, "; choose another --savedir"):
        if not config.run.xpid:
            return _make_new(folder)
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def begin(folder: Path, config: Config) -> None:
    """Write a new run's `config.json`. With `--resume auto`, files of a run without a checkpoint are moved aside.

    Raises:
        ConfigError: if another run is in the folder already, or it cannot be written.
    """
    if (folder / "config.json").exists() and (config.run.resume != "auto" or checkpoint.saved(folder)):
        go_on = f"go on with it (--resume {folder.name})"
        what = go_on if checkpoint.saved(folder) else "remove it (it has no checkpoint)"
        raise ConfigError(f"{folder} holds a run already: {what} or choose another --xpid")
    with _writing_to(folder, "; choose another --savedir"):
        if (folder / "config.json").exists():
            aside = _make_new(folder / "before")
            files = [file for file in folder.iterdir() if file.is_file() and file.name != _LOCK]
            for file in sorted(
                files, key=lambda file: file.name == "config.json"
            ):  # config.json last: while it is there, the others are moved again
                os.replace(file, aside / file.name)
        write_config(folder, config)


def undo(folder: Path) -> None:
    """Remove what `make` and `begin` made, for a run that could not start; the folder stays if it holds more."""
    with suppress(OSError):
        (folder / "config.json").unlink()
        (folder / _LOCK).unlink()
        folder.rmdir()
        folder.parent.rmdir()  # only if it is empty


@contextmanager
def _writing_to(folder: Path, advice: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}{advice}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder; the kernel releases the lock however this process ends.

    It is a record lock: children do not inherit it, and the kernel knows the holder. On a file system without locks there
    is none.

    Raises:
        ConfigError: if another live run holds it, or the folder holds pipes, devices or sockets, which no run makes.
    """
    with _writing_to(folder):
        for path in [*folder.iterdir(), *checkpoint.folder_of(folder).glob("*")]:
            if path.exists() and not path.is_file() and not path.is_dir():  # opening one might wait forever
                raise ConfigError(f"{path} is neither a file nor a folder: remove it")
        file = open(folder / _LOCK, "ab")  # noqa: SIM115
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ConfigError(
                    f"{folder} is in use by a live run{_holder(file)}: wait for its end, or choose another --xpid"
                ) from error
        yield


def _holder(file: IO[bytes]) -> str:
    """Return a description of the process that locked the file, where the kernel's answer can be read."""
    if sys.platform != "linux":
        return ""
    layout = "hhqqi"  # struct flock: type, whence, start, length, process
    with suppress(OSError):
        asked = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        pid = struct.unpack(layout, asked)[-1]
        return f" (pid {pid})" if pid > 0 else ""
    return ""


def _make_new(folder: Path) -> Path:
    """Make this folder, or one with a number after its name if another run of the same second has it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(2):
        try:
            folder.mkdir()
            break
        except FileExistsError:
            folder = folder.with_name(f"{folder.name.partition('_')[0]}_{number}")
    return folder


def write_config(folder: Path, config: Config) -> None:
    """Write everything needed to repeat the run; no environment variables."""
    write_json(
        folder / "config.json",
        {"flags": config.flat() | {"resume": None}, **_circumstances()},
    )


def _circumstances() -> dict[str, Any]:
    return {
        "versions": {"beast": beast.__version__}
        | {name: _version(name) for name in ("torch", "numpy", "gymnasium", "ale-py")},
        "git_commit": git_commit(),
        "machine": machine.describe_machine(),
        "ranks": launch().size,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def record_resume(folder: Path, config: Config, step: int) -> None:
    """Note in `config.json` that a run is resumed: from which step, with which flags, on which machine.

    Raises:
        CheckpointError: if `config.json` is damaged.
        ConfigError: if it cannot be written.
    """
    try:
        written = json.loads((folder / "config.json").read_text())
        flags = config.flat() | {"resume": None}
        changed = {name: value for name, value in flags.items() if written["flags"].get(name) != value}
        resumed = {"step": step, "flags": changed, **_circumstances()}
        written["resumed"] = [*written.get("resumed", []), resumed]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder}/config.json is damaged: {error!r:.200}") from error
    except OSError as error:
        raise CheckpointError(f"{folder}/config.json cannot be read: {error.strerror}") from error
    with _writing_to(folder):
        write_json(folder / "config.json", written)


def run_to_resume(given: dict[str, Any]) -> Path | None:
    """Return the folder of the run that `--resume` names, or None if a new run is to be made.

    `auto` means the run that `--xpid` names, if it has a checkpoint.

    Raises:
        CheckpointError: if there is no such run.
        ConfigError: if `auto` comes without `--xpid`.
    """
    name, savedir = given.get("resume"), given.get("savedir", RunConfig.savedir)
    if not name:
        return None
    if name != "auto":
        return finding.find_run(name, savedir)
    if not given.get("xpid"):
        raise ConfigError("--resume auto must know which run: add --xpid NAME")
    folder = Path(savedir) / given["xpid"]
    return finding.find_run(str(folder), savedir) if checkpoint.saved(folder) else None


def flags_to_resume(run: Path, flags: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return the flags of a run's checkpoint, replaced by those given now.

    Raises:
        ConfigError: if one given now belongs to another network, task, optimiser or run.
    """
    if given.get("xpid") and given.get("resume") != "auto":
        raise ConfigError(f"--xpid {given['xpid']} names a new run, --resume goes on in {run}: leave one of them out")
    for name in _FIXED:
        if name in given and given[name] != flags.get(name):
            raise ConfigError(f"--{name} {given[name]} cannot go on from {run}: it was made with {flags.get(name)}")
    if not is_name(flags.get("xpid")):
        flags = flags | {"xpid": None}  # from a version that allowed such names; the folder has it already
    return flags | {"record_unrolls": None} | given  # no checkpoint says where else files are to be written


def point_latest_to(folder: Path) -> None:
    """Point `latest` in its savedir to the run; where links cannot be made there is none."""
    latest, temporary = folder.parent / "latest", folder.parent / f".latest.{os.getpid()}"
    for left in folder.parent.glob(".latest.*"):  # left by a run that was killed meanwhile
        with suppress(OSError, ValueError):
            if not psutil.pid_exists(int(left.name.rpartition(".")[2])):
                left.unlink()
    with suppress(OSError):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(folder.name)
        os.replace(temporary, latest)


def _plain(env: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "-" for c in env)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def git_commit() -> str:
    """Return the commit of the source tree; an installed package may lie in another repository."""
    if not paths.IN_SOURCE_TREE:
        return "unknown"
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()
