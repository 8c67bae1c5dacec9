"""Checkpoints: written atomically, kept by number, loaded without executing anything from the file.

A run folder holds `checkpoints/step_000000123456.pt` and `checkpoints/latest.pt`, a link to the newest. PyTorch writes zip
files, whose records carry checksums; it does not look at them, so `load` does.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from beast.core.errors import CheckpointError
from beast.report.files import NUMBER_RECORD, write_tensors
from beast.run import trust
from beast.run.form import misfit

LATEST = "latest.pt"
FORMAT = 2
"""The number in each checkpoint. Those of the first format have none; `_upgraded` reads them."""
_TEMPORARY = r"\.(step_\d+\.pt|update_\d+\.pt|latest\.pt|config\.json|logs\.csv|spec\.json|unrolls_\w+\.npz)\.\w+"


def folder_of(run: Path) -> Path:
    """Return the folder of a run's checkpoints."""
    return run / "checkpoints"


def run_of(path: Path) -> Path:
    """Return the run folder of a checkpoint file."""
    return path.parent.parent


def save(run: Path, state: dict[str, Any], step: int, keep: int) -> Path:
    """Write a checkpoint, point `latest.pt` to it, and remove all but the `keep` newest (0 removes none).

    Raises:
        OSError: if it cannot be written; earlier checkpoints are unchanged.
    """
    folder = folder_of(run)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:012d}.pt"
    before = newest_first(run)
    number = 1 + max(map(_number, before), default=0)
    write_tensors(path, state | {"signature": trust.sign(state["config"])}, number)
    link = folder / f".{LATEST}.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    os.replace(link, folder / LATEST)
    if keep:
        whole = [file for file in before if file != path and _number(file) >= 0]
        for old in [*whole[keep - 1 :], *(file for file in before if file != path and file not in whole)]:
            with suppress(OSError):
                old.unlink()
    remove_left_behind(run)
    return path


def remove_left_behind(run: Path) -> None:
    """Remove temporary files that killed writers have left: those that no process has locked."""
    for file in [*run.glob(".*"), *run.glob("*/.*")]:
        if not re.fullmatch(_TEMPORARY, file.name):
            continue
        with suppress(OSError):
            if file.is_symlink():
                if not psutil.pid_exists(int(file.name.rpartition(".")[2])):
                    file.unlink()
                continue
            if not file.is_file():  # opening a pipe would wait for its other end
                continue
            with open(file, "rb") as left:
                fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.unlink()


def _number(file: Path) -> int:
    """Return a checkpoint's number in the order of writing; 0 if it is older than numbers, -1 if it is damaged."""
    try:
        with zipfile.ZipFile(file) as records:
            return int(records.read(NUMBER_RECORD)) if NUMBER_RECORD in records.namelist() else 0
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError):
        return -1


def saved(run: Path) -> list[Path]:
    """Return all checkpoints of a run, by step."""
    found = folder_of(run).glob("step_*.pt")
    return sorted(p for p in found if re.fullmatch(r"step_\d+\.pt", p.name) and p.is_file())


def newest_first(run: Path) -> list[Path]:
    """Return all checkpoints of a run by the number written in each, because clocks and steps may go back.

    Damaged ones come first, so that a reader of the newest reports them. Those without a number count as the oldest.
    """
    numbers = {file: _number(file) for file in saved(run)}

    def place(file: Path) -> tuple[bool, int, int, str]:
        with suppress(OSError):
            return numbers[file] < 0, numbers[file], file.stat().st_mtime_ns if numbers[file] < 1 else 0, file.name
        return False, 0, 0, file.name  # removed meanwhile

    return sorted(numbers, key=place, reverse=True)


def load(path: Path) -> dict[str, Any]:
    """Read one checkpoint file.

    Raises:
        CheckpointError: if it is damaged, is not a checkpoint, or has contents that no checkpoint has.
    """
    if not path.is_file():  # reading a pipe might never end
        raise CheckpointError(f"no checkpoint {path}")
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
    number = state.get("format", 1)
    if type(number) is not int or not 1 <= number <= FORMAT:
        raise CheckpointError(
            f"{path} has format {number!r:.20}, this program reads up to {FORMAT}: use a newer version of it"
        )
    if number == 1:
        try:
            state = _upgraded(state)
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} is damaged or not a checkpoint of this program ({error!r:.200})") from error
    if (part := misfit(state)) is not None:
        raise CheckpointError(f"{path} is damaged or not a checkpoint of this program ({part})")
    return state


def _upgraded(state: dict[str, Any]) -> dict[str, Any]:
    """Convert a checkpoint of the first format (without a number) to the present one."""
    learner = dict(state["learner"])
    names = {"square_avg": "mean_square", "mean_square": "mean_square", "momentum_buffer": "momentum"}
    moments = dict(learner["optimiser"]["state"].get(0, {}))  # none before the first update
    learner["optimiser"] = {
        "name": "rmsprop",
        "moments": {names[name]: moment for name, moment in moments.items() if name in names},
    }
    learner["algorithm"] = {"module": {}, "state": {}}
    counts = {"restarts": 0, "skipped_updates": 0}  # the oldest have none
    new = {**counts, **state, "format": FORMAT, "learner": learner}
    if (unlearned := new.pop("unlearned", None)) is not None:  # its slots did not know their actor
        # Metrics were the last field then. A checksum must not ask for more of them than there were.
        new["past"] = {**new["past"], "metrics": unlearned[-1].shape[-1]}
        new["source"] = {"unlearned": [*unlearned, torch.full((len(unlearned[0]),), -1, dtype=torch.int32)]}
    return new
