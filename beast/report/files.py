"""Atomic file writing: a file is written completely or not at all."""

from __future__ import annotations

import fcntl
import io
import json
import os
import secrets
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

NUMBER_RECORD = "archive/number"  # record in the checkpoint's zip file, in the folder where PyTorch expects all records


def write_atomically(path: Path, write: Any) -> None:
    """Call `write(file)` on a temporary file beside `path`, sync it to disk and rename it to `path`.

    The temporary file is locked while its writer lives: see `remove_left_behind` in `beast/run/checkpoint.py`.

    Raises:
        OSError: if anything fails; `path` is then unchanged.
    """
    temporary, file = _temporary_beside(path)
    try:
        with file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _temporary_beside(path: Path) -> tuple[Path, IO[bytes]]:
    """Create and lock a new temporary file beside `path`, with the permissions that the umask allows."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with suppress(FileExistsError):
            file = open(temporary, "xb")  # noqa: SIM115
            with suppress(OSError):  # not every file system has locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:
                return temporary, file
            file.close()  # another process removed it as left behind, before it was locked


def write_tensors(path: Path, value: Any, number: int | None = None) -> None:
    """Write a value atomically in PyTorch's format, with a checkpoint's number in a record of its own.

    Raises:
        OSError: if the file cannot be written; `path` is then unchanged.
    """
    data = io.BytesIO()  # in memory first: PyTorch's own writer turns a full disk into "unexpected pos 193408"
    torch.save(value, data)
    if number is not None:
        with zipfile.ZipFile(data, "a") as records:
            records.writestr(NUMBER_RECORD, str(number))
    write_atomically(path, lambda file: file.write(data.getbuffer()))


def write_json(path: Path, value: Any) -> None:
    """Write a value atomically as indented JSON."""
    write_atomically(path, lambda file: file.write((json.dumps(value, indent=2) + "\n").encode()))
