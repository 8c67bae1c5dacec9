"""Installed beside a user's own code, from a wheel or editable: their `models/` and `run.py` are theirs, ours are found."""

from __future__ import annotations

import configparser
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from conftest import PATIENCE, ROOT

TINY = ["--env", "Catch-v0", "--num_actors", "4", "--batch_size", "4", "--total_steps", "80"]
MODEL = "import pathlib\nfrom beast.models.mlp import Model\npathlib.Path('THEIRS').touch()\n"


def settings():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    options = parser["options"]
    beside = dict(line.split(" = ") for line in options["package_dir"].split("\n") if line)
    return options["packages"].split(), beside


def test_all_packages_of_the_tree_are_installed_under_one_name():
    packages, beside = settings()
    folders = {beside.get(name, name.replace(".", "/")) for name in packages}
    assert folders == {
        str(file.parent.relative_to(ROOT))
        for top in ("beast", "models", "monobeast", "polybeast", "a3c")
        for file in (ROOT / top).rglob("__init__.py")
    }
    assert all(name.partition(".")[0] == "beast" for name in packages)


def test_names_are_the_same_in_the_source_tree():
    _, beside = settings()
    for name, folder in beside.items():
        assert importlib.util.find_spec(name).origin == str(ROOT / folder / "__init__.py")


@pytest.fixture(scope="module", params=["wheel", "editable"])
def scripts(request, tmp_path_factory):
    """The folder of programs of a fresh virtual environment with this program in it; all else is taken from this one."""
    if importlib.util.find_spec("setuptools") is None or importlib.util.find_spec("pip") is None:
        pytest.skip("needs pip and setuptools")
    folder = tmp_path_factory.mktemp(request.param)
    source = folder / "source"
    for name in ("beast", "models", "monobeast", "polybeast", "a3c"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "run.py"):
        shutil.copy(ROOT / name, source)
    venv.create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    say = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", say], capture_output=True, text=True, check=True).stdout.strip())
    (site / "outer.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}) + "\n")
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
    ]
    options = ["--disable-pip-version-check", "--no-index", "--ignore-installed"]
    what = [str(source)] if request.param == "wheel" else ["-e", str(source)]
    done = subprocess.run([*install, *options, *what], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return python.parent


@pytest.fixture
def project(tmp_path):
    """A user's own, with names that are ours too."""
    (tmp_path / "models").mkdir()
    for name in ("my_net", "mlp"):
        (tmp_path / "models" / f"{name}.py").write_text(MODEL)
    for name in ("run", "monobeast", "polybeast", "a3c", "benchmarks"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the user has run ' + __name__)\n")
    return tmp_path


def run(folder, *command):
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([*command], cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.slow
def test_a_project_of_a_users_own(scripts, project):
    command = str(scripts / "beast")
    done = run(project, command, *TINY, "--num_actor_processes", "1", "--model", "models.my_net", "--xpid", "own")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert (project / "THEIRS").exists()
    (project / "THEIRS").unlink()
    done = run(project, command, *TINY, "--num_actor_processes", "0", "--trainer", "polybeast", "--xpid", "ours")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert not (project / "THEIRS").exists()  # the default model here is called mlp too


@pytest.mark.slow
def test_a_script_of_a_users_own_and_a_name_of_old(scripts, project):
    (project / "script.py").write_text(
        "import beast\n"
        "flags = dict(env='CartPole-v1', num_actors=4, batch_size=4, total_steps=80, num_actor_processes=1)\n"
        "for name in ('models.my_net', 'models.mlp'):\n"
        "    beast.load(beast.train(**flags, model=name))\n"
    )
    (project / "models" / "mlp.py").unlink()  # now it can only be ours
    done = run(project, str(scripts / "python"), "script.py")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert (project / "THEIRS").exists()


@pytest.mark.slow
def test_nothing_else_is_installed(scripts, tmp_path):
    names = ("models", "run", "monobeast", "polybeast", "a3c")
    code = f"import importlib.util as u; print([n for n in {names} if u.find_spec(n)])"
    assert run(tmp_path, str(scripts / "python"), "-c", code).stdout == "[]\n"
