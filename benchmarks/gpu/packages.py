"""What the command needs beside Python itself, and how a machine without a network comes by it: wheels in a folder."""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

NEEDED = {
    "torch": "torch",
    "numpy": "numpy",
    "gymnasium": "gymnasium",
    "cloudpickle": "cloudpickle",  # gymnasium's
    "ale_py": "ale-py",
    "cv2": "opencv-python-headless",
    "psutil": "psutil",
    "rich": "rich",
}
"""From the name that is imported to the package's: nothing runs without these."""

USEFUL = {
    "farama_notifications": "farama-notifications",  # gymnasium's
    "tensorboard": "tensorboard",
    "pytest": "pytest",
    "pytest_timeout": "pytest-timeout",
}
"""Taken from the wheels where they are missing, and done without where there are none."""


class PackagesMissing(RuntimeError):
    """Something that is needed is neither installed nor among the wheels. The message is one line that says what to type."""


def missing(packages: dict[str, str]) -> list[str]:
    """Names of the packages that cannot be imported."""
    return [package for module, package in packages.items() if find_spec(module) is None]


def provide(wheels: Path) -> list[str]:
    """Have what is missing and lies in `wheels` until this process ends, for it and for all that it starts.

    Returns:
        The names of what was taken from there; none if nothing is missing.

    Raises:
        PackagesMissing: if something needed is still missing then.
    """
    lacking = missing(NEEDED | USEFUL)
    carried = {file.name.split("-")[0].lower().replace("_", "-") for file in wheels.glob("*.whl")}
    names = [name for name in lacking if name in carried]
    if names:
        target = tempfile.mkdtemp(prefix="beast-packages-")
        atexit.register(shutil.rmtree, target, ignore_errors=True)
        options = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--find-links", str(wheels)]
        command = [sys.executable, "-m", "pip", "install", *options, "--target", target, *names]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
            raise PackagesMissing(
                f"pip cannot install {_and(names)} from {wheels} ({reason}); {_advice(wheels, names)}"
            )
        sys.path.insert(0, target)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [target, os.environ.get("PYTHONPATH")]))
        importlib.invalidate_caches()
    if left := missing(NEEDED):
        be = "is" if len(left) == 1 else "are"
        raise PackagesMissing(f"{_and(left)} {be} not installed, and {wheels} has no wheel; {_advice(wheels, left)}")
    return names


def _advice(wheels: Path, names: Iterable[str]) -> str:
    """The command that fetches wheels for this very Python, on a machine with a network."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    platforms = " ".join(f"--platform {name}_{os.uname().machine}" for name in ("manylinux_2_28", "manylinux2014"))
    return (
        f"where there is a network, type: python -m pip download --no-deps --only-binary :all: --python-version {version} "
        f"{platforms} --dest {wheels} {' '.join(names)}"
    )


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
