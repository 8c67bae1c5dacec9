"""The machine: what it is, and what a launch, a wait and a copy cost on it."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from beast.processes.machine import describe_machine, has_fast_bfloat16
from beast.run.folder import git_commit
from benchmarks.gpu import nvidia

Figures = dict[str, Any]


def describe() -> Figures:
    """Cores and threads, clocks, memory, versions, GPU, driver."""
    found: Figures = {
        **describe_machine(),
        "git_commit": git_commit(),
        "threads_per_core": threads_per_core(),
        "mhz": _mhz(),
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        "load": os.getloadavg(),
        "kernel": os.uname().release,
        "fast_bfloat16_on_cpu": has_fast_bfloat16(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        "nvidia_smi": nvidia.facts(),
        "mps": nvidia.multi_process_service(),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu_memory_gb"] = properties.total_memory / 1e9
        found["multiprocessors"] = properties.multi_processor_count
        found["capability"] = list(torch.cuda.get_device_capability(0))
        found["bfloat16_on_gpu"] = torch.cuda.is_bf16_supported()
        found["gpus"] = torch.cuda.device_count()
    return found


def threads_per_core() -> int | None:
    """Hardware threads that share a core with the first usable one; None if the kernel does not say."""
    first = min(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        topology = Path(f"/sys/devices/system/cpu/cpu{first}/topology/thread_siblings_list").read_text()
        return sum(_length(span) for span in topology.strip().split(","))
    return None


def _length(span: str) -> int:
    """Of a span of numbers: `0-3`, or `5`."""
    first, _, last = span.partition("-")
    return int(last or first) - int(first) + 1


def _mhz() -> float | None:
    """The median clock of all cores now, as /proc/cpuinfo has it."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        clocks = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
        return statistics.median(clocks) if clocks else None
    return None


def costs(device: str, seconds: float) -> Figures:
    """Microseconds to launch an operation and to wait for one, GB/s of copies from and to page-locked memory.

    Args:
        device: cuda, or cpu, where a launch is a whole tiny operation and a copy one within memory.
        seconds: of each.
    """
    on_gpu = device == "cuda"
    wait: Callable[[], object] = torch.cuda.synchronize if on_gpu else lambda: None
    tiny = torch.zeros(1, device=device)
    host = torch.zeros(1 << 26 if on_gpu else 1 << 22, dtype=torch.uint8)
    host = host.pin_memory() if on_gpu else host
    there = torch.zeros_like(host, device=device)

    def launch() -> None:
        for _ in range(100):
            tiny.add_(1.0)

    def launch_and_wait() -> None:
        tiny.add_(1.0)
        wait()

    def to_device() -> None:
        there.copy_(host, non_blocking=True)
        wait()

    def from_device() -> None:
        host.copy_(there, non_blocking=True)
        wait()

    gigabytes = host.numel() / 1e9
    return {
        "launch_us": _time(launch, wait, seconds) / 100 * 1e6,
        "wait_us": _time(launch_and_wait, wait, seconds) * 1e6,
        "to_device_gb_s": gigabytes / _time(to_device, wait, seconds),
        "from_device_gb_s": gigabytes / _time(from_device, wait, seconds),
    }


def _time(run: Callable[[], object], wait: Callable[[], object], seconds: float) -> float:
    """Seconds of one run, many runs after one another."""
    run()
    wait()
    began, count = time.perf_counter(), 0
    while not count or time.perf_counter() - began < seconds:
        run()
        count += 1
    wait()
    return (time.perf_counter() - began) / count
