"""The learner's update alone: by model, number format, batch size, and memory layout of images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from beast.core.gradients import Gradients, Staged
from beast.core.learner import Learner
from beast.processes.machine import keep_freed_memory, use_compute_threads
from beast.run.assemble import make_learner
from beast.run.resolve import resolve_config
from beast.tools.throughput import blank_batch, time_learner
from benchmarks.plots import bars, panels, save
from benchmarks.throughput import MODELS

PRECISIONS = ("float32", "bfloat16")
LAYOUTS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}


def measure(model: str, precision: str, batch_size: int, layout: str, seconds: float) -> dict[str, Any]:
    """Measure microseconds per agent step of updates, with 20 steps in an unroll, one compute thread and Pong's shapes.

    Args:
        model: name of the model.
        precision: float32 or bfloat16.
        batch_size: unrolls in a batch.
        layout: memory layout of the first convolution's input, and so of all that follow; models normally choose it.
        seconds: how long to measure.
    """
    keep_freed_memory()
    threads = torch.get_num_threads()
    use_compute_threads(1)
    flags = {"env": "PongNoFrameskip-v4", "model": model, "precision": precision, "batch_size": batch_size}
    gradients, learner, staged = make(flags)
    first = next(part for part in learner.acting.model.modules() if isinstance(part, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, x: (x[0].contiguous(memory_format=LAYOUTS[layout]),))
    time_learner(gradients, learner, staged, 0.0)  # warms up
    microseconds = time_learner(gradients, learner, staged, seconds)
    use_compute_threads(threads)
    settings = {"model": model, "precision": precision, "batch_size": batch_size, "layout": layout}
    return settings | {"device": str(gradients.device), "us_per_step": microseconds, "sps": 1e6 / microseconds}


def make(flags: dict[str, Any]) -> tuple[Gradients, Learner, Staged]:
    """Make a learner, and a batch on its device, as run.py does with these flags."""
    config, task = resolve_config(flags)
    gradients, learner = make_learner(config, task)
    staged = blank_batch(gradients, task.unroll, config.learner.batch_size, config.actors.unroll_length)
    return gradients, learner, staged


def points(seconds: float) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what to measure, by name."""
    batch_sizes = (8, 32, 128) if torch.cuda.is_available() else (8, 32)
    return {
        f"{model} {precision} batch {batch_size} {layout}": partial(
            measure, model, precision, batch_size, layout, seconds
        )
        for model, precision, batch_size, layout in product(MODELS, PRECISIONS, batch_sizes, LAYOUTS)
    }


def draw(figures: dict[str, dict[str, Any]], file: Path) -> None:
    """Draw a panel for each model, each with its own scale."""
    figure, axes = panels(len(MODELS), "Learner alone: microseconds per agent step, one compute thread")
    batches = sorted({point["batch_size"] for point in figures.values()})
    for panel, model in zip(axes, MODELS, strict=True):
        series: dict[str, dict[str, float]] = {}
        for point in figures.values():
            if point["model"] == model:
                kind = f"{point['precision']}, {point['layout']}"
                series.setdefault(kind, {})[f"batch {point['batch_size']}"] = point["us_per_step"]
        bars(panel, [f"batch {size}" for size in batches], series, model)
    save(figure, file)
