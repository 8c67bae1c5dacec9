"""Signals at any moment: which end a run, which do not, and what is left of it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest
from conftest import PATIENCE, Program, rows, wait_until

from beast.run import checkpoint, finding

CATCH = ["--env", "Catch-v0", "--num_actors", 4, "--batch_size", 4, "--report_every", 0.2, "--xpid", "r"]
ENDLESS = ["--total_steps", 10**9]
PROCESSES = ["--num_actor_processes", 2]
SERIAL = ["--num_actor_processes", 0]
POLYBEAST = [*PROCESSES, "--trainer", "polybeast", "--inference", "process"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "r"


def past_the_door(program: Program) -> bool:
    """run.py has begun: it ignores SIGUSR1. (Before its first line Python itself would die of it.)"""
    with contextlib.suppress(OSError, psutil.Error):
        for line in Path(f"/proc/{program.process.pid}/status").read_text().splitlines():
            if line.startswith("SigIgn:"):
                return bool(int(line.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1)
    return False


# -- SIGUSR1: a checkpoint now ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [SERIAL, POLYBEAST], ids=["serial", "polybeast"])
def test_sigusr1_saves_and_training_goes_on(start, run, flags):
    program = start(*CATCH, *flags, *ENDLESS)
    program.wait_for("loss total")
    assert not checkpoint.saved(run)
    for count in (1, 2):
        program.send(signal.SIGUSR1, group=count == 2)  # children must not die of it
        wait_until(lambda count=count: program.out.count("\nsaved runs/r/checkpoints/step_") == count, "a checkpoint")
        steps = checkpoint.load(finding.find(str(run), ""))["learner"]["steps"]
        assert f"saved runs/r/checkpoints/step_{steps:012d}.pt" in program.out
        wait_until(lambda steps=steps: rows(run)[-1]["step"] > steps, "training that goes on")
    assert rows(run)[-1]["restarts"] == 0
    program.send(signal.SIGINT)
    assert program.finish().code == 130, program.story()
    assert not program.err


def test_sigusr1_at_any_moment_harms_nothing(start, run):
    """Every few milliseconds from start to end, to the parent and to its whole group."""
    rng = random.Random(5)
    program = start(*CATCH, *PROCESSES, "--total_steps", 20_000)
    wait_until(lambda: past_the_door(program) or program.process.poll() is not None, "its start", PATIENCE)
    sent = 0
    while program.process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            program.send(signal.SIGUSR1, group=rng.random() < 0.5)
            sent += 1
        time.sleep(rng.uniform(0.001, 0.05))
    assert program.finish().code == 0, program.story()
    assert not program.err
    assert sent > 20
    assert rows(run)[-1]["restarts"] == 0
    assert "finished at step" in program.out


def test_sigusr1_without_checkpoints_says_so(start):
    program = start(*CATCH, *SERIAL, *ENDLESS, "--disable_checkpoint")
    program.wait_for("loss total")
    program.send(signal.SIGUSR1)
    program.wait_for("nothing saved: this run keeps no checkpoints")
    program.send(signal.SIGTERM)
    assert program.finish().code == 143


# -- SIGINT: Ctrl-C while it starts -------------------------------------------------------------------------------------

TRIES = int(os.environ.get("BEAST_TRIES", "10"))


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def interrupted(start, run: Path, flags: list, seed: int) -> str:
    """Ctrl-C at a moment of the time in which imports, processes and the first updates come; returns how far it was."""
    chance = random.Random(seed)
    program = start(*CATCH, *flags, *ENDLESS)
    wait_until(lambda: past_the_door(program), "its start")
    # By what has happened as often as by the clock: on a full machine everything takes longer.
    marks = (
        ["", "run folder", "loss total"]
        if flags[:2] == SERIAL
        else ["", "fork server", "run folder", "worker", "loss total"]
    )
    mark = chance.choice(marks)
    met = {
        "": lambda: True,
        "fork server": program.fork_server,
        "run folder": lambda: (run / "log.txt").exists(),
        "worker": program.workers,
        "loss total": lambda: "loss total" in program.out,
    }[mark]
    wait_until(lambda: met() or program.process.poll() is not None, mark)
    time.sleep(chance.choice([0.0, 0.01, 0.1, 1.0]) * chance.random())
    group = chance.random() < 0.5
    seen = set(psutil.Process(program.process.pid).children(recursive=True))
    program.send(signal.SIGINT, group)
    program.finish()
    story = f"seed {seed}: {mark or 'at once'}, {'group' if group else 'process'}\n{program.story()}"
    assert program.code == 130, story
    assert program.err in ("", "run.py: error: interrupted\n"), story
    assert "killed" not in program.out, story
    assert "restarting" not in program.out, story
    # A process that is dying has lost its environment, by which `finish` knows its own, before it is gone.
    wait_until(lambda: not any(map(alive, seen)), f"children gone\n{story}", 30.0)
    kept = checkpoint.saved(run)
    if kept:
        steps = checkpoint.load(kept[-1])["learner"]["steps"]
        assert f"stopped at step {steps:,} of 1,000,000,000; saved " in program.out, story
        return "saved"
    if program.err:
        assert not program.out or "stopped at" not in program.out, story
        return "interrupted"
    assert "stopped at step 0 of 1,000,000,000; nothing saved" in program.out, story
    return "nothing saved"


@pytest.mark.parametrize("flags", [PROCESSES, POLYBEAST], ids=["monobeast", "polybeast"])
def test_ctrl_c_while_it_starts(start, run, flags):
    interrupted(start, run, flags, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [SERIAL, PROCESSES, POLYBEAST], ids=["serial", "monobeast", "polybeast"])
@pytest.mark.parametrize("seed", range(TRIES))
def test_ctrl_c_at_many_moments_of_a_start(start, run, flags, seed):
    """`BEAST_TRIES=100` for more of them."""
    print(interrupted(start, run, [*flags, "--eval_every", 500] if seed % 2 else flags, seed))


# -- SIGHUP: the terminal is gone -------------------------------------------------------------------------------------


def test_sighup_to_the_group_saves_and_ends(start, run):
    program = start(*CATCH, *POLYBEAST, *ENDLESS)
    program.wait_for("loss total")
    program.send(signal.SIGHUP, group=True)
    assert program.finish().code == 129, program.story()
    assert not program.err
    steps = checkpoint.load(finding.find(str(run), ""))["learner"]["steps"]
    assert f"stopped at step {steps:,} of 1,000,000,000; saved " in program.out


def test_sighup_before_there_is_anything_to_save(start):
    program = start(*CATCH, *PROCESSES, *ENDLESS)
    wait_until(lambda: past_the_door(program), "its start")
    time.sleep(0.2)
    program.send(signal.SIGHUP, group=True)
    assert program.finish().code == 129, program.story()
    assert program.err == "run.py: error: interrupted\n"


def test_nohup_is_respected(start):
    def nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    program = start(*CATCH, *PROCESSES, *ENDLESS, preexec_fn=nohup)
    wait_until(lambda: past_the_door(program), "its start")
    program.send(signal.SIGHUP, group=True)
    program.wait_for("loss total")
    program.send(signal.SIGHUP, group=True)
    shown = program.out.count("\nstep ")
    wait_until(lambda: program.out.count("\nstep ") > shown + 1, "training that goes on")
    assert "restarting" not in program.out
    program.send(signal.SIGINT)
    assert program.finish().code == 130, program.story()


def test_a_terminal_that_is_closed(start, run):
    """A window that is shut: SIGHUP to all, and every write to it fails from then on."""
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    program = start(
        *CATCH, *PROCESSES, *ENDLESS, stdin=theirs, stdout=theirs, stderr=theirs,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(theirs)
    os.set_blocking(ours, False)

    def read() -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            os.read(ours, 1 << 16)

    wait_until(lambda: (read(), len(rows(run)) > 3)[1], "rows")
    os.close(ours)
    assert program.finish().code == 129
    steps = checkpoint.load(finding.find(str(run), ""))["learner"]["steps"]
    assert f"stopped at step {steps:,}" in (run / "log.txt").read_text()


# -- SIGKILL: nothing stays -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["start", "saving"])
def test_kill_9_of_the_parent_leaves_no_child_and_no_file(start, run, moment):
    program = start(*CATCH, *POLYBEAST, *ENDLESS, "--checkpoint_every", 1e-3, "--eval_every", 500)
    if moment == "start":
        wait_until(lambda: program.fork_server() and not list(program.scratch.glob("pymp-*")), "a fork server")
    else:
        wait_until(lambda: checkpoint.saved(run), "a checkpoint")
        time.sleep(random.Random(1).uniform(0.0, 0.5))
    program.check_no_named_memory()
    program.process.kill()
    program.process.wait()
    killed = time.monotonic()
    wait_until(lambda: not program.family(), "all children gone")
    print(f"gone after {time.monotonic() - killed:.2f} s")
    assert time.monotonic() - killed < 20.0  # tenths of a second, but for looking through all processes of the machine
    assert program.finish().code == -signal.SIGKILL
    for file in checkpoint.saved(run):
        checkpoint.load(file)
