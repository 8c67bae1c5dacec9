"""The folder of a run: its name, what is written at its start, and how a run is taken up again."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from beast import checkpoint, system
from beast.checkpoint import CheckpointError
from beast.config import Config, ConfigError

# Another value of one of these is another network, task or optimiser: no checkpoint can follow.
_FIXED = (
    "env", "env_kwargs", "full_action_set", "preset", "model", "use_lstm", "algorithm",
    "rmsprop_form", "momentum",
)  # fmt: skip


def create(config: Config) -> Path:
    """Make the folder of a new run and write `config.json`.

    Raises:
        ConfigError: if it cannot be made, or is there already.
    """
    name = config.run.xpid or f"{_plain(config.environment.env)}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = Path(config.run.savedir) / name
    if config.run.xpid and (folder / "config.json").exists():
        what = f"go on with it (--resume {name})" if checkpoint.saved(folder) else "remove it (it has no checkpoint)"
        raise ConfigError(f"{folder} holds a run already: {what} or choose another --xpid")
    try:
        if config.run.xpid:
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = _make_new(folder)
        write_config(folder, config)
        _point_latest_to(folder)
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}; choose another --savedir") from error
    return folder


def _make_new(folder: Path) -> Path:
    """This folder, or one with a number behind its name if another run of the same second has it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(2):
        try:
            folder.mkdir()
            break
        except FileExistsError:
            folder = folder.with_name(f"{folder.name.partition('_')[0]}_{number}")
    return folder


def write_config(folder: Path, config: Config) -> None:
    """Everything needed to repeat the run; nothing of the environment's variables."""
    checkpoint.write_json(
        folder / "config.json",
        {"flags": config.flat() | {"resume": None}, **_circumstances()},
    )


def _circumstances() -> dict[str, Any]:
    return {
        "versions": {name: _version(name) for name in ("beast", "torch", "numpy", "gymnasium", "ale-py")},
        "git_commit": git_commit(),
        "machine": system.machine(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def take_up(folder: Path, config: Config, step: int) -> None:
    """Note in `config.json` that a run goes on from a step, with which flags and where, and point `latest` to it.

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
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}/config.json is damaged: {error!r}") from error
    try:
        checkpoint.write_json(folder / "config.json", written)
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}") from error
    _point_latest_to(folder)


def flags_to_resume(run: Path, flags: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The flags that a run's checkpoint was made with, but for those given now.

    Raises:
        ConfigError: if one given now belongs to another network, task, optimiser or run.
    """
    if given.get("xpid"):
        raise ConfigError(f"--xpid {given['xpid']} names a new run, --resume goes on in {run}: leave one of them out")
    for name in _FIXED:
        if name in given and given[name] != flags.get(name):
            raise ConfigError(f"--{name} {given[name]} cannot go on from {run}: it was made with {flags.get(name)}")
    return flags | given


def _point_latest_to(folder: Path) -> None:
    """Where links cannot be made there is none."""
    latest, temporary = folder.parent / "latest", folder.parent / f".latest.{os.getpid()}"
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
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()
