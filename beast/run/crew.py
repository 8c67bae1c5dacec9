"""What a beast is to the rest: a module with two functions, found by the name that `--trainer` gives.

crew(task, config, spec, weights) -> Crew        who fills the unroll store, as plans: nothing is started here
acting_device(device) -> torch.device            where its actors' forwards run, if the learner is on `device`

It may have a third one:

settle(config, given) -> Config                  settings that follow from others with this beast; a ConfigError for what it
                                                 cannot do. `given` are the names of the flags that were given
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
from beast.store.sources import Source, StoreSource
from beast.store.unrolls import UnrollWriter, WorkerPort


@dataclass(frozen=True)
class WorkerPlan:
    """A process to be: `assemble` opens its ports to the store at each of its lives."""

    name: str
    target: Callable[..., None]
    """Called as `target(status, *arguments)`; importable by name."""
    arguments: Callable[[list[WorkerPort], int], tuple[Any, ...]]
    """From its ports and the number of its life to the target's arguments; they must pickle."""
    groups: tuple[int, ...] = ()
    """For each of its ports to the store, how many unrolls it writes at a time."""
    discard: Callable[[], int] = lambda: 0
    """Called once its process is dead: take back what else it held; answers how many unrolls were lost with that."""
    leaves: bool = False
    """It looks at `WorkerStatus.leaving`, as every worker with ports must."""


@dataclass(frozen=True)
class Crew:
    """Who fills the store: processes, or all actors in this process (serial mode), and threads beside the learner."""

    workers: list[WorkerPlan] = field(default_factory=list)
    serial: Callable[[UnrollWriter, int, LocalStatus], SerialActors] | None = None
    """From where they write, the number of their life and what they report to, to all actors."""
    threads: dict[str, Callable[[LocalStatus], None]] = field(default_factory=dict)
    """By name; each ends soon when its argument is `stopping`."""
    source: Callable[[StoreSource], Source] = lambda own: own
    """From the store's source to the one that the learner asks."""
    counts: Callable[[], dict[str, Any]] = dict
    """Counts that the beast keeps of its own, for profile."""
    summarise: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] = lambda before, after: {}
    """What happened between two such counts."""
    notes: tuple[str, ...] = ()
    """Lines to tell the user at the start."""


def beast_module(trainer: str) -> Any:
    """The module of a beast: a folder's `train.py`, or the user's own `my_package.my_beast`.

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
    """What the beast makes of a run's settings.

    Args:
        config: with all defaults.
        given: names of the flags that were given.

    Raises:
        ConfigError: if it cannot do what they ask for.
    """
    own = getattr(beast_module(config.learner.trainer), "settle", None)
    settled: Config = own(config, given) if own else config
    return settled
