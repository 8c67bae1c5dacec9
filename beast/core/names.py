"""Names that users type: the command itself, and modules (models, algorithms, environments of their own)."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

typed = "python -m beast"
"""The command as typed, for messages: `beast`, `run.py`, or `python -m beast` (also from Python). `cli.main` sets it."""


def to_type() -> str:
    """Return the command that calls this program again."""
    return "python run.py" if typed == "run.py" else typed


TRAINERS = ("monobeast", "polybeast", "a3c")
"""Those that come with this program."""
LEARN_THE_SAME = ("monobeast", "polybeast")
"""Those of them that differ only in speed, so that one may replace another."""


class NoSuchModule(ImportError):
    """The named module, or a package on the way to it, does not exist; `name` says which."""


def import_named(path: str) -> ModuleType:
    """Import `my_package.my_module`, also from the current folder.

    That folder is searched only here, so that built-in code never imports anything from it.

    Raises:
        NoSuchModule: if it does not exist. All other errors of its import pass through, such as a missing module that it
            imports.
    """
    if path.startswith("."):
        raise NoSuchModule(name=path)  # a relative import has no base here
    if path.partition(".")[0] != "beast" and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that no file in it hides ours
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{path}.".startswith(f"{error.name}."):
            raise NoSuchModule(name=error.name) from error
        raise
