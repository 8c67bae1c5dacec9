"""Callbacks: the user's functions that are called after updates, episodes and checkpoints, and may stop the run.

A callback is any object with some of these methods, or a module with some of these functions (`--callback my_pkg.my_module`);
one that returns True ends the run cleanly, as Ctrl-C does:

    after_update(step, updates, metrics)     metrics: floats by name, of each update that was made
    after_episode(step, episode)             episode: return, length, metrics and actor of a full game that was learned from
    after_checkpoint(step, path)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from beast.core.errors import ConfigError
from beast.core.names import NoSuchModule, import_named
from beast.store.unrolls import Episode

METHODS = ("after_update", "after_episode", "after_checkpoint")


class Callbacks:
    """All callbacks of a run.

    Args:
        callbacks: objects or modules.

    Raises:
        ConfigError: if one has none of the methods.
    """

    def __init__(self, callbacks: list[Any]) -> None:
        for callback in callbacks:
            if not any(hasattr(callback, name) for name in METHODS):
                name = getattr(callback, "__name__", type(callback).__name__)
                raise ConfigError(
                    f"--callback {name}: it defines none of {', '.join(METHODS)} (see beast/run/callbacks.py)"
                )
        self._by_method = {name: [getattr(c, name) for c in callbacks if hasattr(c, name)] for name in METHODS}
        self.stop = False
        """Whether a callback asked to end the run."""

    def after_update(self, step: int, updates: int, metrics: dict[str, torch.Tensor]) -> None:
        """Call the callbacks for an update. Metrics are copied from their device only if a callback takes them."""
        if self._by_method["after_update"]:
            self._call("after_update", step, updates, {name: float(value) for name, value in metrics.items()})

    def after_episodes(self, step: int, episodes: list[Episode]) -> None:
        """Call the callbacks for full games that ended."""
        for episode in episodes if self._by_method["after_episode"] else ():
            self._call("after_episode", step, episode)

    def after_checkpoint(self, step: int, path: Path) -> None:
        """Call the callbacks for a checkpoint that was written."""
        self._call("after_checkpoint", step, path)

    def _call(self, method: str, *arguments: Any) -> None:
        for function in self._by_method[method]:
            if function(*arguments) is True:
                self.stop = True


def callback_module(name: str) -> Any:
    """Import the module that `--callback` names.

    Raises:
        ConfigError: if there is none.
    """
    try:
        return import_named(name)
    except NoSuchModule as error:
        raise ConfigError(
            f"no --callback {name!r}: it must be a module of your own (my_package.my_module) that can be imported from here"
        ) from error
