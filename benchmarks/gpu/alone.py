"""The learner alone: how long an update takes, and why. `Subject` is all that knows what a learner is."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from beast.core.data import Batch, flatten, map_nested
from beast.processes.machine import keep_freed_memory, use_compute_threads
from beast.tools.throughput import time_learner
from benchmarks import learner as learner_benchmark
from benchmarks.gpu.processes import ROOT

WARM_UP = 5  # updates
PROFILED = 3  # updates
BUSIEST = 6  # kernels that are named

Figures = dict[str, Any]


class Subject:
    """A learner with a batch of noise, which takes as long as real frames (zeros are faster on a GPU)."""

    def __init__(self, flags: dict[str, Any]) -> None:
        self._gradients, self._learner, self._staged = learner_benchmark.make(flags)
        self.device = self._gradients.device
        if self._staged.ready is not None:
            self._staged.ready.synchronize()
        for leaf in flatten(self._staged.batch.observation):
            if leaf.dtype == torch.uint8:
                leaf.random_(0, 256)
        self.wait()
        self._on_host = Batch(*(map_nested(lambda x: x.cpu(), field) for field in self._staged.batch))
        unroll_length, batch_size = self._staged.batch.action.shape[:2]
        self.steps = unroll_length * batch_size
        self.megabytes = sum(leaf.numel() * leaf.element_size() for leaf in flatten(tuple(self._on_host))) / 1e6

    def update(self) -> None:
        """One update; does not wait for the device."""
        for gradient in self._gradients.of(self._staged):
            self._learner.apply(gradient, 0)

    def published_ms(self, seconds: float) -> float:
        """Milliseconds of an update and its publication."""
        return time_learner(self._gradients, self._learner, self._staged, seconds) * self.steps / 1e3

    def stage(self) -> None:
        """Bring the batch to the device, and wait for it."""
        staged = self._gradients.to_device(self._on_host)
        if staged.ready is not None:
            staged.ready.synchronize()

    def wait(self) -> None:
        """Until the device has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(flags: dict[str, Any], seconds: float) -> Figures:
    """Times of one update, what the host launches for it, and where it waits.

    Args:
        flags: of run.py.
        seconds: of each of the three times.

    Returns:
        `update_ms` without publishing, `host_ms` until it returns to Python with an idle device, `published_ms`,
        `copy_ms` to bring a batch to the device, `first_ms` of the first update (it compiles, if it was asked for), and
        what `count` and `hidden_waits` find.
    """
    keep_freed_memory()
    use_compute_threads(1)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    subject = Subject(flags)
    began = time.perf_counter()
    subject.update()
    subject.wait()
    first_ms = (time.perf_counter() - began) * 1e3
    for _ in range(WARM_UP):
        subject.update()
    subject.published_ms(0.0)
    update_ms, host_ms = _times(subject, seconds)
    published_ms = subject.published_ms(seconds)
    return {
        "flags": flags,
        "steps": subject.steps,
        "update_ms": update_ms,
        "host_ms": host_ms,
        "published_ms": published_ms,
        "sps": subject.steps / published_ms * 1e3,
        "copy_ms": _copy_ms(subject),
        "copy_mb": subject.megabytes,
        "first_ms": first_ms,
        "memory_mb": torch.cuda.max_memory_allocated() / 1e6 if subject.device.type == "cuda" else None,
        "hidden_waits": hidden_waits(subject),
        **count(_traced(subject), PROFILED),
    }


def _times(subject: Subject, seconds: float) -> tuple[float, float]:
    """Milliseconds of an update, many after one another; and of the host's part of one that finds the device idle.

    On a CPU core time is counted, as `time_learner` does it: what else runs on the machine is not.
    """
    now = time.perf_counter if subject.device.type == "cuda" else time.process_time
    began, end, updates = now(), time.perf_counter() + seconds, 0
    while not updates or time.perf_counter() < end:
        subject.update()
        updates += 1
    subject.wait()
    each = (now() - began) / updates
    host = []
    for _ in range(max(3, min(30, int(seconds / 2 / each)))):
        subject.wait()
        began = now()
        subject.update()
        host.append(now() - began)
    subject.wait()
    return each * 1e3, statistics.median(host) * 1e3


def _copy_ms(subject: Subject) -> float:
    times = []
    for _ in range(6):
        began = time.perf_counter()
        subject.stage()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:]) * 1e3  # the first has its page-locked memory made


def _traced(subject: Subject) -> list[dict[str, Any]]:
    """What the profiler saw of a few updates, as a Chrome trace has it."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if subject.device.type == "cuda" else [])]
    with profile(activities=activities) as found:
        for _ in range(PROFILED):
            subject.update()
        subject.wait()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        found.export_chrome_trace(str(file))
        events: list[dict[str, Any]] = json.loads(file.read_text())["traceEvents"]
        return events


def count(events: Iterable[dict[str, Any]], updates: int) -> Figures:
    """What a Chrome trace of some updates says of one.

    Returns:
        `operators` that PyTorch ran, `launches` by the host, `device_ms` in which the device worked, `host_waits` by the
        CUDA call that waited, `host_copies`, and the `busiest` kernels. A CPU launches nothing: there `device_ms` is None.
    """
    operators = launches = copies = 0
    waits: Counter[str] = Counter()
    busy: Counter[str] = Counter()
    for event in events:
        kind, name = event.get("cat", ""), event.get("name", "")
        if kind == "cpu_op":
            operators += 1
        elif kind in ("cuda_runtime", "cuda_driver"):
            launches += "Launch" in name
            copies += "Memcpy" in name
            if "Synchronize" in name and not name.startswith("cudaDevice"):  # that one is ours, at the end
                waits[name] += 1
        elif kind in ("kernel", "gpu_memcpy", "gpu_memset"):
            busy[name] += event["dur"]
    return {
        "operators": operators / updates,
        "launches": launches / updates,
        "host_copies": copies / updates,
        "host_waits": {name: number / updates for name, number in waits.items()},
        "device_ms": busy.total() / updates / 1e3 if busy else None,
        "busiest": [{"kernel": name[:100], "ms": us / updates / 1e3} for name, us in busy.most_common(BUSIEST)],
    }


def hidden_waits(subject: Subject) -> list[str]:
    """Lines of the program at which one update waits for the device, as PyTorch's own look-out says; none on a CPU."""
    if subject.device.type != "cuda":
        return []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            subject.update()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = [
        f"{warning.filename}:{warning.lineno}" for warning in seen if "called a synchronizing" in str(warning.message)
    ]
    return sorted({place.removeprefix(f"{ROOT}/") for place in places})
