"""What users type: the command itself, and names of modules (models, algorithms, environments of their own)."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

typed = "python -m beast"
"""How this program was called, for messages: `beast`, `python -m beast` (from Python too), `run.py`. `cli.main` sets it."""


def to_type() -> str:
    """The command that calls this program again."""
    return "python run.py" if typed == "run.py" else typed


TRAINERS = ("monobeast", "polybeast", "a3c")
"""Those that come with this program."""
LEARN_THE_SAME = ("monobeast", "polybeast")
"""Those of them that differ in speed alone: one may take another's place and learn as before."""


class NoSuchModule(ImportError):
    """The named module itself, or a package on the way to it, does not exist; `name` says which."""


def import_named(path: str) -> ModuleType:
    """Import `my_package.my_module`, from where one stands too.

    Only then is that folder searched: what is built in never imports anything from a folder that somebody else filled.

    Raises:
        NoSuchModule: if it is not there. Whatever else its import raises, a missing module of its own too, passes through.
    """
    if path.startswith("."):
        raise NoSuchModule(name=path)  # it would be relative to nothing
    if path.partition(".")[0] != "beast" and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that nothing in it is taken for ours
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{path}.".startswith(f"{error.name}."):
            raise NoSuchModule(name=error.name) from error
        raise
