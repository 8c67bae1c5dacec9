"""Every file of examples/ trains, by the command that its own docstring names."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT, rows

FILES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.name != "__init__.py")
COLUMNS = {
    "custom_environment": "env/reached",
    "custom_algorithm": "kl_loss",
    "custom_model": "total_loss",
    "visit_counts": "total_loss",
}
"""What a run with each one has in its logs."""


def command_of(file: Path) -> list[str]:
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
    found = re.search(r"`python run\.py (.*?)`", docstring, re.S)
    assert found, f"{file.name} names no command"
    return shlex.split(found[1])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_example_trains_and_is_short(start, call, tmp_path, file):
    assert len(file.read_text().splitlines()) <= 60
    flags = ["--total_steps", 3_000, "--num_actors", 4, "--batch_size", 4, "--num_actor_processes", 2, "--xpid", "x"]
    program = start(*command_of(file), *flags).finish()
    assert program.code == 0, program.story()
    assert not program.err
    last = rows(tmp_path / "runs" / "x")[-1]
    assert last["step"] >= 3_000
    assert COLUMNS[file.stem] in last
    done = call("evaluate", "--checkpoint", "x", "--episodes", 4)
    assert done.code == 0, done.err
    assert "over 4 full games" in done.out
