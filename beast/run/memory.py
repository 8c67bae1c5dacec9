"""What a run needs at least, checked before anything is made: Linux promises more memory than it has and kills later."""

from __future__ import annotations

import dataclasses
import math
from contextlib import suppress
from dataclasses import dataclass

import torch

from beast.acting.task import Task
from beast.core.data import flatten
from beast.core.errors import ConfigError
from beast.core.flat import FlatModel
from beast.processes.launch import launch
from beast.processes.machine import free_memory
from beast.processes.shared import total_bytes
from beast.run.experience import replay_bytes
from beast.settings.config import ActorsConfig, Config, LearnerConfig
from beast.settings.pace import PaceConfig
from beast.settings.presets import PRESETS
from beast.store.replay import ReplayConfig

# Of an Atari game: 200 games of Pong, memory of the process before and after. Of a process: less than any was seen to have
# (an environment worker has 34 MB of its own), because this is a lower bound. Other environments tell nobody.
PROCESS, ATARI_GAME = 20_000_000, 1_600_000  # bytes

_FLAGS = (
    "num_actors", "num_actor_processes", "unroll_length", "batch_size", "num_buffers", "replay_capacity", "policy_lag",
)  # fmt: skip


@dataclass(frozen=True)
class Need:
    """Bytes that a run needs; a lower bound, without models, their activations and most environments."""

    store: int
    batch: int
    """A batch as it leaves the store, and its observations as the model reads them."""
    workers: int
    replay: int
    old_weights: int
    """Old weights of `--policy_lag`."""

    @property
    def total(self) -> int:
        """Bytes of all parts together."""
        return self.store + self.batch + self.workers + self.replay + self.old_weights


def needed(config: Config, task: Task) -> Need:
    """Return what a run with these settings needs at least.

    Raises:
        ConfigError: if its demonstrations are wrong.
    """
    batch, steps = config.learner.batch_size, config.actors.unroll_length
    slots = task.unroll.slots
    values = sum(math.prod(spec.shape) for spec in flatten(task.observation)) * (steps + 1) * batch
    as_read = values * task.dtype.itemsize if task.device.type == "cpu" else 0
    actors = config.actors
    return Need(
        store=total_bytes(slots(config.num_buffers, steps)),
        batch=total_bytes(slots(batch, steps)) + as_read,
        workers=(0 if actors.serial else PROCESS * actors.processes)
        + (ATARI_GAME * actors.num_actors if task.env.is_atari else 0),
        replay=replay_bytes(config, task),
        old_weights=old_weights(config, task),
    )


def old_weights(config: Config, task: Task) -> int:
    """Return the bytes of the weights that wait until they are as old as `--policy_lag` says."""
    if not config.pace.policy_lag:
        return 0
    with torch.random.fork_rng(devices=[]):
        flat = FlatModel(task.model.build(weights=False), torch.device("cpu"), task.dtype)
    return config.pace.policy_lag * (flat.parameters.nbytes + flat.statistics.nbytes)


def check_memory(config: Config, task: Task) -> None:
    """Check the memory before anything is made.

    Raises:
        ConfigError: if the machine or this process's container has less; the message names the flags to change.
    """
    need, free = needed(config, task), free_memory() // launch().local_size  # each rank asks before any has taken
    if need.total <= free:
        return
    blamed = [f"--{name} {config.flat()[name]}" for name in _blamed(config, task, free)]
    parts = {
        "unrolls": need.store, "a batch": need.batch, "actors": need.workers, "the replay": need.replay,
        "old weights": need.old_weights,
    }  # fmt: skip
    advice = "lower --num_actors, --batch_size or --unroll_length"
    if blamed:
        advice = f"lower {' and '.join(blamed)}"
    raise ConfigError(
        f"at least {_gigabytes(need.total)} of memory are needed "
        f"({', '.join(f'{name} {_gigabytes(size)}' for name, size in parts.items() if size)}), {_gigabytes(free)} are "
        f"free: {advice}"
    )


def _blamed(config: Config, task: Task, free: int) -> list[str]:
    """Return the flag without which it would fit; if there is none, all flags that exceed their defaults."""
    values = config.flat()
    groups = (ActorsConfig, LearnerConfig, ReplayConfig, PaceConfig)
    defaults = {field.name: field.default for group in groups for field in dataclasses.fields(group)}
    usual = defaults | PRESETS[config.run.preset]
    raised = [name for name in _FLAGS if values[name] is not None and values[name] > (usual[name] or 0)]
    alone = []
    for name in raised:
        with suppress(ConfigError):  # the smaller value does not fit the other settings
            if needed(config.replace(**{name: usual[name]}), task).total <= free:
                alone.append(name)
    return alone or raised


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e9:.1g} GB"
