"""What a machine may lack, and what two runs share on one machine: nothing but the processors."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import PATIENCE, ROOT, assert_one_line, rows, wait_until

from beast.run import checkpoint, finding

CATCH = ["--env", "Catch-v0", "--num_actors", 4, "--batch_size", 4, "--report_every", 0.2, "--num_actor_processes", 2]
ENDLESS = ["--total_steps", 10**9]


def limit_files(soft: int, hard: int):
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    "flags",
    [["--use_lstm"], ["--trainer", "polybeast", "--inference", "process"]],
    ids=["monobeast", "polybeast"],
)
def test_few_open_files_are_enough(start, flags):
    """Some for each process, none for each tensor; a soft limit is raised."""
    files = 40 + 10 * 2
    program = start(*CATCH, *flags, "--total_steps", 4_000, preexec_fn=limit_files(32, files)).finish()
    assert program.code == 0, program.story()
    assert not program.err


@pytest.mark.parametrize("limit", [59, 24])
def test_too_few_open_files_are_named_before_anything_is_written(start, tmp_path, limit):
    program = start(*CATCH, *ENDLESS, preexec_fn=limit_files(limit, limit)).finish()
    assert_one_line(program, "open files", "ulimit -n", "--num_actor_processes")
    assert not (tmp_path / "runs").exists()


def test_two_runs_do_not_disturb_each_other(start, tmp_path):
    """Side by side in one savedir; one is killed, the other hears nothing of it."""
    one = start(*CATCH, *ENDLESS, "--xpid", "one", "--eval_every", 1_000)
    other = start(*CATCH, *ENDLESS, "--xpid", "other", "--trainer", "polybeast", "--inference", "process")
    for program in (one, other):
        program.wait_for("loss total")
        program.check_no_named_memory()
    one.process.kill()
    one.finish()
    run = tmp_path / "runs" / "other"
    before = rows(run)[-1]["step"]
    wait_until(lambda: rows(run)[-1]["step"] > before + 2_000, "the other that goes on")
    assert rows(run)[-1]["restarts"] == 0
    other.send(2)
    assert other.finish().code == 130, other.story()
    assert not other.err
    assert checkpoint.load(finding.find(str(run), ""))["learner"]["steps"] > before


@pytest.mark.skipif(sys.platform != "linux", reason="memfd is Linux's")
def test_shared_memory_has_no_name_and_is_its_users_alone(start):
    program = start(*CATCH, *ENDLESS, "--trainer", "polybeast")
    program.wait_for("loss total")
    blocks = 0
    for process in program.family():
        opened = Path(f"/proc/{process.pid}/fd")
        assert opened.stat().st_uid == os.geteuid()
        assert opened.stat().st_mode & 0o077 == 0  # no other user reaches a descriptor of ours, and there is no name
        for m in process.memory_maps(grouped=False):
            blocks += "memfd:beast" in m.path
            assert not m.path.startswith(("/dev/shm/", "/SYSV", str(program.scratch)))
    assert blocks > 6  # the board, the weights, the store in each
    program.process.send_signal(2)
    program.finish()


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare")
@pytest.mark.parametrize("trainer", ["monobeast", "polybeast"])
def test_a_dev_shm_that_is_too_small_does_not_matter(tmp_path, trainer):
    """As in containers: here a page of 4 KiB, read-only."""
    command = (
        "mount -t tmpfs -o size=4k,ro none /dev/shm || exit 77\n"
        f'exec "{sys.executable}" "{ROOT}/run.py" "$@"'
    )  # fmt: skip
    unshare = ["unshare", "--mount", "--map-root-user", "sh", "-c", command, "sh"]
    flags = [str(flag) for flag in [*CATCH, "--trainer", trainer, "--total_steps", 2_000, "--xpid", "r"]]
    done = subprocess.run([*unshare, *flags], cwd=tmp_path, timeout=PATIENCE, capture_output=True, text=True)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("this machine lets nobody mount")
    assert (done.returncode, done.stderr) == (0, "")
    assert checkpoint.load(finding.find(str(tmp_path / "runs" / "r"), ""))["learner"]["steps"] >= 2_000


def test_a_run_leaves_no_descriptor_and_no_thread_in_its_process(call):
    """Whoever calls it again and again, as a search does, has no more of them each time."""
    me = psutil.Process()

    def run(number: int) -> tuple[int, int]:
        flags = [*CATCH, "--trainer", "polybeast", "--total_steps", 400, "--xpid", f"r{number}"]
        done = call(*flags)
        assert done.code == 0, done.err
        import gc

        gc.collect()
        return me.num_fds(), me.num_threads()

    run(0)
    assert run(1) == run(2)
