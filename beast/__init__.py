"""Beast, an IMPALA trainer for one machine, from Python: `train`, `evaluate`, `load`.

    run = beast.train(env="CartPole-v1", stop_at_return=400)
    print(beast.evaluate(run, episodes=20)["mean"])
    action = beast.load(run).act(observation)

Each name is imported when it is first used, so that `import beast` is fast.
"""

from __future__ import annotations

from beast.processes import paths

TYPE_CHECKING = False  # not imported, because a typing.py in the current folder may be any file: see beast/cli.py
if TYPE_CHECKING:
    from typing import Any

    from beast.acting.agent import Agent as Agent
    from beast.api import evaluate as evaluate
    from beast.api import load as load
    from beast.api import train as train
    from beast.core.errors import CheckpointError as CheckpointError
    from beast.core.errors import ConfigError as ConfigError
    from beast.core.errors import EnvError as EnvError
    from beast.core.errors import ModelError as ModelError
    from beast.core.errors import WorkerError as WorkerError

__version__ = "0.1.0"

paths.find_packages_beside()

_HOMES = {
    "train": "api",
    "evaluate": "api",
    "load": "api",
    "Agent": "acting.agent",
    "ConfigError": "core.errors",
    "EnvError": "core.errors",
    "ModelError": "core.errors",
    "CheckpointError": "core.errors",
    "WorkerError": "core.errors",
}
"""The module that defines each public name."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'beast' has no attribute {name!r}")
    from importlib import import_module

    globals()[name] = value = getattr(import_module(f"beast.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
