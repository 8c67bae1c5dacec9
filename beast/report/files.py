"""Files that are written whole or not at all."""

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

NUMBER_RECORD = "archive/number"  # a record of its own in the zip file, where PyTorch wants all of them


def write_atomically(path: Path, write: Any) -> None:
    """Call `write(file)` on a temporary file beside `path`, make it durable, and put it in place.

    The temporary file is locked as long as its writer lives: see `_remove_left_behind` in `beast/run/checkpoint.py`.

    Raises:
        OSError: if anything fails; `path` is then as it was.
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
    """A new file that is ours alone, with the rights that the umask leaves."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with suppress(FileExistsError):
            file = open(temporary, "xb")  # noqa: SIM115
            with suppress(OSError):  # a file system without locks goes without
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:
                return temporary, file
            file.close()  # somebody took it for one that was left behind, before it was locked


def write_tensors(path: Path, value: Any, number: int | None = None) -> None:
    """Atomically, as PyTorch saves, with a record of its own for a checkpoint's number.

    Raises:
        OSError: if it cannot be written; `path` is then as it was.
    """
    data = io.BytesIO()  # in memory first: PyTorch's own writer turns a full disk into "unexpected pos 193408"
    torch.save(value, data)
    if number is not None:
        with zipfile.ZipFile(data, "a") as records:
            records.writestr(NUMBER_RECORD, str(number))
    write_atomically(path, lambda file: file.write(data.getbuffer()))


def write_json(path: Path, value: Any) -> None:
    """Atomically, indented."""
    write_atomically(path, lambda file: file.write((json.dumps(value, indent=2) + "\n").encode()))
