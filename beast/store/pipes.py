"""Integers through pipes: writing a few is atomic, so no lock is needed that a killed process could keep."""

from __future__ import annotations

import fcntl
import os
import select

import numpy as np

from beast.core.data import Array

INT = np.dtype(np.int32)
_F_SETPIPE_SZ = getattr(fcntl, "F_SETPIPE_SZ", 1031)
_PIPE_SIZE = 1 << 16  # bytes that a pipe holds by default
_CHUNK = select.PIPE_BUF // INT.itemsize  # integers that one atomic write can hold


def make_room(pipe: int, size: int) -> None:
    """Enlarge a pipe to hold `size` bytes, so that writing that many never blocks.

    Raises:
        MemoryError: if the system refuses.
    """
    if size <= _PIPE_SIZE:
        return
    try:
        fcntl.fcntl(pipe, _F_SETPIPE_SZ, size)
    except OSError as error:
        raise MemoryError(
            f"a pipe of {size:,} bytes cannot be had ({error}): raise --num_actor_processes, so that each hosts fewer actors"
        ) from error


def readable(fd: int, timeout: float) -> bool:
    """Return whether a descriptor can be read within `timeout` seconds."""
    poll = select.poll()  # unlike select, not limited to descriptors below 1024
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(timeout, 0.0) * 1000))


def write(fd: int, numbers: Array) -> None:
    """Write integers, so many at a time that each write is atomic."""
    for start in range(0, len(numbers), _CHUNK):
        os.write(fd, numbers[start : start + _CHUNK].astype(INT).tobytes())
