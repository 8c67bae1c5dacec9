"""What nvidia-smi says, where there is one."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from benchmarks.gpu.processes import end, start

FACTS = (
    "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "power.limit", "memory.total",
    "compute_mode", "mig.mode.current",
)  # fmt: skip
WATCHED = {"utilization.gpu": "busy_percent", "clocks.sm": "sm_mhz", "memory.used": "memory_mb"}
EVERY_MS = 250


def facts() -> dict[str, str]:
    """Driver and clocks of the first GPU as they are now; nothing where there is no nvidia-smi."""
    command = ["nvidia-smi", f"--query-gpu={','.join(FACTS)}", "--format=csv,noheader", "--id=0"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(FACTS, (value.strip() for value in said.split(",")), strict=False))


def multi_process_service() -> dict[str, bool]:
    """Whether several processes could share the GPU by NVIDIA's MPS, and whether they do."""
    import psutil

    running = any(process.info["name"] == "nvidia-cuda-mps-server" for process in psutil.process_iter(["name"]))
    return {"installed": shutil.which("nvidia-cuda-mps-control") is not None, "running": running}


@contextmanager
def watched() -> Iterator[dict[str, Any]]:
    """Look at the GPU four times a second while a block runs; the dict is filled at its end, if there is an nvidia-smi."""
    found: dict[str, Any] = {}
    if shutil.which("nvidia-smi") is None:
        yield found
        return
    with tempfile.TemporaryFile() as file:
        query = f"--query-gpu={','.join(WATCHED)}"
        looks = start(
            ["nvidia-smi", query, "--format=csv,noheader,nounits", "--id=0", f"--loop-ms={EVERY_MS}"],
            stdout=file, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield found
        finally:
            end(looks, 15, 2.0)
            file.seek(0)
            found |= summary(file.read().decode(errors="replace"))


def summary(table: str) -> dict[str, Any]:
    """For each of WATCHED, whose numbers the lines hold in its order, the median of the second half and the largest value.

    A run starts up in the first half.
    """
    rows = []
    for line in table.splitlines():
        with suppress(ValueError):  # "[N/A]", or a line that was cut
            numbers = [float(cell) for cell in line.split(",")]
            if len(numbers) == len(WATCHED):
                rows.append(numbers)
    return {
        name: {"median": statistics.median(values[len(values) // 2 :]), "max": max(values)}
        for name, values in zip(WATCHED.values(), zip(*rows, strict=True), strict=False)
    }
