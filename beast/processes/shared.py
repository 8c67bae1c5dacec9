"""Shared memory without a name: one anonymous block for many arrays, freed when the last process that maps it ends.

The block is a memfd (an unlinked temporary file where the system has none): it does not appear in /dev/shm, needs no
cleaning up after a crash, and does not depend on the size of /dev/shm, which is small in containers. It costs two file
descriptors (mmap keeps one of its own), however many arrays it holds.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from multiprocessing import reduction
from typing import Any

import numpy as np

from beast.core.data import ArraySpec, Nested, flatten, map_nested
from beast.processes.machine import free_memory

_ALIGNMENT = 128  # bytes: two cache lines, so that no cache line holds two arrays


class SharedArrays:
    """NumPy arrays in one shared block, nested as their specs are. Pickling hands over the file descriptor.

    Args:
        specs: a tree of ArraySpec with full shapes.

    Raises:
        MemoryError: if the system does not have that much memory.
    """

    def __init__(self, specs: Nested) -> None:
        self._fd = _anonymous_file(max(total_bytes(specs), mmap.PAGESIZE))
        self._map(specs)

    def _map(self, specs: Nested) -> None:
        self._specs = specs
        self._block = mmap.mmap(self._fd, max(total_bytes(specs), mmap.PAGESIZE))
        offset = 0

        def view(spec: ArraySpec) -> Any:
            nonlocal offset
            array = np.frombuffer(self._block, spec.dtype, math.prod(spec.shape), offset).reshape(spec.shape)
            offset += _padded_bytes(spec)
            return array

        self.arrays: Nested = map_nested(view, specs)

    def __getstate__(self) -> dict[str, Any]:
        return {"specs": self._specs, "fd": reduction.DupFd(self._fd)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._fd = state["fd"].detach()
        self._map(state["specs"])

    @property
    def nbytes(self) -> int:
        """Size of the block in bytes."""
        return len(self._block)

    def __del__(self) -> None:
        # Any remaining array keeps the mapping alive; only the descriptor is closed here.
        if (fd := getattr(self, "_fd", None)) is not None:
            os.close(fd)


def _padded_bytes(spec: ArraySpec) -> int:
    size = math.prod(spec.shape) * spec.dtype.itemsize
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def total_bytes(specs: Nested) -> int:
    """Return the bytes that SharedArrays of these specs take."""
    return sum(_padded_bytes(spec) for spec in flatten(specs))


def _anonymous_file(size: int) -> int:
    # Checked before allocating, because Linux promises more than it has and then kills some process.
    if size > free_memory():
        raise MemoryError(_too_much(size, "the machine has less free"))
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("beast", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        os.ftruncate(fd, size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)  # a lack of memory raises here instead of a SIGBUS later
    except OSError as error:
        os.close(fd)
        raise MemoryError(_too_much(size, str(error))) from error
    return fd


def _too_much(size: int, why: str) -> str:
    return (
        f"no shared memory of {size / 1e6:,.0f} MB to be had ({why}): lower --num_actors, --batch_size, "
        "--unroll_length, --num_buffers or --replay_capacity"
    )
