"""Checkpoints: written atomically, kept by number, loaded without executing anything from the file.

A run folder holds `checkpoints/step_000000123456.pt` and `checkpoints/latest.pt`, a link to the newest. PyTorch writes zip
files, whose records carry checksums; it does not look at them, so `load` does.
"""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from beast import trust
from beast.form import misfit

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
    write_tensors(path, state | {"signature": trust.sign(state["config"])})
    link = folder / f".{LATEST}.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    os.replace(link, folder / LATEST)
    if keep:
        for old in [file for file in newest_first(run) if file != path][keep - 1 :]:
            with suppress(OSError):
                old.unlink()
    return path


def saved(run: Path) -> list[Path]:
    """All checkpoints of a run, by step."""
    return sorted(p for p in folder_of(run).glob("step_*.pt") if re.fullmatch(r"step_\d+\.pt", p.name))


def newest_first(run: Path) -> list[Path]:
    """All checkpoints of a run as they were written: one that went on from an earlier step has the smaller numbers."""
    return sorted(saved(run), key=lambda file: (file.stat().st_mtime_ns, file.name), reverse=True)


def load(path: Path) -> dict[str, Any]:
    """Read one checkpoint file.

    Raises:
        CheckpointError: if it is damaged, or no checkpoint, or holds what no checkpoint holds.
    """
    try:
        data = io.BytesIO(path.read_bytes())
        with zipfile.ZipFile(data) as records:
            if (record := records.testzip()) is not None:
                raise zipfile.BadZipFile(f"wrong checksum of {record}")
        data.seek(0)
        state: dict[str, Any] = torch.load(data, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint {path}") from None
    except Exception as error:
        reason = " ".join(str(error).split()).partition(". ")[0][:200] or type(error).__name__
        raise CheckpointError(f"{path} is damaged or no checkpoint ({reason})") from error
    if not isinstance(state, dict) or not {"config", "learner"} <= set(state):
        raise CheckpointError(f"{path} is not a checkpoint of this program")
    if (part := misfit(state)) is not None:
        raise CheckpointError(f"{path} is damaged or not a checkpoint of this program ({part})")
    return state


def settings_of(path: Path, state: dict[str, Any], given: dict[str, Any], trusted: bool) -> dict[str, Any]:
    """The settings in a checkpoint, once it is certain that following them runs no code but what the reader agreed to.

    Args:
        path: where `state` was read from.
        given: what the reader typed: settings of the same value need no trust.
        trusted: the reader trusts the file.

    Raises:
        CheckpointError: if it names code, and neither is it this user's nor did the reader name or trust that.
    """
    config: dict[str, Any] = state["config"]
    named = {name: value for name, value in trust.code_in(config).items() if name not in given or given[name] != value}
    if not named or trusted:
        return config
    hint = ""
    try:
        if trust.is_own(config, state.get("signature")):
            return config
    except trust.KeyRefused as error:
        hint = f" (the key {error})"
    flags = ", ".join(
        f"--{name} {value if isinstance(value, str) else repr(value)}"[:80] for name, value in named.items()
    )
    raise CheckpointError(
        f"{path} names code ({flags}) and was not made by you on this machine{hint}: add --trust if you trust it, or "
        f"give the same {' and '.join(f'--{name}' for name in named)}"
    )


def load_newest(name: str, savedir: str, tell: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
    """Find what a user types (see `find`) and read it; of a run, the newest checkpoint that is not damaged.

    Args:
        tell: takes one line for each that is passed over.

    Returns:
        The file, and what is in it.

    Raises:
        CheckpointError: if there is none, or the file itself was named and is damaged.
    """
    path = find(name, savedir)
    others = [file for file in newest_first(run_of(path)) if file.name != path.resolve().name]
    named = Path(name).is_file()
    damaged: list[str] = []
    for file in [path] if named else [path.with_name(path.resolve().name), *others]:
        try:
            state = load(file)
        except CheckpointError as error:
            damaged.append(str(error))
        else:
            for line in damaged:
                tell(f"{line}; taking {file.name} instead")
            return file, state
    hint = f"; so are the {len(others)} before it" if others else ""
    if named and others:
        hint = f"; take another one of {path.parent}: {', '.join(file.name for file in others[:3])}"
    raise CheckpointError(damaged[0] + hint)


def find(name: str, savedir: str) -> Path:
    """The newest checkpoint of what a user types: a file, a run folder, a run's name in savedir, or `latest`.

    Raises:
        CheckpointError: if there is none there.
    """
    if Path(name).is_file():
        return Path(name)
    run = find_run(name, savedir)
    latest = folder_of(run) / LATEST
    if latest.exists():
        return latest
    if files := newest_first(run):
        return files[0]
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


def write_tensors(path: Path, value: Any) -> None:
    """Atomically, as PyTorch saves.

    Raises:
        OSError: if it cannot be written; `path` is then as it was.
    """
    data = io.BytesIO()  # in memory first: PyTorch's own writer turns a full disk into "unexpected pos 193408"
    torch.save(value, data)
    write_atomically(path, lambda file: file.write(data.getbuffer()))


def write_json(path: Path, value: Any) -> None:
    """Atomically, indented."""
    write_atomically(path, lambda file: file.write((json.dumps(value, indent=2) + "\n").encode()))
