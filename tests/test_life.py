"""A run's life: trained, stopped, killed, resumed, evaluated. What is left after each, and what must not be."""

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
import torch
from conftest import PATIENCE, ROOT, Program, rows, wait_until

from beast.run import checkpoint, finding
from beast.run.trainer import STOP_DEADLINE

CATCH = ["--env", "Catch-v0", "--num_actors", 4, "--batch_size", 4, "--report_every", 0.2]
PROCESSES = ["--num_actor_processes", 2]
SERIAL = ["--num_actor_processes", 0]
ENDLESS = ["--total_steps", 10**9]
SECONDS = 20.0  # from a signal to the end; on a free machine it is one or two


def load(run: Path) -> dict:
    return checkpoint.load(finding.find(str(run), ""))


def assert_one_curve(log: list[dict[str, float]]) -> None:
    """The rows of a run that was resumed are those of an unbroken one: nothing twice, nothing out of order."""
    for name in ("time", "step", "updates", "episodes"):
        values = [row[name] for row in log]
        assert values == sorted(values), name
    learned = [row["step"] for row in log if "total_loss" in row]
    assert len(set(learned)) == len(learned) > 0


# -- from train to video ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a finished run, with an LSTM, two processes and an evaluator. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished")
    program = Program(
        (*CATCH, *PROCESSES, "--xpid", "done", "--use_lstm", "--total_steps", 4_000, "--learning_rate", 1e-3,
         "--eval_every", 1_000, "--eval_episodes", 3), folder, {},
    )  # fmt: skip
    try:
        program.finish()
        assert program.code == 0, program.story()
        assert not program.err
        assert "finished at step" in program.out
    finally:
        program.kill()
    return folder / "runs" / "done"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The same in this test's own folder."""
    shutil.copytree(finished.parent, tmp_path / "runs", symlinks=True)
    return tmp_path / "runs" / "done"


def test_what_a_run_leaves(finished):
    names = {path.name.partition(".tfevents")[0] for path in finished.iterdir()}
    assert names == {"config.json", "logs.csv", "log.txt", "events.out", "checkpoints", ".lock"}
    state = load(finished)
    log = rows(finished)
    assert 4_000 <= state["learner"]["steps"] == log[-1]["step"]
    assert state["learner"]["updates"] == log[-1]["updates"] == state["learner"]["steps"] / 80
    assert log[-1]["learning_rate"] == 0.0
    assert log[-1]["episodes"] > 0
    assert {"mean_episode_return", "total_loss", "policy_lag_mean", "sps", "env/caught"} <= log[-1].keys()
    latest = finished / "checkpoints" / "latest.pt"
    assert latest.resolve().name == f"step_{state['learner']['steps']:012d}.pt"
    assert (finished.parent / "latest").resolve() == finished.resolve()


def test_evaluate_needs_nothing_but_the_checkpoint(call, copied, tmp_path):
    done = call("evaluate", "--checkpoint", "done", "--episodes", 20, "--json", "new/figures.json")
    assert done.code == 0, done.err
    figures = json.loads((tmp_path / "new" / "figures.json").read_text())
    returns = figures["returns"]
    assert len(returns) == len(figures["lengths"]) == figures["episodes"] == 20
    assert set(returns) <= {-1.0, 1.0}
    assert figures["lengths"] == [9] * 20  # of Catch, always
    assert figures["mean"] == pytest.approx(sum(returns) / 20)
    assert figures["std"] == pytest.approx((1 - figures["mean"] ** 2) ** 0.5)
    assert figures["step"] == load(copied)["learner"]["steps"]
    assert f"mean return {figures['mean']:.2f}" in done.out
    assert not done.err
    # However it is named, and whatever the directory; the same seed plays the same games.
    for name in ("latest", copied, copied / "checkpoints" / "latest.pt"):
        same = call("evaluate", "--checkpoint", name, "--episodes", 20)
        assert same == (0, done.out, "")
    other = call("evaluate", "--checkpoint", "done", "--episodes", 20, "--seed", 4)
    assert other.code == 0
    assert other.out.splitlines()[1] != done.out.splitlines()[1]
    greedy = call("evaluate", "--checkpoint", "done", "--episodes", 20, "--deterministic")
    assert greedy.code == 0
    assert "deterministic actions" in greedy.out


def test_evaluate_records_a_video(call, copied, tmp_path):
    cv2 = pytest.importorskip("cv2")
    done = call("evaluate", "--checkpoint", "done", "--episodes", 1, "--video", "videos")
    assert done.code == 0, done.err
    assert "videos/episode.mp4" in done.out
    video = cv2.VideoCapture(str(tmp_path / "videos" / "episode.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 9
    assert (video.get(cv2.CAP_PROP_FRAME_WIDTH), video.get(cv2.CAP_PROP_FRAME_HEIGHT)) == (80, 160)


def test_evaluation_beside_training_is_in_the_logs(finished):
    evaluated = [row for row in rows(finished) if "eval_return_mean" in row]
    assert evaluated
    steps = [row["eval_step"] for row in evaluated]
    assert steps == sorted(set(steps))
    for row in evaluated:
        assert 1_000 <= row["eval_step"] <= row["step"]
        assert -1.0 <= row["eval_return_mean"] <= 1.0


def test_a_finished_run_says_so(call, copied):
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    done = call(*SERIAL, "--resume", "done")
    assert done.code == 0
    assert not done.err
    assert "done is finished" in done.out
    assert "--total_steps" in done.out
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


# -- resume -----------------------------------------------------------------------------------------------------------


def test_resume_goes_on_with_more_steps(call, copied):
    first, old = load(copied), rows(copied)
    done = call("--resume", "done", *SERIAL, "--total_steps", 8_000)
    assert done.code == 0, done.err
    assert "resuming Catch-v0 with mlp" in done.out
    state, log = load(copied), rows(copied)
    assert state["learner"]["steps"] >= 8_000
    assert state["resumes"] == 1
    assert state["config"]["use_lstm"] is True
    assert log[: len(old)] == old
    assert_one_curve(log)
    for name in ("time", "step", "updates", "episodes"):
        assert log[-1][name] > old[-1][name]
    written = json.loads((copied / "config.json").read_text())
    assert written["flags"]["total_steps"] == 4_000  # what it began with
    (resumed,) = written["resumed"]
    assert resumed["step"] == first["learner"]["steps"]
    assert resumed["flags"] == {"total_steps": 8_000, "num_actor_processes": 0}
    # The next one goes on with what this one was given.
    assert "is finished" in call("--resume", "done").out


def test_resume_takes_the_optimiser_up_where_it_was(call, tmp_path):
    run = tmp_path / "runs" / "r"
    assert call(*CATCH, *SERIAL, "--xpid", "r", "--total_steps", 240).code == 0
    old = load(run)["learner"]
    assert call("--resume", "r", "--total_steps", 320).code == 0
    new = load(run)["learner"]
    assert (old["updates"], new["updates"]) == (3, 4)
    before, after = (learner["optimiser"]["moments"]["mean_square"] for learner in (old, new))
    assert before.max() > 0
    assert (after >= 0.989 * before).all()  # the mean of squares decays by 0.99 an update


def test_an_interrupted_run_goes_on_as_one_curve(start, tmp_path):
    program = start(*CATCH, *PROCESSES, "--xpid", "cut", "--total_steps", 100_000, "--learning_rate", 1e-3)
    run = tmp_path / "runs" / "cut"
    wait_until(lambda: len(rows(run)) > 2, "three reports")
    program.send(signal.SIGINT)
    assert program.finish().code == 130, program.story()
    reached = load(run)["learner"]["steps"]
    assert 0 < reached < 100_000
    assert rows(run)[-1]["step"] == reached
    # A run that was killed leaves rows of the time after its last checkpoint, the last one cut off: they are made again.
    with open(run / "logs.csv", "a") as file:
        file.write(f"999999,{reached + 80}\n99")
    again = start("--resume", run, "--total_steps", reached + 20_000).finish()
    assert again.code == 0, again.story()
    assert f"of {reached + 20_000:,}" in again.out
    state, log = load(run), rows(run)
    assert reached + 20_000 <= state["learner"]["steps"] == log[-1]["step"]
    assert_one_curve(log)
    assert all(row["time"] < 99_999 for row in log)


def test_the_learning_rate_goes_on_where_it_was(call, tmp_path):
    run = tmp_path / "runs" / "r"
    flags = [*CATCH, *SERIAL, "--report_every", 0.01, "--learning_rate", 1e-3]
    assert call(*flags, "--xpid", "r", "--total_steps", 4_000).code == 0
    state = load(run)
    state["config"]["total_steps"] = 8_000  # as if it had been stopped half-way
    checkpoint.save(run, state, state["learner"]["steps"], keep=3)
    before = len(rows(run))
    assert call("--resume", "r").code == 0
    assert len(rows(run)) > before + 1
    for row in rows(run)[before:]:
        assert row["learning_rate"] == pytest.approx(1e-3 * max(0.0, 1 - row["step"] / 8_000), abs=1e-9)


def test_resume_from_an_older_checkpoint(call, tmp_path):
    flags = [*CATCH, *SERIAL, "--xpid", "r", "--total_steps", 800, "--keep_checkpoints", 2]
    assert call(*flags).code == 0
    for total in (1_600, 2_400):
        assert call("--resume", "r", "--total_steps", total).code == 0
    folder = tmp_path / "runs" / "r" / "checkpoints"
    files = sorted(path.name for path in folder.glob("step_*"))
    assert files == ["step_000000001600.pt", "step_000000002400.pt"]
    done = call("--resume", folder / files[0], "--total_steps", 2_000)
    assert done.code == 0, done.err
    assert (folder / "latest.pt").resolve().name == "step_000000002000.pt"  # not the one with the largest number
    assert load(folder.parent)["learner"]["steps"] == 2_000
    log = rows(folder.parent)
    assert_one_curve(log)
    assert log[-1]["step"] == 2_000


# -- serial mode ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        ["--env", "Catch-v0", "--use_lstm"],
        ["--env", "Pendulum-v1"],
        ["--env", "examples.custom_environment:make_env", "--trainer", "polybeast"],
    ],
    ids=["lstm", "continuous", "polybeast"],
)
def test_serial_mode_gives_the_same_bits_for_the_same_seed(start, call, tmp_path, flags):
    flags = [*flags, *SERIAL, "--num_actors", 4, "--batch_size", 4, "--total_steps", 2_400]
    program = start(*flags, "--xpid", "a", "--seed", 3)  # another process, with other hashes and addresses
    for name, seed in (("b", 3), ("c", 4)):
        done = call(*flags, "--xpid", name, "--seed", seed)
        assert done.code == 0, done.err
    assert program.finish().code == 0, program.story()
    a, b, c = (load(tmp_path / "runs" / name) for name in "abc")
    assert a["learner"]["updates"] == b["learner"]["updates"] >= 30
    for name in ("games", "env", "episodes"):
        assert a["reports"][name] == b["reports"][name]
    for name, tensor in a["learner"]["model"].items():
        assert torch.equal(tensor, b["learner"]["model"][name]), name
    assert any(not torch.equal(tensor, c["learner"]["model"][name]) for name, tensor in a["learner"]["model"].items())


def test_serial_mode_starts_no_process(start):
    program = start(*CATCH, *SERIAL, *ENDLESS)
    program.wait_for("loss total")
    assert [process.pid for process in program.family()] == [program.process.pid]
    program.send(signal.SIGINT)
    assert program.finish(SECONDS).code == 130


# -- signals ----------------------------------------------------------------------------------------------------------


def imports_torch(program: Program) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        return any("libtorch" in m.path for m in psutil.Process(program.process.pid).memory_maps())
    return False


MOMENTS = {
    "imports": imports_torch,
    "fork server starts": lambda program: program.fork_server() and not list(program.scratch.glob("pymp-*")),
    "run folder is there": lambda program: list(program.folder.glob("runs/*/config.json")),
    "workers start": lambda program: program.workers(),
    "training": lambda program: "step " in program.out,
}


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        *((moment, signal.SIGINT) for moment in MOMENTS),
        ("imports", signal.SIGTERM),
        ("workers start", signal.SIGTERM),
        ("training", signal.SIGTERM),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_signal_at_any_moment_ends_it_soon_and_cleanly(start, tmp_path, moment, number):
    program = start(*CATCH, *PROCESSES, *ENDLESS, "--xpid", "cut")
    wait_until(lambda: MOMENTS[moment](program) or program.process.poll() is not None, moment)
    assert program.process.poll() is None, program.story()
    program.send(number, group=number == signal.SIGINT)  # a terminal's Ctrl-C reaches every process of it
    assert program.finish().took < SECONDS
    assert program.code == 128 + number, program.story()
    assert "Traceback" not in program.err
    assert program.err in ("", "run.py: error: interrupted\n")
    if moment == "training":
        assert not program.err
        run = tmp_path / "runs" / "cut"
        steps = load(run)["learner"]["steps"]
        assert steps == rows(run)[-1]["step"] > 0
        assert f"stopped at step {steps:,} of 1,000,000,000; saved " in program.out
        assert "go on with: python run.py --resume runs/cut" in program.out


def test_sigterm_to_the_whole_group_saves_too(start, tmp_path):
    """As an init system stops a service."""
    program = start(*CATCH, *PROCESSES, *ENDLESS, "--xpid", "cut")
    program.wait_for("loss total")
    program.send(signal.SIGTERM, group=True)
    assert program.finish().code == 143, program.story()
    assert not program.err
    assert load(tmp_path / "runs" / "cut")["learner"]["steps"] > 0


STUCK = [
    "--env", "Synthetic-v0", "--env_kwargs", '{"step_ms": 3600000, "sleep": true, "shape": [3]}',
    "--num_actors", 2, "--batch_size", 2, *PROCESSES, *ENDLESS,
]  # fmt: skip


def test_actors_that_do_not_listen_are_killed_after_a_deadline(start, tmp_path):
    (tmp_path / "stuck.py").write_text(
        "import time\n"
        "from beast.envs.catch import Catch\n"
        "class Stuck(Catch):\n"
        "    taken = 0\n"
        "    def step(self, action):\n"
        "        Stuck.taken += 1\n"
        "        open('stuck', 'w').close() if Stuck.taken == 100 else None\n"
        "        time.sleep(3600 if Stuck.taken >= 100 else 0)\n"
        "        return super().step(action)\n"
    )
    program = start("--env", "stuck:Stuck", *STUCK[4:])
    wait_until((tmp_path / "stuck").exists, "actors that are stuck")
    program.send(signal.SIGINT, group=True)
    assert program.finish(STOP_DEADLINE + SECONDS).code == 130
    assert "did not stop within 5 s and was killed" in program.out


def test_actors_that_never_began_are_killed_without_a_word(start):
    program = start(*STUCK)
    wait_until(lambda: len(program.workers()) == 2, "two actor processes")
    time.sleep(1.0)
    program.send(signal.SIGINT, group=True)
    assert program.finish(STOP_DEADLINE + SECONDS).code == 130
    assert "killed" not in program.out


def test_a_second_ctrl_c_ends_it_at_once(start):
    program = start(*STUCK)
    wait_until(lambda: len(program.workers()) == 2, "two actor processes")
    time.sleep(1.0)
    program.send(signal.SIGINT, group=True)
    time.sleep(1.0)
    assert program.process.poll() is None  # it waits for them
    program.send(signal.SIGINT, group=True)
    assert program.finish().took < STOP_DEADLINE - 1.5
    assert program.code == 130


def test_serial_mode_stops_inside_an_unroll(start):
    slow = '{"step_ms": 500, "sleep": true, "shape": [3]}'
    program = start("--env", "Synthetic-v0", "--env_kwargs", slow, "--num_actors", 2, "--batch_size", 2, *SERIAL)
    program.wait_for("training Synthetic-v0")
    time.sleep(1.0)
    program.send(signal.SIGINT)
    assert program.finish().code == 130
    assert program.took < 10.0  # an unroll takes 20


# -- kills ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["fork server starts", "workers start", "training"])
def test_kill_9_of_the_parent_leaves_nothing(start, moment):
    program = start(*CATCH, *PROCESSES, *ENDLESS, "--eval_every", 100)
    wait_until(lambda: MOMENTS[moment](program), moment)
    program.check_no_named_memory()
    program.process.kill()
    assert program.finish().code == -signal.SIGKILL


def test_kill_9_of_the_fork_server_costs_actors_and_nothing_else(start, tmp_path):
    program = start(*CATCH, *PROCESSES, *ENDLESS, "--xpid", "hurt")
    run = tmp_path / "runs" / "hurt"
    program.wait_for("loss total")
    program.fork_server().kill()
    wait_until(lambda: rows(run)[-1]["restarts"] == 2, "both actor processes restarted")
    before = rows(run)[-1]["step"]
    wait_until(lambda: rows(run)[-1]["step"] > before, "training that goes on")
    program.send(signal.SIGINT)
    assert program.finish().code == 130, program.story()


def test_kill_9_of_the_evaluator_costs_an_evaluation_and_nothing_else(start, tmp_path):
    program = start(*CATCH, *PROCESSES, *ENDLESS, "--eval_every", 1_000, "--xpid", "hurt")
    run = tmp_path / "runs" / "hurt"
    wait_until(lambda: any("eval_step" in row for row in rows(run)), "a first evaluation")
    program.workers()[-1].kill()
    wait_until(lambda: rows(run)[-1]["restarts"] == 1, "its restart")
    assert "evaluator" in program.out
    before = rows(run)[-1]["step"]
    wait_until(lambda: any(row.get("eval_step", 0) > before for row in rows(run)), "a later evaluation")
    program.send(signal.SIGINT)
    assert program.finish().code == 130, program.story()


# -- consoles ---------------------------------------------------------------------------------------------------------


def test_it_goes_on_without_anyone_who_listens(start, tmp_path):
    """As in `python run.py ... | head -1`."""
    reader, writer = os.pipe()
    program = start(*CATCH, *SERIAL, "--xpid", "alone", "--total_steps", 20_000, stdout=writer)
    os.close(writer)
    assert os.read(reader, 10).startswith(b"training")
    os.close(reader)
    assert program.finish().code == 0, program.story()
    assert not program.err
    assert load(tmp_path / "runs" / "alone")["learner"]["steps"] >= 20_000


def test_it_runs_without_any_standard_stream(tmp_path):
    command = f'exec "{sys.executable}" "{ROOT}/run.py" "$@" <&- >&- 2>&-'
    flags = [str(flag) for flag in [*CATCH, *SERIAL, "--xpid", "mute", "--total_steps", 800]]
    done = subprocess.run(["sh", "-c", command, "sh", *flags], cwd=tmp_path, timeout=PATIENCE, check=False)
    assert done.returncode == 0
    assert load(tmp_path / "runs" / "mute")["learner"]["steps"] >= 800


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_ctrl_c_in_a_terminal(start, tmp_path):
    """Typed, with the live view: the terminal sends it to every process."""
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    program = start(
        *CATCH, *PROCESSES, *ENDLESS, "--xpid", "seen", stdin=theirs, stdout=theirs, stderr=theirs,
        env={"TERM": "xterm-256color", "LANG": "C.UTF-8", "PYTHONUTF8": "1"}, preexec_fn=take_terminal,
    )  # fmt: skip
    os.close(theirs)
    os.set_blocking(ours, False)
    seen = b""

    def read() -> bytes:
        nonlocal seen
        with contextlib.suppress(BlockingIOError, OSError):
            seen += os.read(ours, 1 << 16)
        return seen

    run = tmp_path / "runs" / "seen"
    wait_until(lambda: read() and len(rows(run)) > 3 and b"steps/s" in seen, "a live view")
    os.write(ours, b"\x03")
    wait_until(lambda: (read(), program.process.poll())[1] is not None, "its end")
    read()
    os.close(ours)
    assert program.finish().code == 130
    assert b"stopped at step" in seen
    assert b"Traceback" not in seen
    assert load(run)["learner"]["steps"] > 0


def test_polybeast_lives_the_same_life(start, tmp_path):
    program = start(*CATCH, *PROCESSES, "--trainer", "polybeast", "--xpid", "poly", "--inference", "process", *ENDLESS)
    program.wait_for("loss total")  # a report after an update: before the first there is nothing to save
    run = tmp_path / "runs" / "poly"
    program.send(signal.SIGINT, group=True)
    assert program.finish().code == 130, program.story()
    assert not program.err
    steps = load(run)["learner"]["steps"]
    again = start("--resume", "poly", "--total_steps", steps + 2_000).finish()
    assert again.code == 0, again.story()
    assert load(run)["learner"]["steps"] >= steps + 2_000
