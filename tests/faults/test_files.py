"""Files of a run: their order, their rights, what a killed writer leaves, and kills at any moment of writing."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, assert_one_line, wait_until

from beast.report.files import write_atomically
from beast.run import checkpoint, finding, trainer

SMALL = ["--env", "Catch-v0", "--num_actor_processes", 0, "--num_actors", 2, "--batch_size", 2]


# -- order ------------------------------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_costs_no_checkpoint(call, tmp_path):
    """Those of before have times in the future; the newest is what was written last all the same."""
    run = tmp_path / "runs" / "r"
    assert call(*SMALL, "--xpid", "r", "--total_steps", 80).code == 0
    for total in (120, 160, 200):
        for file in checkpoint.saved(run):
            os.utime(file, (4e9 + total, 4e9 + total))
        assert call("--resume", "r", "--total_steps", total).code == 0
        assert checkpoint.newest_first(run)[0].name == f"step_{total:012d}.pt"
    assert [int(file.stem.split("_")[1]) for file in checkpoint.newest_first(run)] == [200, 160, 120]
    (run / "checkpoints" / "latest.pt").unlink()
    assert finding.find("r", "runs").name == "step_000000000200.pt"


def test_the_order_outlives_a_copy_without_times(call, tmp_path):
    run = tmp_path / "runs" / "r"
    assert call(*SMALL, "--xpid", "r", "--total_steps", 120).code == 0
    old = checkpoint.load(checkpoint.saved(run)[0])
    for step in (300, 40, 200):
        checkpoint.save(run, old, step, keep=0)
    for file in checkpoint.saved(run):
        os.utime(file, (0, 0))
    assert [int(file.stem.split("_")[1]) for file in checkpoint.newest_first(run)] == [200, 40, 300, 120]


def test_checkpoints_from_before_numbers_are_the_oldest(call, tmp_path):
    run = tmp_path / "runs" / "r"
    assert call(*SMALL, "--xpid", "r", "--total_steps", 120).code == 0
    (first,) = checkpoint.saved(run)
    state = checkpoint.load(first)
    for step, at in ((900, 5e9), (500, 6e9)):
        file = first.with_name(f"step_{step:012d}.pt")
        torch.save(state, file)
        os.utime(file, (at, at))
    assert [int(file.stem.split("_")[1]) for file in checkpoint.newest_first(run)] == [120, 500, 900]
    checkpoint.save(run, state, 130, keep=3)
    assert [int(file.stem.split("_")[1]) for file in checkpoint.newest_first(run)] == [130, 120, 500]


# -- rights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664), (0o027, 0o640)], ids=oct)
def test_files_have_the_rights_that_the_umask_leaves(call, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        assert call(*SMALL, "--xpid", "r", "--total_steps", 80, "--report_every", 0.001).code == 0
        assert call("evaluate", "--checkpoint", "r", "--episodes", 1, "--json", "figures.json").code == 0
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "runs" / "r").rglob("*") if path.is_file() and not path.is_symlink()]
    assert {path.name for path in files} >= {"config.json", "logs.csv", "log.txt", "step_000000000080.pt"}
    for path in [*files, tmp_path / "figures.json"]:
        assert path.stat().st_mode & 0o777 == mode, path


# -- what a killed writer leaves --------------------------------------------------------------------------------------


def test_temporary_files_of_the_dead_are_gone_with_the_next_save_and_no_others(call, tmp_path):
    run = tmp_path / "runs" / "r"
    assert call(*SMALL, "--xpid", "r", "--total_steps", 80).code == 0
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = [
        run / "checkpoints" / ".step_000000000100.pt.0a1b2c3d",
        run / "checkpoints" / ".step_000000000100.pt.ab_3xq7z",  # as earlier versions named them
        run / ".config.json.0a1b2c3d",
        run / ".logs.csv.0a1b2c3d",
    ]
    for path in left:
        path.write_bytes(b"half a")
    link = run / "checkpoints" / f".latest.pt.{dead.pid}"
    link.symlink_to("step_000000000080.pt")
    ours = [run / ".notes.txt.0a1b2c3d", run / "checkpoints" / ".step_1", run / "step_000000000100.pt.0a1b2c3d"]
    for path in ours:
        path.write_text("of the user")
    alive = run / "checkpoints" / ".step_000000000100.pt.11111111"
    with open(alive, "wb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)  # as a live writer holds its own
        live_link = run / "checkpoints" / f".latest.pt.{os.getppid()}"
        live_link.symlink_to("step_000000000080.pt")
        assert call("--resume", "r", "--total_steps", 120).code == 0
        assert not [path for path in [*left, link] if os.path.lexists(path)]
        assert all(os.path.lexists(path) for path in [*ours, alive, live_link])
    assert call("--resume", "r", "--total_steps", 160).code == 0
    assert not alive.exists()  # its writer is gone now


def test_two_writers_and_a_cleaner_lose_nothing(tmp_path):
    """A file may be taken for one that was left behind before it is locked: then another is made."""
    from concurrent.futures import ThreadPoolExecutor

    (tmp_path / "checkpoints").mkdir()

    def write(worker: int) -> None:
        for step in range(100):
            path = tmp_path / "checkpoints" / f"step_{worker}{step:04d}.pt"
            write_atomically(path, lambda file: file.write(b"whole"))
            assert path.read_bytes() == b"whole"

    def clean(_: int) -> None:
        for _ in range(300):
            checkpoint.remove_left_behind(tmp_path)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda task: task[0](task[1]), [(write, 1), (write, 2), (clean, 0), (clean, 1)]))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == sorted(f"step_{worker}{step:04d}.pt" for worker in (1, 2) for step in range(100))


# -- kills while writing ----------------------------------------------------------------------------------------------

WRITER = """
import sys, torch
from pathlib import Path
from beast.run import checkpoint

run, state = Path(sys.argv[1]), torch.load(sys.argv[2], weights_only=True)
step = int(sys.argv[3])
while True:
    step += 1
    state["learner"]["steps"] = step
    state["learner"]["model"]["ballast"] = torch.full((500_000,), float(step))  # 2 MB: writing takes a while
    checkpoint.save(run, state, step, 2)
    print(step, flush=True)
"""


@pytest.mark.parametrize("kills", [20, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(1_200)])])
def test_a_kill_at_any_moment_of_writing_loses_no_checkpoint(call, tmp_path, kills):
    """What was said to be written is there, whole, and the newest; nothing but the last writer's file is left over."""
    run = tmp_path / "runs" / "r"
    assert call(*SMALL, "--xpid", "r", "--total_steps", 80).code == 0
    torch.save(checkpoint.load(checkpoint.saved(run)[0]), tmp_path / "state.pt")
    (tmp_path / "writer.py").write_text(WRITER)
    rng, step, unfinished = random.Random(kills), 1_000, 0
    for _ in range(kills):
        writer = subprocess.Popen(
            [sys.executable, tmp_path / "writer.py", run, tmp_path / "state.pt", str(step)], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert writer.stdout
        said = int(writer.stdout.readline())
        time.sleep(rng.uniform(0.0, 0.1))
        writer.send_signal(signal.SIGKILL)
        said = max([said, *map(int, writer.stdout.read().split())])
        writer.wait()
        lines: list[str] = []
        _, state = finding.load_newest("r", "runs", lines.append)
        step = state["learner"]["steps"]
        assert (lines, step - said in (0, 1)) == ([], True), (lines, step, said)
        assert (state["learner"]["model"]["ballast"] == step).all()
        left = [path for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]
        assert len(left) <= 2, left  # a file, a link
        assert len(checkpoint.saved(run)) <= 4
        unfinished += bool(left)
    assert unfinished  # some were hit in the middle


# -- the first checkpoint ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_first_checkpoint_does_not_wait_for_checkpoint_every(start, tmp_path):
    """A run whose parent is killed has something to go on from: within a minute."""
    flags = [
        "--env",
        "Catch-v0",
        "--num_actors",
        2,
        "--batch_size",
        2,
        "--num_actor_processes",
        1,
        "--checkpoint_every",
        60,
    ]
    program = start(*flags, "--total_steps", 10**9, "--xpid", "r")
    program.wait_for("training")
    began = time.monotonic()
    run = tmp_path / "runs" / "r"
    wait_until(lambda: checkpoint.saved(run), "a checkpoint", 90.0)
    assert time.monotonic() - began < 90.0
    program.process.kill()
    program.finish()
    assert checkpoint.load(finding.find("r", str(tmp_path / "runs")))["learner"]["updates"] > 0


@pytest.mark.parametrize(("every", "saves"), [(60, 2), (1e-9, 10)])
def test_later_checkpoints_come_as_asked(call, tmp_path, monkeypatch, every, saves):
    """Of ten updates: the first, where it is due at once, and the end; or each."""
    steps: list[int] = []
    real = checkpoint.save

    def save(run: Path, state: dict[str, Any], step: int, keep: int) -> Path:
        steps.append(step)
        return real(run, state, step, keep)

    monkeypatch.setattr(trainer, "FIRST_CHECKPOINT", 0.0)
    monkeypatch.setattr(checkpoint, "save", save)
    assert call(*SMALL, "--total_steps", 400, "--checkpoint_every", every).code == 0
    assert len(set(steps)) == saves
    assert (min(steps), max(steps)) == (40, 400)


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "xpid",
    ["a\nb", "a\x1b[31mb", "a b", "-x", "--help", "a\tb", "a\u00a0b", "a\u2028b",
     "\udcff", "a/b", "", "..", "latest", "a\x00", "\u202eab"],
    ids=ascii,
)  # fmt: skip
def test_names_that_could_be_taken_for_something_else_are_refused(call, tmp_path, xpid):
    done = call(*SMALL, f"--xpid={xpid}", "--total_steps", 80)
    assert_one_line(done, "--xpid")
    assert done.err.removesuffix("\n").isprintable()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("xpid", ["a.b-c_d", "größe=3,x+1", "@1:2", "_", ".hidden"])
def test_names_that_may_be_had(call, tmp_path, xpid):
    assert call(*SMALL, "--xpid", xpid, "--total_steps", 80).code == 0
    assert (tmp_path / "runs" / xpid / "config.json").exists()
    assert call("--resume", f"runs/{xpid}", "--total_steps", 120).code == 0


def test_an_old_run_of_an_odd_name_goes_on(call, tmp_path):
    assert call(*SMALL, "--xpid", "r", "--total_steps", 80).code == 0
    run = (tmp_path / "runs" / "r").rename(tmp_path / "runs" / "my run")
    state = checkpoint.load(checkpoint.saved(run)[0])
    state["config"]["xpid"] = "my run"
    checkpoint.save(run, state, 80, 3)
    assert call("evaluate", "--checkpoint", "my run", "--episodes", 1).code == 0
    done = call("--resume", "my run", "--total_steps", 120)
    assert done.code == 0, done.err


# -- what is no file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["logs.csv", "log.txt", ".lock", "checkpoints/step_000000000081.pt", "checkpoints/.latest.pt.abcd"]
)
def test_a_pipe_in_the_place_of_a_file_keeps_nobody_waiting(call, tmp_path, name):
    assert call(*SMALL, "--xpid", "r", "--total_steps", 80).code == 0
    path = tmp_path / "runs" / "r" / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert call("evaluate", "--checkpoint", "r", "--episodes", 1).code == 0
    for command in (["--resume", "r", "--total_steps", 120], [*SMALL, "--xpid", "r", "--total_steps", 80]):
        assert_one_line(call(*command), f"runs/r/{name} is neither a file nor a folder: remove it")


@pytest.mark.parametrize("target", ["/", "/dev/zero", "latest.pt", "/nonexistent"])
def test_latest_may_lead_anywhere(call, tmp_path, target):
    assert call(*SMALL, "--xpid", "r", "--total_steps", 80).code == 0
    folder = tmp_path / "runs" / "r" / "checkpoints"
    (folder / "latest.pt").unlink()
    (folder / "latest.pt").symlink_to(target)
    assert call("evaluate", "--checkpoint", "r", "--episodes", 1).code == 0
    (folder / "step_000000000080.pt").unlink()
    (folder / "step_000000000080.pt").symlink_to(target)
    assert_one_line(call("evaluate", "--checkpoint", "r", "--episodes", 1), "has no checkpoint")
