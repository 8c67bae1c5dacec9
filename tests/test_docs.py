"""The README and docs/: their commands parse, their links lead somewhere, the files of docs/extend.md train."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
SERIAL = ["--num_actor_processes", 0, "--num_actors", 4, "--batch_size", 4, "--total_steps", 160]


def code(page: Path) -> list[str]:
    """Every piece of code of a page: fenced blocks, indented ones and code within a line, without line continuations."""
    text = page.read_text().replace("\\\n", " ")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.S | re.M)
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    lines = [line for block in blocks for line in block.splitlines()] + re.findall(r"^ {4}(.*)", text, re.M)
    return [*lines, *re.findall(r"`([^`]+)`", re.sub(r"^ {4}.*", "", text, flags=re.M))]


def commands(page: Path) -> list[str]:
    """What follows `python run.py` on a page, up to what the shell would do with it."""
    found = [re.search(r"python3? run\.py\b(.*)", part, re.S) for part in code(page)]
    return sorted({re.split(r" +#|[;|&]", match[1])[0].strip() for match in found if match})


def files(page: Path, folder: Path) -> None:
    """Write the blocks whose first line names a file."""
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M):
        if match := re.match(r"# (\S+\.py)\n", block):
            (folder / match[1]).parent.mkdir(exist_ok=True)
            (folder / match[1]).write_text(block)


HISTORY = ("log", "CHANGELOG")  # whose commands were those of their day
ALL = [(page, command) for page in PAGES if page.stem not in HISTORY for command in commands(page)]
EXTEND = ROOT / "docs" / "extend.md"


def test_the_pages_hold_commands():
    assert len(commands(ROOT / "README.md")) >= 8
    assert len(commands(EXTEND)) >= 10


@pytest.mark.parametrize(("page", "command"), ALL, ids=[f"{page.stem}: {command}"[:60] for page, command in ALL])
def test_every_command_of_a_page_parses(call, tmp_path, page, command):
    files(page, tmp_path)
    arguments = shlex.split(re.sub(r"\$\w+", "1", command))
    if "--help" in arguments or "--help-all" in arguments:
        assert call(*arguments).code == 0
        return
    # The first argument that it does not know is named: the one that is appended, if it knows all others.
    outcome = call(*arguments, "--no_such_flag", "1")
    assert outcome.code == 2
    assert "unknown argument --no_such_flag" in outcome.err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_modules_that_a_page_runs_are_there(page):
    for module in re.findall(r"python -m (benchmarks[.\w]*\w)", page.read_text()):
        assert importlib.util.find_spec(module), module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        name, _, heading = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)", file.read_text(), re.M)
            assert heading in [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings], target


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 135


TRAINING = [command for command in commands(EXTEND) if command.startswith("--env")]


@pytest.mark.parametrize("command", TRAINING, ids=lambda command: command[:60])
def test_every_file_of_extend_trains(call, tmp_path, command):
    files(EXTEND, tmp_path)
    done = call(*shlex.split(command), *SERIAL, "--xpid", "x")
    assert done.code == 0, done.err
    assert "finished at step" in done.out


def test_no_two_test_files_have_one_name():
    """Pytest would collect one of them alone, and count the others as errors."""
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
