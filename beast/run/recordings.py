"""Unrolls in files: written while they are learned from, read again as demonstrations; plain arrays, no code.

A folder of recordings holds `spec.json`, which says what each array is, and `unrolls_NUMBER_RUN.npz`, NumPy's archives of
arrays `[n, ...]` in the store's layout, one for each field of a batch (`beast/core/data.py`). What a file says of itself is
held against the spec before anything of it is read, objects that would have to be unpickled are never read at all, and the
checksums of all that is read are verified: a folder of somebody else's can be wrong, but runs no code.
"""

from __future__ import annotations

import io
import json
import math
import re
import secrets
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import numpy as np
import torch

from beast.core.data import ArraySpec, Batch, flatten, map_nested
from beast.core.distributions import Distribution
from beast.core.errors import ConfigError
from beast.report.files import write_atomically, write_json
from beast.run.checkpoint import remove_left_behind
from beast.store.batches import BatchLayout
from beast.store.replay import replay_specs
from beast.store.unrolls import UnrollSpec

FORMAT = 1
FILE_SIZE = 32_000_000  # bytes at most, unless one unroll is larger
_SPEC, _FILE = "spec.json", r"unrolls_(\d+)_\w+\.npz"
_MOST_NAMES = 10_000  # members of a file, and bytes of a header: more is none of ours
_MOST_SPEC = 10_000_000  # bytes


def fields_of(spec: UnrollSpec, unroll_length: int) -> dict[str, ArraySpec]:
    """Return what is recorded of one unroll, by name, in the order of `flatten`; nested parts are `observation/camera`."""

    def named(name: str, tree: Any) -> Iterator[tuple[str, ArraySpec]]:
        if isinstance(tree, dict | tuple):
            for key, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
                yield from named(f"{name}/{quote(str(key), safe='')}", part)
        else:
            yield name, ArraySpec(tree.shape[1:], tree.dtype)

    specs = replay_specs(spec, 1, unroll_length)
    fields = dict(leaf for name, tree in specs.items() for leaf in named(name, tree))
    stacks = [leaf.stack for leaf in flatten(spec.observation)]
    observations = dict(named("observation", specs["observation"]))
    for name, stack in zip(observations, stacks, strict=True):
        fields[name] = ArraySpec(fields[name].shape, fields[name].dtype, stack)
    return fields


def _described(fields: dict[str, ArraySpec]) -> dict[str, dict[str, Any]]:
    return {
        name: {"shape": list(field.shape), "dtype": field.dtype.str, "stack": field.stack}
        for name, field in fields.items()
    }


# -- writing ----------------------------------------------------------------------------------------------------------


class Recorder:
    """A writer of unrolls: a file whenever there are enough for one, in the thread of whoever adds them.

    A full disk is reported once. The unrolls that could not be written are lost; later files are tried again.

    Args:
        folder: as `prepare` left it.
        spec: of one step.
        unroll_length: T.
        limit: how many unrolls are written at most.
        log: takes one line for the user.
    """

    def __init__(
        self, folder: Path, spec: UnrollSpec, unroll_length: int, limit: int, log: Callable[[str], None]
    ) -> None:
        self._folder, self._left, self._log = folder, limit, log
        self._names = list(fields_of(spec, unroll_length))
        size = sum(math.prod(s.shape) * s.dtype.itemsize for s in flatten(replay_specs(spec, 1, unroll_length)))
        self._room = min(max(1, FILE_SIZE // size), limit)
        blank = replay_specs(spec, self._room, unroll_length)
        self._tensors = map_nested(lambda s: torch.from_numpy(np.zeros(s.shape, s.dtype)), blank)
        self._layout = BatchLayout(spec)
        self._held = 0  # unrolls that are in no file yet
        numbers = [int(found[1]) for file in folder.iterdir() if (found := re.fullmatch(_FILE, file.name))]
        self._number, self._run = max(numbers, default=0), secrets.token_hex(3)
        self._failed = False

    def add(self, batch: Batch) -> None:
        """Copy a batch's unrolls, and write a file if there are enough."""
        start, number = 0, batch.action.shape[1]
        while start < number and self._left:
            length = min(number - start, self._room - self._held, self._left)
            slots = torch.arange(self._held, self._held + length)
            self._layout.scatter(self._tensors, slots, self._layout.part(batch, start, length))
            self._held, self._left, start = self._held + length, self._left - length, start + length
            if self._held == self._room or not self._left:
                self.flush()
                if not self._left:
                    self._log(
                        f"as many unrolls are recorded as --record_limit allows, in {self._folder}; training goes on"
                    )

    def flush(self) -> None:
        """Write the unrolls that are in no file yet."""
        if not self._held:
            return
        arrays = [tensor[: self._held].numpy() for tensor in flatten(self._tensors)]
        data = io.BytesIO()  # in memory first, so that a full disk is an OSError and nothing else
        self._number += 1
        path = self._folder / f"unrolls_{self._number:06d}_{self._run}.npz"
        try:
            np.savez(data, **dict(zip(self._names, arrays, strict=True)))
            write_atomically(path, lambda file: file.write(data.getbuffer()))
        except (OSError, MemoryError) as error:
            if not self._failed:
                self._log(
                    f"{self._held:,} unrolls could not be recorded ({error}); training goes on, later ones are tried"
                )
            self._failed = True
        self._held = 0


def prepare(folder: Path, spec: UnrollSpec, unroll_length: int, env: str) -> None:
    """Make a folder for recordings, or check that those which it holds are of the same kind.

    Raises:
        ConfigError: if it cannot be written, or holds recordings of another kind.
    """
    fields = _described(fields_of(spec, unroll_length))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_left_behind(folder)
        if (folder / _SPEC).exists():
            _check_spec("record_unrolls", folder, fields)
        else:
            write_json(folder / _SPEC, {"format": FORMAT, "environment": env, "fields": fields})
    except OSError as error:
        raise ConfigError(f"--record_unrolls: cannot write to {folder}: {error.strerror}") from error


def _check_spec(flag: str, folder: Path, fields: dict[str, dict[str, Any]]) -> None:
    """Raise ConfigError if a folder's `spec.json` names other fields, or is none."""
    path = folder / _SPEC
    if not path.is_file() or path.stat().st_size > _MOST_SPEC:
        raise ConfigError(f"--{flag} {folder}: it holds no {_SPEC} of a recording")
    try:
        spec = json.loads(path.read_text())
        found, env, number = dict(spec["fields"]), str(spec["environment"])[:80], spec["format"]
    except OSError as error:
        raise ConfigError(f"--{flag} {folder}: {_SPEC} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"--{flag} {folder}: {_SPEC} is damaged ({type(error).__name__})") from error
    if number != FORMAT:
        raise ConfigError(f"--{flag} {folder}: its format is {number!r:.20}, this program knows {FORMAT}")
    if found != fields:
        name = next(name for name in [*fields, *found] if fields.get(name) != found.get(name))
        raise ConfigError(
            f"--{flag} {folder}: recorded from {env!r}, its {name!r:.80} is {_text(found.get(name))}, here it is "
            f"{_text(fields.get(name))}: environment, network and --unroll_length must be the same"
        )


def _text(field: Any) -> str:
    if not isinstance(field, dict):
        return "missing" if field is None else "damaged"
    return f"{field.get('dtype')!r:.20} {field.get('shape')!r:.80}"


# -- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recordings:
    """The unrolls of a folder, before they are read."""

    fields: dict[str, ArraySpec]
    counts: dict[Path, int]
    """How many unrolls each file holds, by what it says of itself."""

    @property
    def count(self) -> int:
        """How many unrolls there are in all files."""
        return sum(self.counts.values())

    def load(self, tensors: dict[str, Any], distribution: Distribution) -> None:
        """Read all of them into the first places of `[count + ..., ...]` tensors, nested as `replay_specs` has them.

        Raises:
            ConfigError: if a file is damaged, or holds what cannot be learned from.
        """
        leaves = dict(zip(self.fields, flatten(tensors), strict=True))
        start = 0
        for path, count in self.counts.items():
            with _reading(path), zipfile.ZipFile(path) as archive:
                for name, field in self.fields.items():
                    with archive.open(f"{name}.npy") as member:
                        if _header(member) != (field.dtype, (count, *field.shape)):
                            raise ValueError(f"{name} has changed meanwhile")
                        # Read to the end: then its checksum is right.
                        values = np.frombuffer(bytearray(member.read()), field.dtype)
                    leaf = leaves[name][start : start + count]
                    leaf.copy_(torch.from_numpy(values.reshape(leaf.shape)))
                    if name.startswith(("observation", "reward")) and not leaf.isfinite().all():
                        raise ValueError(f"{name} holds NaN or infinity")
                places = slice(start, start + count)
                distribution.log_prob(leaves["behaviour_logits"][places], leaves["action"][places])  # or no such action
            start += count


def open_recordings(folder: Path, spec: UnrollSpec, unroll_length: int) -> Recordings:
    """Check the recordings in a folder, reading only what the files say of themselves.

    Raises:
        ConfigError: if there are none, or they do not go with this spec, or one is damaged.
    """
    fields = fields_of(spec, unroll_length)
    if not folder.is_dir():
        raise ConfigError(f"--demonstrations {folder}: there is no such folder (--record_unrolls makes one)")
    _check_spec("demonstrations", folder, _described(fields))
    files = sorted(file for file in folder.iterdir() if re.fullmatch(_FILE, file.name) and file.is_file())
    recordings = Recordings(fields, {file: _count(file, fields) for file in files})
    if not recordings.count:
        raise ConfigError(f"--demonstrations {folder}: it holds no unrolls")
    return recordings


def _count(path: Path, fields: dict[str, ArraySpec]) -> int:
    """Return how many unrolls a file holds, once what it says of its arrays is as it must be."""
    with _reading(path), zipfile.ZipFile(path) as archive:
        if len(archive.namelist()) > _MOST_NAMES:
            raise ValueError("too many arrays")
        counts = set()
        for name, field in fields.items():
            with archive.open(f"{name}.npy") as member:
                dtype, shape = _header(member)
            size = math.prod(shape) * dtype.itemsize
            if dtype != field.dtype or shape[1:] != field.shape or shape[:1] < (1,):
                raise ValueError(f"{name} is {dtype} {shape}")
            if archive.getinfo(f"{name}.npy").file_size > size + _MOST_NAMES:
                raise ValueError(f"{name} is larger than it says")
            counts.add(shape[0])
        if len(counts) != 1:
            raise ValueError("its arrays are of different lengths")
        return int(counts.pop())


def _header(member: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Read an array's dtype and shape; raise ValueError for objects, and for what `Recorder` does not write."""
    if np.lib.format.read_magic(member) != (1, 0):
        raise ValueError("a version of NumPy's format that is not written here")
    shape, by_column, dtype = np.lib.format.read_array_header_1_0(member, max_header_size=_MOST_NAMES)
    if by_column or dtype.hasobject:
        raise ValueError("an array that is not written here")
    return dtype, shape


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn the errors that a damaged file causes into a ConfigError of one line."""
    damaged = (OSError, ValueError, KeyError, EOFError, IndexError, RuntimeError, NotImplementedError, MemoryError)
    try:
        yield
    except (*damaged, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(f"{path} is damaged, or no recording ({reason})") from error
