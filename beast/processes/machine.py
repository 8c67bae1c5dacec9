"""The machine: cores, memory, memory allocation, number formats."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from beast.processes.launch import launch

CGROUPS, MY_CGROUPS = "/sys/fs/cgroup", "/proc/self/cgroup"
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # options of glibc's mallopt


def usable_cores() -> int:
    """Return how many cores this process may use: by affinity and container, shared with torchrun's ranks beside it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2 quota
    return max(1, cores // launch().local_size)


def free_memory() -> int:
    """Return how many bytes this process may still allocate, on the machine and within its control groups (containers)."""
    free: int = psutil.virtual_memory().available
    for group in _memory_groups():
        for limit, usage, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            with suppress(OSError, ValueError):  # no such file, or its content is "max"
                left = int((group / limit).read_text()) - int((group / usage).read_text())
                with suppress(OSError, ValueError):  # memory that the kernel reclaims before it kills a process
                    left += int(
                        dict(line.split(maxsplit=1) for line in (group / "memory.stat").read_text().splitlines())[cache]
                    )
                free = min(free, max(left, 0))
    return free


def _memory_groups() -> Iterator[Path]:
    """Yield this process's memory control groups, innermost first; in a container, paths may be those of the host."""
    with suppress(OSError, ValueError):
        for line in Path(MY_CGROUPS).read_text().splitlines():
            _, controllers, mine = line.split(":", 2)
            if controllers in ("", "memory"):
                top = Path(CGROUPS) / controllers
                inner = Path(mine.lstrip("/"))
                yield from (top / part for part in (inner, *inner.parents))


def keep_freed_memory() -> None:
    """Stop the C allocator from returning large blocks to the kernel after each step.

    Otherwise every large tensor of every step is paged in again, which costs up to half of the learner's time. The
    setting holds for all threads that start after this call. A thread that ran before (the emulator's, in the first look
    at an Atari game) leaves a memory pool without the setting, which the next thread (a learner's) would take over.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)  # because the mmap threshold cannot be set above 32 MB
        libc.mallopt(_M_ARENA_MAX, 1)  # learner threads share freed blocks instead of each keeping its own
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def allow_open_files(number: int = 1 << 16) -> int:
    """Raise the limit of open files, of this process and its future children, towards `number`; return the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = min(limit for limit in (number, hard) if limit != resource.RLIM_INFINITY)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def use_compute_threads(number: int) -> None:
    """Set how many threads PyTorch computes with when the calling thread calls it; other threads keep theirs."""
    import torch

    torch.get_num_threads()  # otherwise the thread's first operation would reset it to what any thread set last
    torch.set_num_threads(number)


def has_fast_bfloat16() -> bool:
    """Return whether this processor multiplies bfloat16 in hardware (AVX-512 BF16 or AMX)."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def describe_machine() -> dict[str, object]:
    """Describe the machine for `config.json` and benchmark results, without names, paths or environment variables."""
    import numpy
    import torch

    model = platform.processor()
    try:
        with open("/proc/cpuinfo") as file:
            model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model)
    except OSError:
        pass
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": model,
        "cores": usable_cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }
