"""What all tests share: run.py as a user runs it (`start`, `call`), and a look at what it leaves behind."""

from __future__ import annotations

import contextlib
import csv
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch

import run
from beast.processes.children import PRELOAD
from beast.processes.forkserver import PR_SET_PDEATHSIG, prctl

ROOT = Path(run.__file__).parent
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
PATIENCE = 150.0  # seconds for what takes a few on a free machine: tests run on busy ones


def wants_gpu(expression: str) -> bool:
    """Whether `-m EXPRESSION` asks for tests that need a GPU."""
    return re.search(r"\bgpu\b", re.sub(r"\bnot\s+gpu\b", "", expression)) is not None


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPU from this process and all that it starts, unless it was asked for: tests shall not depend on the machine."""
    if not wants_gpu(config.option.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when CUDA is first used, which nothing has done yet


@pytest.fixture(scope="session", autouse=True)
def _no_traces_at_home(tmp_path_factory):
    """The key that checkpoints are signed with is made for the tests, not in the tester's home."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session", autouse=True)
def _one_compute_thread():
    """Test processes run beside each other: more threads than cores make small models ten times slower."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _fork_server_with_torch():
    """A process has one fork server for all tests: whichever starts it, its children must not import torch each."""
    multiprocessing.set_forkserver_preload(PRELOAD)


def wait_until(condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
    """The condition's first true value."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end, f"{what}: not within {timeout:.0f} s"
        time.sleep(0.02)
    return value


def rows(folder: Path) -> list[dict[str, float]]:
    """logs.csv as numbers; what a row does not know is not in it."""
    with contextlib.suppress(FileNotFoundError), open(folder / "logs.csv", newline="") as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]
    return []


def born(more: Callable[[], Any]) -> None:
    """In a program's process, before it runs: a suite that is killed leaves none, and one in the background hands nothing on.

    A shell's background job ignores SIGINT, and one under nohup SIGHUP. What the test has to do there comes after that.
    """
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    more()


class Program:
    """One process of run.py with all its descendants, found by a mark in their environment, even when it is dead."""

    command = (str(ROOT / "run.py"),)

    def __init__(self, arguments: tuple[Any, ...], folder: Path, env: dict[str, str], **settings: Any) -> None:
        self.mark, self.folder = uuid.uuid4().hex, folder
        self.took = float("nan")
        """Seconds that `finish` waited for its end."""
        self.scratch = Path(tempfile.mkdtemp(prefix="beast-"))  # not under tmp_path: sockets need short paths
        self._out, self._err = (folder / f"{kind}-{self.mark}.txt" for kind in ("out", "err"))
        marked = {**os.environ, "TMPDIR": str(self.scratch), "PYTHONUNBUFFERED": "1", "BEAST_TEST": self.mark, **env}
        with open(self._out, "w") as out, open(self._err, "w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *self.command, *map(str, arguments)],
                **{
                    "stdout": out,
                    "stderr": err,
                    "env": marked,
                    "cwd": folder,
                    "start_new_session": True,
                    **settings,
                    "preexec_fn": partial(born, settings.get("preexec_fn", lambda: None)),
                },
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    @property
    def code(self) -> int | None:
        return self.process.returncode

    def family(self) -> list[psutil.Process]:
        """This process and its descendants, as far as they live."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("BEAST_TEST") == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def fork_server(self) -> psutil.Process | None:
        """The child that all workers are forked from."""
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                if process.ppid() == self.process.pid and "forkserver" in " ".join(process.cmdline()):
                    return process
        return None

    def workers(self) -> list[psutil.Process]:
        """Its actor processes, in the order of their start; the evaluator is the last."""
        server = self.fork_server()
        with contextlib.suppress(psutil.Error):
            return sorted(server.children(), key=lambda child: child.create_time()) if server else []
        return []

    def wait_for(self, text: str) -> None:
        """Wait until it is printed."""
        wait_until(lambda: text in self.out or self.process.poll() is not None, f"{text!r} in the output")
        assert text in self.out, self.story()

    def send(self, number: int, group: bool = False) -> None:
        """A signal, to all of the terminal's foreground group if asked for."""
        (os.killpg if group else os.kill)(self.process.pid, number)

    def finish(self, timeout: float = PATIENCE) -> Program:
        """Wait for its end; nothing may be left then, nor a temporary file."""
        began = time.monotonic()
        try:
            self.process.wait(timeout)
            self.took = time.monotonic() - began
        except subprocess.TimeoutExpired:
            pytest.fail(f"it did not end within {timeout:.0f} s\n{self.story()}")
        wait_until(lambda: not self.family(), f"all processes gone\n{self.story()}", 60.0)
        assert not list(self.scratch.glob("pymp-*"))  # where multiprocessing has its sockets
        return self

    def check_no_named_memory(self) -> None:
        """While it runs: what it shares has no name, so it is gone when the processes are."""
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                named = [m.path for m in process.memory_maps() if m.path.startswith("/dev/shm/")]
                assert not [path for path in named if os.path.exists(path)]

    def story(self) -> str:
        return f"exit code {self.process.poll()}\n--- stdout\n{self.out[-3000:]}\n--- stderr\n{self.err[-5000:]}"

    def kill(self) -> None:
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait(30.0)
        shutil.rmtree(self.scratch)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Start run.py with these arguments, in an empty folder. What still runs at the test's end is killed."""
    programs: list[Program] = []

    def start(*arguments: Any, env: dict[str, str] | None = None, **settings: Any) -> Program:
        programs.append(Program(arguments, tmp_path, env or {}, **settings))
        return programs[-1]

    yield start
    for program in programs:
        program.kill()


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Writes a module of the user's own and returns its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Outcome]]:
    """Run run.py's main in this process, in an empty folder: quicker where no process of its own is needed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def call(*arguments: Any) -> Outcome:
        capfd.readouterr()
        try:
            code = run.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    yield call
    for name in set(sys.modules) - modules:
        if str(tmp_path) in repr(getattr(sys.modules[name], "__spec__", None)):
            del sys.modules[name]  # the next test may bring another module of this name
    assert handlers == {number: signal.getsignal(number) for number in handlers}


def assert_one_line(outcome: Outcome | Program, *words: str) -> None:
    """An error as it must be: one line on stderr, a status that is not zero."""
    assert outcome.code not in (0, None), outcome
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("run.py: error: ")
    assert len(lines[0]) < 500
    for word in words:
        assert word in lines[0]


def assert_own_traceback(outcome: Outcome | Program, *words: str) -> None:
    """An error of the user's own code: where it happened, then one line."""
    assert outcome.code not in (0, None), outcome
    assert "Traceback (most recent call last)" in outcome.err
    last = outcome.err.splitlines()[-1]
    assert last.startswith("run.py: error: ")
    for word in words:
        assert word in outcome.err
