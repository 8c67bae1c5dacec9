"""Every file of examples/ runs by the command that its own docstring names."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE, ROOT, rows

EXAMPLES = ROOT / "examples"
SCRIPTS = {"act", "train_from_python"}
"""Those that are programs; each of the others changes one thing of run.py's."""
FILES = sorted(path for path in EXAMPLES.glob("*.py") if path.stem not in {"__init__", *SCRIPTS})
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


def test_scripts_train_and_act(tmp_path):
    """One after the other, as a reader would: the second acts with what the first one trained."""

    def run(name: str, *arguments: str) -> str:
        file = EXAMPLES / f"{name}.py"
        assert f"`python examples/{name}.py" in (ast.get_docstring(ast.parse(file.read_text())) or "")
        done = subprocess.run(
            [sys.executable, str(file), *arguments], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        return done.stdout.splitlines()[-1]

    said = re.fullmatch(r"(\d+) games in training; (\S+): mean return (\S+)", run("train_from_python"))
    assert said
    assert 200 <= int(said[1]) < 1000
    assert float(said[3]) >= 8  # CartPole cannot fall over sooner
    assert re.fullmatch(r"return \d+", run("act", said[2]))


def test_the_readme_shows_python_that_runs(tmp_path):
    """Its section as one script, with less to train."""
    section = (ROOT / "README.md").read_text().partition("## From Python")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    assert "total_steps=300_000" in code
    (tmp_path / "script.py").write_text(code.replace("300_000", "800, num_actors=4, batch_size=4"))
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
