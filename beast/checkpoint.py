"""Checkpoints: written atomically, kept by number, loaded without executing anything from the file.

A run folder holds `checkpoints/step_000000123456.pt` and `checkpoints/latest.pt`, a link to the newest.
"""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

LATEST = "latest.pt"


class CheckpointError(ValueError):
    """There is no usable checkpoint. The message is one line that says what to do."""


def folder_of(run: Path) -> Path:
    return run / "checkpoints"


def run_of(path: Path) -> Path:
    """The run folder of a checkpoint file."""
    return path.parent.parent


def save(run: Path, state: dict[str, Any], step: int, keep: int) -> Path:
    """Write a checkpoint and point `latest.pt` to it; remove all but the `keep` newest (0: none).

    Raises:
        OSError: if it cannot be written; the ones before it are untouched.
    """
    folder = folder_of(run)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:012d}.pt"
    data = io.BytesIO()  # in memory first: PyTorch's own writer turns a full disk into "unexpected pos 193408"
    torch.save(state, data)
    write_atomically(path, lambda file: file.write(data.getbuffer()))
    link = folder / f".{LATEST}.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    os.replace(link, folder / LATEST)
    if keep:
        for old in sorted(saved(run), key=lambda file: file.stat().st_mtime)[:-keep]:
            with suppress(OSError):
                old.unlink()
    return path


def saved(run: Path) -> list[Path]:
    """All checkpoints of a run, oldest first."""
    return sorted(p for p in folder_of(run).glob("step_*.pt") if re.fullmatch(r"step_\d+\.pt", p.name))


def load(path: Path) -> dict[str, Any]:
    """Read one checkpoint file.

    Raises:
        CheckpointError: if it is damaged or no checkpoint.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint {path}") from None
    except Exception as error:
        reason = " ".join(str(error).split()).partition(". ")[0][:200] or type(error).__name__
        others = [other.name for other in saved(run_of(path)) if other.name != path.resolve().name]
        hint = f"; take an earlier one of {path.parent}: {', '.join(others[-3:])}" if others else ""
        raise CheckpointError(f"{path} is damaged or no checkpoint ({reason}){hint}") from error
    if not isinstance(state, dict) or not {"config", "learner"} <= set(state):
        raise CheckpointError(f"{path} is not a checkpoint of this program")
    return state


def find(name: str, savedir: str) -> Path:
    """A checkpoint file from what a user types: a file, a run folder, a run's name in savedir, or `latest`.

    Raises:
        CheckpointError: if there is none there.
    """
    if Path(name).is_file():
        return Path(name)
    run = find_run(name, savedir)
    latest = folder_of(run) / LATEST
    if latest.exists():
        return latest
    if files := saved(run):
        return files[-1]
    raise CheckpointError(f"{run} has no checkpoint yet (was it run with --disable_checkpoint?)")


def find_run(name: str, savedir: str) -> Path:
    """A run folder from its path, its name in savedir, or one of its checkpoint files.

    Raises:
        CheckpointError: if there is none.
    """
    for path in (Path(name), Path(savedir) / name, run_of(Path(name))):
        if (path / "config.json").is_file():
            return path.resolve() if path.is_symlink() else path
    known = sorted(p.parent.name for p in Path(savedir).glob("*/config.json") if not p.parent.is_symlink())
    there = f"in {savedir} are: {', '.join(known[-5:])}" if known else f"there are no runs in {savedir}"
    raise CheckpointError(f"no run {name!r} (looked for {name}/config.json and in --savedir {savedir}); {there}")


def write_atomically(path: Path, write: Any) -> None:
    """Call `write(file)` on a temporary file beside `path`, make it durable, and put it in place.

    Raises:
        OSError: if anything fails; `path` is then as it was.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def write_json(path: Path, value: Any) -> None:
    """Atomically, indented."""
    write_atomically(path, lambda file: file.write((json.dumps(value, indent=2) + "\n").encode()))
