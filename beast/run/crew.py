"""The interface of a trainer: a module with two functions, found by the name in `--trainer`.

crew(task, config, spec, weights) -> Crew        plans who fills the unroll store; starts nothing
acting_device(device) -> torch.device            device of the actors' forwards, if the learner is on `device`

It may also name the values of --pace that it supports, as PACES. Without it these are free and unroll, which every trainer
supports whose actors take the newest weights at the start of each unroll. And it may have a third function:

settle(config, given) -> Config                  sets what follows from other settings with this trainer, or raises a
                                                 ConfigError for what it cannot do; `given` names the flags that were given
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from beast.core.errors import ConfigError
from beast.core.names import TRAINERS, NoSuchModule, import_named
from beast.processes.status import LocalStatus
from beast.run.action_log import SerialActors
from beast.settings.config import Config
from beast.settings.pace import PACES
from beast.store.sources import Source, StoreSource
from beast.store.unrolls import UnrollWriter, WorkerPort


@dataclass(frozen=True)
class WorkerPlan:
    """A process to start: `assemble` opens its ports to the store for each of its lives."""

    name: str
    target: Callable[..., None]
    """Called as `target(status, *arguments)`; importable by name."""
    arguments: Callable[[list[WorkerPort], int], tuple[Any, ...]]
    """Maps its ports and the number of its life to the target's arguments, which must pickle."""
    groups: tuple[int, ...] = ()
    """Number of unrolls that it writes at a time, for each of its ports to the store."""
    discard: Callable[[], int] = lambda: 0
    """Takes back what a dead process held beside its ports, and returns how many unrolls were lost with it."""
    leaves: bool = False
    """Whether it obeys `WorkerStatus.leaving`, as every worker with ports must."""


@dataclass(frozen=True)
class Crew:
    """What fills the store: processes, or all actors in this process (serial mode), and threads beside the learner."""

    workers: list[WorkerPlan] = field(default_factory=list)
    serial: Callable[[UnrollWriter, int, LocalStatus], SerialActors] | None = None
    """Makes all actors from their writer, the number of their life and what they report to (serial mode only)."""
    threads: dict[str, Callable[[LocalStatus], None]] = field(default_factory=dict)
    """Threads by name; each ends soon after its argument is `stopping`."""
    source: Callable[[StoreSource], Source] = lambda own: own
    """Maps the store's source to the one that the learner asks."""
    gives_batches: bool = True
    """Whether the source yields batches; if it yields gradients, there are no unrolls to keep or to record."""
    counts: Callable[[], dict[str, Any]] = dict
    """Returns the trainer's own counts, for profile."""
    summarise: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] = lambda before, after: {}
    """Summarises what happened between two such counts."""
    notes: tuple[str, ...] = ()
    """Lines to print at the start."""


def beast_module(trainer: str) -> Any:
    """Import the module of a trainer: a folder's `train.py`, or the user's own `my_package.my_beast`.

    Raises:
        ConfigError: if there is none, or it defines no crew.
    """
    try:
        module = import_named(trainer if "." in trainer else f"beast.{trainer}.train")
    except NoSuchModule as error:
        raise ConfigError(
            f"no --trainer {trainer!r}: use {' or '.join(TRAINERS)}, or a module of your own (my_package.my_beast) that can be "
            "imported from here"
        ) from error
    for needed in ("crew", "acting_device"):
        if not hasattr(module, needed):
            raise ConfigError(f"--trainer {trainer}: the module defines no {needed} (see beast/run/crew.py)")
    return module


def settle(config: Config, given: Collection[str]) -> Config:
    """Return a run's settings as its trainer sets them.

    Args:
        config: settings with all defaults.
        given: names of the flags that were given.

    Raises:
        ConfigError: if the trainer cannot do what they ask for.
    """
    own = getattr(beast_module(config.learner.trainer), "settle", None)
    settled: Config = own(config, given) if own else config
    return settled


def check_pace(trainer: str, pace: str) -> None:
    """Check that a trainer supports a pace.

    Raises:
        ConfigError: if it does not; the message names the trainers that do.
    """

    def known(name: str) -> tuple[str, ...]:
        return getattr(beast_module(name), "PACES", PACES[:2])

    if pace not in known(trainer):
        able = [f"--trainer {name}" for name in TRAINERS if pace in known(name)]
        others = " or ".join([*able, f"--pace {known(trainer)[-1]}"])
        raise ConfigError(f"--trainer {trainer} has no --pace {pace}: use {others}")
