"""The process that workers are forked from: killed, stopped, started where nothing is as usual."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import PATIENCE, ROOT, Program, assert_one_line, rows, wait_until

from beast.run import checkpoint, finding

CATCH = ["--env", "Catch-v0", "--num_actors", 4, "--batch_size", 4, "--report_every", 0.2, "--xpid", "r"]
PROCESSES = ["--num_actor_processes", 2]
ENDLESS = ["--total_steps", 10**9]
BEASTS = {"monobeast": [], "polybeast": ["--trainer", "polybeast"]}


def started(start, *flags, **settings) -> Program:
    program = start(*CATCH, *PROCESSES, *ENDLESS, *flags, **settings)
    program.wait_for("loss total")
    return program


def goes_on(program: Program) -> None:
    run = program.folder / "runs" / "r"
    before = rows(run)[-1]["step"]
    wait_until(lambda: rows(run)[-1]["step"] > before + 20 * 50, f"training that goes on\n{program.story()}")


def steps_saved(program: Program) -> int:
    return checkpoint.load(finding.find(str(program.folder / "runs" / "r"), ""))["learner"]["steps"]


@pytest.mark.parametrize("beast", BEASTS)
def test_a_fork_server_that_is_stopped_does_not_stop_the_run(start, beast):
    program = started(start, *BEASTS[beast])
    server, worker = program.fork_server(), program.workers()[0]
    assert server
    server.suspend()
    worker.kill()
    program.wait_for("restarting it (1 of 5)")
    goes_on(program)
    assert f"(pid {worker.pid}) was killed by SIGKILL" in program.out
    program.send(signal.SIGINT)
    assert program.finish().code == 130, program.story()
    assert not program.err
    assert steps_saved(program) == rows(program.folder / "runs" / "r")[-1]["step"]


def test_a_fork_server_that_is_stopped_again_and_again_does_not_keep_ctrl_c_waiting(start):
    program = started(start)
    server, worker = program.fork_server(), program.workers()[0]
    assert server
    worker.kill()
    ends = time.monotonic() + 1.0
    while time.monotonic() < ends:
        with contextlib.suppress(psutil.Error):
            server.suspend()
        time.sleep(0.01)
    program.send(signal.SIGINT)
    while program.process.poll() is None:
        with contextlib.suppress(psutil.Error):
            server.suspend()
        time.sleep(0.01)
        assert time.monotonic() < ends + 60, program.story()
    assert program.finish().code == 130, program.story()
    assert not program.err
    assert steps_saved(program) > 0


@pytest.mark.parametrize("beast", BEASTS)
def test_a_fork_server_that_is_killed_is_started_again(start, beast):
    program = started(start, *BEASTS[beast])
    for _ in range(2):
        server = program.fork_server()
        assert server
        server.kill()
        wait_until(lambda old=server: (new := program.fork_server()) and new != old and program.workers(), "another")
        goes_on(program)
    program.send(signal.SIGINT)
    assert program.finish().code == 130, program.story()
    assert not program.err


@pytest.mark.slow
@pytest.mark.parametrize("max_restarts", [2, 0])
def test_successors_that_are_killed_too_end_the_run_in_one_line_with_a_checkpoint(start, max_restarts):
    program = started(start, "--max_restarts", max_restarts)
    killed: set[int] = set()

    def kill() -> bool:
        server = program.fork_server()
        if server and server.pid not in killed:
            killed.add(server.pid)
            server.kill()
        return program.process.poll() is not None

    wait_until(kill, "the end of the run")
    program.finish()
    assert program.code == 1
    assert_one_line(program, "--max_restarts")
    assert len(killed) == (1 if max_restarts == 0 else 4)
    assert steps_saved(program) == rows(program.folder / "runs" / "r")[-1]["step"]


def test_a_successor_that_is_killed_while_it_starts_is_followed_by_another(start):
    program = started(start)
    first = program.fork_server()
    assert first
    first.kill()
    second = wait_until(lambda: (new := program.fork_server()) and new != first and new, "a successor")
    second.kill()
    wait_until(lambda: (new := program.fork_server()) and new not in (first, second) and program.workers(), "another")
    goes_on(program)
    program.wait_for("the fork server was killed by SIGKILL while")
    program.send(signal.SIGINT)
    assert program.finish().code == 130, program.story()
    assert not program.err


def test_no_helper_of_pythons_own_whose_death_would_be_told(start):
    """Python starts a resource tracker of its own for multiprocessing; killed, it makes warnings at each restart."""
    program = started(start)
    others = [p for p in psutil.Process(program.process.pid).children() if p != program.fork_server()]
    for other in others:
        other.kill()
    for worker in program.workers():
        worker.kill()
    wait_until(lambda: program.out.count("; restarting it (") == 2, "restarts")
    goes_on(program)
    program.send(signal.SIGINT)
    assert program.finish().code == 130
    assert not program.err
    assert not others


def test_a_temporary_folder_with_a_very_long_name(start, tmp_path):
    folder = tmp_path / ("x" * 130)
    folder.mkdir()
    program = start(*CATCH, *PROCESSES, "--total_steps", 400, env={"TMPDIR": str(folder)}).finish()
    assert program.code == 0, program.story()
    assert not program.err
    assert not list(folder.glob("pymp-*"))


@pytest.mark.parametrize("flags", [["--trainer", "monobeast"], ["--trainer", "polybeast", "--eval_every", 100]])
def test_an_ascii_locale(start, flags):
    program = start(*CATCH, *PROCESSES, "--total_steps", 2_000, *flags, env={"LANG": "C", "LC_ALL": "C"}).finish()
    assert program.code == 0, program.story()
    assert not program.err


def test_a_current_folder_that_is_gone(start, tmp_path):
    (tmp_path / "gone").mkdir()

    def leave() -> None:
        os.chdir(tmp_path / "gone")
        os.rmdir(tmp_path / "gone")

    program = start(*CATCH, "--total_steps", 400, preexec_fn=leave).finish()
    assert program.code == 2
    assert_one_line(program, "the current folder does not exist any more")


def test_a_current_folder_that_goes_meanwhile(start, tmp_path):
    (tmp_path / "gone").mkdir()
    program = started(start, "--savedir", tmp_path / "runs", cwd=tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    server = program.fork_server()
    assert server
    server.kill()
    wait_until(lambda: (new := program.fork_server()) and new != server and program.workers(), "another")
    goes_on(program)
    program.send(signal.SIGINT)
    assert program.finish().code == 130, program.story()
    assert not program.err


# -- other users ----------------------------------------------------------------------------------------------------------


OTHER = 12345  # nobody's number


def closed_to_others() -> Path | None:
    """A folder that this Python needs and that other users may not enter."""
    for needed in [Path(sys.executable).resolve(), Path(sys.base_prefix), ROOT, *map(Path, sys.path)]:
        for part in [needed.absolute(), *needed.absolute().parents]:
            if part.is_dir() and not os.stat(part).st_mode & 0o001:
                return part
    return None


def as_another_user() -> list[str]:
    """What to put before a command, so that another user runs it: one who may read all, where this Python is closed to others.

    Reading is all that this leaves to it: it may write no more than anybody.
    """
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv (util-linux) makes another user")
    command = ["setpriv", f"--reuid={OTHER}", f"--regid={OTHER}", "--clear-groups"]
    if closed_to_others() is not None:
        command += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    if tried := subprocess.run([*command, "true"], capture_output=True, text=True).stderr:
        pytest.skip(tried)
    return command


@pytest.mark.skipif(os.geteuid() != 0 if hasattr(os, "geteuid") else True, reason="only root can become another user")
@pytest.mark.parametrize("beast", BEASTS)
@pytest.mark.parametrize("writable", [False, True])
def test_as_a_user_without_a_home_and_in_a_folder_that_cannot_be_written(tmp_path, writable, beast):
    run = [*as_another_user(), sys.executable, str(ROOT / "run.py")]
    home = {"HOME": "/nonexistent", "PATH": os.environ["PATH"]}
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(0o777 if writable else 0o755)
    for part in folder.parents:
        if os.stat(part).st_uid == os.geteuid() and not os.stat(part).st_mode & 0o001:
            part.chmod(0o711)

    def done(*flags: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*run, *map(str, flags)], cwd=folder, env=home, capture_output=True, text=True, timeout=PATIENCE
        )

    trained = done(*CATCH, *PROCESSES, *BEASTS[beast], "--total_steps", 400)
    if not writable:
        assert trained.returncode == 2
        assert len(trained.stderr.splitlines()) == 1, trained.stderr
        assert trained.stderr.startswith("run.py: error: cannot write to runs/r: Permission denied")
        assert not list(folder.iterdir())
        return
    assert (trained.returncode, trained.stderr) == (0, "")
    assert os.stat(folder / "runs" / "r" / "logs.csv").st_uid == OTHER
    played = done("evaluate", "--checkpoint", "r", "--episodes", 2)
    assert (played.returncode, played.stderr) == (0, "")


# -- imports ----------------------------------------------------------------------------------------------------------------

SHADOWS = (
    "random",
    "queue",
    "socket",
    "cv2",
    "signal",
    "typing",
    "enum",
    "pickle",
    "select",
    "torch",
    "trace",
    "profile",
)


def shadow(folder: Path) -> None:
    for name in SHADOWS:
        (folder / f"{name}.py").write_text("raise SystemExit('the user has imported ' + __name__)\n")
    (folder / "whose.py").write_text(
        "import json, os, sys, multiprocessing\n"
        "import random, queue, socket, cv2\n"
        "from beast.envs.catch import Catch\n"
        "def make():\n"
        "    with open(os.environ['SEEN'], 'a') as file:\n"
        "        files = [m.__file__ for m in (random, queue, socket, cv2)]\n"
        "        file.write(json.dumps([os.getpid(), sys.path, files]) + '\\n')\n"
        "    return Catch()\n"
    )


@pytest.mark.parametrize("where", ["elsewhere", "beside run.py"])
@pytest.mark.parametrize("pythonpath", [None, "", "."])
def test_modules_in_the_current_folder_are_not_taken_for_others(tmp_path, where, pythonpath):
    if where == "beside run.py" and pythonpath == "":
        pytest.skip("as without")
    program = ROOT / "run.py"
    if where == "beside run.py":
        for name in ("beast", "monobeast", "polybeast", "models"):
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        program = Path(shutil.copy(program, tmp_path))
    shadow(tmp_path)
    env = {**os.environ, "SEEN": str(tmp_path / "seen.txt")}
    env.pop("PYTHONPATH", None)
    if pythonpath is not None:
        env["PYTHONPATH"] = f"{pythonpath}{os.pathsep}{tmp_path / 'other'}"
        for name in ("beast", "models", "monobeast"):  # and another of our names, in a place that comes before us
            (tmp_path / "other" / name).mkdir(parents=True)
            (tmp_path / "other" / name / "__init__.py").write_text("raise SystemExit('another package')\n")
        # What Python imports by itself before any program begins (an editable installation's finder among it) is beyond
        # reach: an empty name in PYTHONPATH is the current folder, so it must not meet those.
        at_birth = subprocess.run(
            [sys.executable, "-c", "import sys; print(*sys.modules)"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        for name in {"typing", "enum", "signal", *at_birth.stdout.split()}:
            (tmp_path / f"{name}.py").unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, str(program), "--env", "whose:make", *map(str, [*CATCH[2:], *PROCESSES]), "--total_steps", "400"],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    seen = [json.loads(line) for line in (tmp_path / "seen.txt").read_text().splitlines()]
    assert len({pid for pid, _, _ in seen}) == 3  # the parent, which looks at one, and two workers
    assert len({json.dumps(path) for _, path, _ in seen}) == 1
    assert all(str(tmp_path) != os.path.dirname(file) for _, _, files in seen for file in files)
    assert seen[0][1][-1] == str(tmp_path)


# -- the whole group ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("beast", BEASTS)
@pytest.mark.parametrize("number", ["SIGTSTP", "SIGSTOP"])
def test_nobody_is_taken_for_hung_after_the_whole_group_was_stopped(start, beast, number):
    # Not a session's leader as in other tests: the kernel stops no orphaned group with SIGTSTP.
    program = started(start, *BEASTS[beast], "--actor_timeout", 4)
    program.send(getattr(signal, number), group=True)
    if number == "SIGTSTP" and psutil.Process(program.process.pid).status() != psutil.STATUS_STOPPED:
        program.send(signal.SIGSTOP, group=True)
    time.sleep(8.0)
    program.send(signal.SIGCONT, group=True)
    goes_on(program)
    time.sleep(5.0)
    goes_on(program)
    program.send(signal.SIGINT)
    assert program.finish().code == 130
    assert "no sign of life" not in program.out
    assert not program.err
