"""The import path, the same in every process: the standard library first, the user's folder last.

Python itself puts the script's folder, or the current one, first: a `random.py` there would replace the standard
library's. This module imports only modules that are loaded when Python starts.

An installation has one top-level package, `beast`. In the source tree some of its packages lie beside it, where they
are easier to find (setup.cfg, package_dir), and have the same names: `beast.models` and so on.
"""

from __future__ import annotations

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BESIDE = ("beast.models", "beast.monobeast", "beast.polybeast", "beast.a3c")
IN_SOURCE_TREE = not os.path.isfile(os.path.join(ROOT, "beast", "models", "__init__.py"))


class _Beside:
    """A finder of the packages that lie beside `beast` in the source tree, even if other packages have their names."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> object:
        return _in_root(name) if name in BESIDE else None


class _Rest:
    """A finder of the source tree's examples and benchmarks, used if the user has no packages of these names."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> object:
        return _in_root(name) if name in ("examples", "benchmarks") else None


def _in_root(name: str) -> object:
    from importlib.machinery import PathFinder

    return PathFinder.find_spec(name, [ROOT])  # it searches for the last part of the name


def find_packages_beside() -> None:
    """Give the source tree's packages the names that they have when installed."""
    finders: list[object] = sys.meta_path  # type: ignore[assignment]
    if IN_SOURCE_TREE and _Beside not in finders:
        finders.insert(0, _Beside)


def set_search_path(path: list[str]) -> None:
    """Set the import path of this process, with the current folder moved to its end.

    The source tree is not on it: importing `models` or `run` finds the user's own.
    """
    last = current_folder()
    moved = {os.path.realpath(folder) for folder in [*last, *([ROOT] if IN_SOURCE_TREE else [])]}
    sys.path[:] = [entry for entry in path if entry and os.path.realpath(entry) not in moved]
    sys.path += last
    finders: list[object] = sys.meta_path  # type: ignore[assignment]
    if IN_SOURCE_TREE and _Rest not in finders:
        finders.append(_Rest)


def as_it_is() -> list[str]:
    """Return this process's import path for another process, without entries that depend on the current folder."""
    return [os.path.abspath(entry) for entry in sys.path if entry or current_folder()]


def current_folder() -> list[str]:
    """Return the current folder as a list of one, or an empty list if it was deleted."""
    try:
        return [os.getcwd()]
    except OSError:  # it was deleted
        return []
