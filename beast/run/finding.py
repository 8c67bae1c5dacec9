"""From what a user types (a file, a run folder, a run's name, `latest`) to a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from beast.core.errors import CheckpointError
from beast.run.checkpoint import LATEST, folder_of, load, newest_first, run_of


def load_newest(name: str, savedir: str, log: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
    """Find what a user types (see `find`) and read it; of a run, read the newest checkpoint that is not damaged.

    Args:
        name: as typed.
        savedir: the folder that holds the run folders.
        log: takes a line for each damaged checkpoint that is skipped.

    Returns:
        The file and its content.

    Raises:
        CheckpointError: if there is none, or the file itself was named and is damaged.
    """
    path = find(name, savedir)
    others = [file for file in newest_first(run_of(path)) if file.name != path.resolve().name]
    named = Path(name).is_file()
    damaged: list[str] = []
    for file in [path] if named else [path.with_name(path.resolve().name), *others]:
        try:
            state = load(file)
        except CheckpointError as error:
            damaged.append(str(error))
        else:
            for line in damaged:
                log(f"{line}; taking {file.name} instead")
            return file, state
    hint = f"; so are the {len(others)} before it" if others else ""
    if named and others:
        hint = f"; take another one of {path.parent}: {', '.join(file.name for file in others[:3])}"
    raise CheckpointError(damaged[0] + hint)


def find(name: str, savedir: str) -> Path:
    """Return the newest checkpoint of what a user types: a file, a run folder, a run's name in savedir, or `latest`.

    Raises:
        CheckpointError: if there is none there.
    """
    if Path(name).is_file():
        return Path(name)
    run = find_run(name, savedir)
    latest = folder_of(run) / LATEST
    if latest.is_file():  # the link may point to anything
        return latest
    if files := newest_first(run):
        return files[0]
    raise CheckpointError(f"{run} has no checkpoint yet (was it run with --disable_checkpoint?)")


def find_run(name: str, savedir: str) -> Path:
    """Return a run folder from its path, its name in savedir, or one of its checkpoint files.

    Raises:
        CheckpointError: if there is none.
    """
    for path in (Path(name), Path(savedir) / name, run_of(Path(name))):
        if (path / "config.json").is_file():
            return path.resolve() if path.is_symlink() else path
    known = sorted(p.parent.name for p in Path(savedir).glob("*/config.json") if not p.parent.is_symlink())
    there = f"in {savedir} are: {', '.join(known[-5:])}" if known else f"there are no runs in {savedir}"
    raise CheckpointError(f"no run {name!r} (looked for {name}/config.json and in --savedir {savedir}); {there}")
