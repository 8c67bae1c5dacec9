"""Where imports come from, one and the same in every process: the standard library first, the user's folder last.

Python itself puts the script's folder, or the current one, first: a `random.py` there would be taken for the standard
library's. This module imports nothing but what is there when Python starts.
"""

from __future__ import annotations

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OURS = ("beast", "monobeast", "polybeast", "models")


class _Ours:
    """Finds this program's packages beside this one, whatever else bears their names."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> object:
        if path is not None or name not in OURS:
            return None
        from importlib.machinery import PathFinder

        return PathFinder.find_spec(name, [ROOT])


def settle(path: list[str]) -> None:
    """Make this the path of this process, with our folder and the current one moved to its end, in that order."""
    last = [ROOT, *current_folder()]
    real = {os.path.realpath(folder) for folder in last}
    sys.path[:] = [entry for entry in path if entry and os.path.realpath(entry) not in real]
    sys.path += dict.fromkeys(last)
    finders: list[object] = sys.meta_path  # type: ignore[assignment]
    if _Ours not in finders:
        finders.insert(0, _Ours)


def as_it_is() -> list[str]:
    """This process's path, for another one to take over: nothing in it depends on the current folder."""
    return [os.path.abspath(entry) for entry in sys.path if entry or current_folder()]


def current_folder() -> list[str]:
    """The current folder, or nothing if it was deleted."""
    try:
        return [os.getcwd()]
    except OSError:  # it is gone
        return []
