"""Runs that were stopped, killed or hurt, and what they are when they go on."""

from __future__ import annotations

import json
import os
import random
import signal
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import assert_one_line, rows, wait_until

from beast.acting.actors import ActorGroup
from beast.run import checkpoint, finding

SERIAL = ["--num_actor_processes", 0]
CATCH = ["--env", "Catch-v0", "--num_actors", 2, "--batch_size", 2, *SERIAL]
AUTO = ["--resume", "auto", "--xpid", "job"]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """The folder of the run that a job script starts."""
    return tmp_path / "runs" / "job"


def steps_of(run: Path) -> int:
    return checkpoint.load(finding.find(str(run), ""))["learner"]["steps"]


# -- damaged checkpoints ----------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_passed_over_and_named(call, job):
    assert call(*CATCH, "--xpid", "job", "--total_steps", 400).code == 0
    for total in (800, 1_200):
        assert call("--resume", "job", "--total_steps", total).code == 0
    good, bad, worse = checkpoint.saved(job)
    bad.write_bytes(bad.read_bytes()[:-1_000])
    worse.write_bytes(b"")
    played = call("evaluate", "--checkpoint", "job", "--episodes", 1)
    assert played.code == 0, played.err
    assert "Catch-v0 at step 400" in played.out
    gone_on = call("--resume", "job", "--total_steps", 600)
    assert gone_on.code == 0, gone_on.err
    for text in (played.out, gone_on.out, (job / "log.txt").read_text()):
        for file in (bad, worse):
            (line,) = (line for line in text.splitlines() if file.name in line and "damaged" in line)
            assert line.endswith(f"taking {good.name} instead")
    assert steps_of(job) == 600
    assert [row["step"] for row in rows(job)] == sorted({row["step"] for row in rows(job)})
    again = call("evaluate", "--checkpoint", "job", "--episodes", 1)
    assert "at step 600" in again.out
    assert "damaged" not in again.out


# -- for job scripts --------------------------------------------------------------------------------------------------


def test_auto_starts_goes_on_and_says_when_it_is_done(call, job):
    first = call(*CATCH, *AUTO, "--total_steps", 400)
    assert first.code == 0, first.err
    assert "training Catch-v0" in first.out
    second = call(*CATCH, *AUTO, "--total_steps", 800)
    assert second.code == 0, second.err
    assert "resuming Catch-v0" in second.out
    assert steps_of(job) == 800
    third = call(*CATCH, *AUTO, "--total_steps", 800)
    assert (third.code, third.err) == (0, "")
    assert third.out.startswith("runs/job is finished: 800 steps.")


def test_auto_must_know_which_run(call, tmp_path):
    assert_one_line(call(*CATCH, "--resume", "auto"), "--resume auto", "--xpid NAME")
    assert not list(tmp_path.iterdir())
    assert_one_line(call(*CATCH, "--xpid", "auto"), "--xpid")  # or it could never be resumed by its name


def test_auto_starts_anew_what_ended_before_its_first_checkpoint(start, call, job):
    program = start(*CATCH, *AUTO, "--total_steps", 10**9, "--report_every", 0.1, "--seed", 3)
    wait_until(lambda: len(rows(job)) > 3, "rows")
    program.process.kill()
    program.finish()
    old = rows(job)
    assert not checkpoint.saved(job)
    done = call(*CATCH, *AUTO, "--total_steps", 400, "--report_every", 1_000)
    assert done.code == 0, done.err
    assert "training Catch-v0" in done.out
    assert [row["step"] for row in rows(job)] == [400]
    assert (job / "log.txt").read_text().count("training Catch-v0") == 1
    assert json.loads((job / "config.json").read_text())["flags"]["seed"] == 1
    assert rows(job / "before") == old  # out of the way, not lost
    assert json.loads((job / "before" / "config.json").read_text())["flags"]["seed"] == 3
    assert len(list(job.glob("*tfevents*"))) == len(list((job / "before").glob("*tfevents*"))) == 1


def test_auto_throws_nothing_away(call, job):
    assert call(*CATCH, *AUTO, "--total_steps", 400).code == 0
    (file,) = checkpoint.saved(job)
    file.write_bytes(b"")
    assert_one_line(call(*CATCH, *AUTO, "--total_steps", 800), file.name, "damaged")
    assert_one_line(call(*CATCH, *AUTO, "--total_steps", 800, "--use_lstm"), "damaged")
    assert not (job / "before").exists()


def test_auto_does_not_go_on_as_another_run(call, job):
    assert call(*CATCH, *AUTO, "--total_steps", 400).code == 0
    assert_one_line(call(*CATCH, *AUTO, "--total_steps", 800, "--use_lstm"), "--use_lstm True cannot go on from")
    assert steps_of(job) == 400


# -- one run a folder -------------------------------------------------------------------------------------------------


def test_a_folder_in_use_is_refused_until_its_run_is_dead(start, call, job):
    program = start(*CATCH, "--xpid", "job", "--total_steps", 10**9, "--checkpoint_every", 1e-3)
    wait_until(lambda: checkpoint.saved(job), "a checkpoint")
    for flags in (["--xpid", "job"], AUTO, ["--resume", "job"], ["--resume", job / "checkpoints" / "latest.pt"]):
        assert_one_line(call(*CATCH, *flags), "job is in use by a live run", f"(pid {program.process.pid})")
    program.process.kill()  # no handler, no clean-up: the kernel lets go
    program.process.wait()
    done = call("--resume", "job", "--total_steps", steps_of(job) + 80)
    assert done.code == 0, done.err


def test_no_child_keeps_the_folder(start, call, job):
    """Even one that outlives the run because it is stopped."""
    program = start(
        "--env", "Catch-v0", "--num_actors", 2, "--batch_size", 2, "--num_actor_processes", 2, "--xpid", "job",
        "--total_steps", 10**9, "--checkpoint_every", 1e-3,
    )  # fmt: skip
    wait_until(lambda: checkpoint.saved(job), "a checkpoint")
    children = [process for process in program.family() if process.pid != program.process.pid]
    assert len(children) >= 3
    for process in children:
        assert not [file.path for file in process.open_files() if Path(file.path).name == ".lock"]
        process.suspend()
    program.process.kill()
    program.process.wait()
    done = call(*SERIAL, "--resume", "job", "--total_steps", steps_of(job) + 80)
    assert done.code == 0, done.err


def test_of_two_that_start_at_once_one_runs(start, job):
    flags = [*CATCH, "--xpid", "job", "--total_steps", 10**9, "--report_every", 0.1]
    programs = [start(*flags), start(*flags)]
    wait_until(lambda: any(program.process.poll() is not None for program in programs), "one that is refused")
    (loser,) = (program for program in programs if program.process.poll() is not None)
    (winner,) = (program for program in programs if program is not loser)
    loser.finish()
    assert_one_line(loser, "runs/job")
    winner.wait_for("loss total")
    winner.send(signal.SIGINT)
    assert winner.finish().code == 130, winner.story()
    assert steps_of(job) > 0


def test_a_file_system_without_locks_goes_without(call, job, monkeypatch):
    def no_locks(*_: object) -> None:
        raise OSError(37, os.strerror(37))

    monkeypatch.setattr("fcntl.lockf", no_locks)
    assert call(*CATCH, *AUTO, "--total_steps", 400).code == 0
    assert steps_of(job) == 400


# -- serial mode: as if nothing had happened --------------------------------------------------------------------------

TIMES = {"time", "sps", "fps"}


def curve(run: Path) -> dict[float, dict[str, float]]:
    """What was logged of each update, but for the time it took."""
    return {
        row["step"]: {name: value for name, value in row.items() if name not in TIMES}
        for row in rows(run)
        if "total_loss" in row
    }


def assert_same_run(a: Path, b: Path) -> None:
    one, other = (checkpoint.load(finding.find(str(run), "")) for run in (a, b))
    assert one["learner"]["updates"] == other["learner"]["updates"]
    for name, tensor in one["learner"]["model"].items():
        assert torch.equal(tensor, other["learner"]["model"][name]), name
    moments, others = (state["learner"]["optimiser"]["moments"] for state in (one, other))
    assert moments.keys() == others.keys() >= {"mean_square"}
    for name, value in moments.items():
        assert torch.equal(value, others[name]), name
    for name in ("games", "env", "episodes"):
        assert one["reports"][name] == other["reports"][name]
    assert curve(a) == curve(b)


GAME = ["--env", "ALE/Breakout-v5", "--env_kwargs", '{"max_num_frames_per_episode": 100}', "--num_actors", 2]


@pytest.fixture
def stop_at(monkeypatch) -> Callable[[int], None]:
    """Have a run in this process stopped by a signal at its nth step from now (of all actors together; replayed ones
    do not count)."""
    real, left = ActorGroup.step, 0

    def step(self: ActorGroup, *answer: Any) -> bool:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *answer)

    def stop_at(count: int) -> None:
        nonlocal left
        left = count

    monkeypatch.setattr(ActorGroup, "step", step)
    return stop_at


@pytest.mark.parametrize(
    "flags",
    [
        ["--env", "Catch-v0", "--use_lstm"],
        ["--env", "Catch-v0", "--use_lstm", "--trainer", "polybeast", "--num_actors", 5, "--batch_size", 3],
        ["--env", "Pendulum-v1", "--batch_size", 6],
        [
            *("--env", "Pendulum-v1", "--algorithm", "appo", "--normalise_observations", "--scale_rewards"),
            *("--reward_clipping", "none", "--model", "mlp", "--state_independent_std", "--squashed_entropy"),
        ],
        ["--env", "CartPole-v1", "--trainer", "polybeast", "--batch_size", 7],
        ["--env", "CartPole-v1", "--algorithm", "appo", "--popart", "--reward_clipping", "none"],
        [*GAME, "--use_lstm", "--batch_size", 3, "--total_steps", 420],
    ],
    ids=["lstm", "polybeast, lstm", "continuous", "running statistics", "odd batch", "popart", "atari, lstm"],
)
def test_a_serial_run_that_is_stopped_again_and_again_is_the_unbroken_one(call, tmp_path, stop_at, flags):
    """Between updates and inside unrolls, at seeded steps; with unrolls that are left over for the next batch."""
    flags = [
        *SERIAL, "--preset", "atari", "--num_actors", 4, "--batch_size", 4, "--seed", 5, "--learning_rate", 1e-3,
        "--report_every", 1e-6, "--total_steps", 840, *flags,
    ]  # fmt: skip
    assert call(*flags, "--xpid", "unbroken").code == 0
    rng = random.Random(str(flags))
    for resume in ([*flags, "--xpid", "broken"], *[["--resume", "broken"]] * 2):
        stop_at(rng.randrange(42, 62))
        done = call(*resume)
        assert done.code in (130, 143), done
        assert not done.err
    done = call("--resume", "broken")
    assert done.code == 0, done.err
    assert "replaying" in done.out
    assert_same_run(tmp_path / "runs" / "unbroken", tmp_path / "runs" / "broken")


def test_a_serial_run_that_ended_goes_on_as_if_it_had_not(call, tmp_path, stop_at):
    """More steps for two runs that had reached their total; one of them is stopped on the way."""
    for name in ("a", "b"):
        assert call(*CATCH, "--xpid", name, "--total_steps", 400, "--report_every", 1e-6).code == 0
    assert call("--resume", "a", "--total_steps", 1_200).code == 0
    stop_at(13)
    assert call("--resume", "b", "--total_steps", 1_200).code in (130, 143)
    assert call("--resume", "b").code == 0
    assert_same_run(tmp_path / "runs" / "a", tmp_path / "runs" / "b")


def test_a_stop_while_it_replays_loses_nothing(call, tmp_path, stop_at, monkeypatch):
    assert call(*CATCH, "--xpid", "a", "--total_steps", 400).code == 0
    stop_at(35)
    assert call(*CATCH, "--xpid", "b", "--total_steps", 400).code in (130, 143)
    real = ActorGroup.fast_forward

    def stopped(self: ActorGroup, actions: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        real(self, actions)

    with monkeypatch.context() as patch:
        patch.setattr(ActorGroup, "fast_forward", stopped)
        assert call("--resume", "b").code == 143
    assert call("--resume", "b").code == 0
    one, other = (checkpoint.load(finding.find(name, "runs"))["learner"] for name in "ab")
    assert all(torch.equal(tensor, other["model"][name]) for name, tensor in one["model"].items())


RANDOM = """
    import os
    import gymnasium
    import numpy as np

    class Random(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 255, (3,), np.uint8)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.frombuffer(os.urandom(3), np.uint8), {}

        def step(self, action):
            return np.frombuffer(os.urandom(3), np.uint8), 0.0, False, False, {}

    make = Random
"""


def test_what_cannot_be_replayed_goes_on_afresh_and_says_so(call, tmp_path):
    (tmp_path / "dice.py").write_text(textwrap.dedent(RANDOM))
    assert call(*CATCH, "--env", "dice:make", "--xpid", "r", "--total_steps", 400).code == 0
    done = call("--resume", "r", "--total_steps", 800)
    assert done.code == 0, done.err
    assert "the environment is not deterministic: this run goes on with fresh episodes" in done.out
    assert steps_of(tmp_path / "runs" / "r") == 800


def test_other_actors_go_on_afresh_and_say_so(call, tmp_path):
    assert call(*CATCH, "--xpid", "r", "--total_steps", 400).code == 0
    done = call("--resume", "r", "--total_steps", 800, "--num_actors", 3)
    assert done.code == 0, done.err
    assert "--num_actors is not what it was: this run goes on with fresh episodes" in done.out
    assert "replaying" not in done.out


# -- killed and resumed, again and again ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("trainer", ["monobeast", "polybeast"])
def test_a_run_killed_ten_times_learns_what_an_unbroken_one_learns(start, job, trainer):
    """By SIGKILL, at seeded moments after a new checkpoint; the command is the same each time, as in a job script."""
    rng = random.Random(trainer)
    command = [
        "--env", "Catch-v0", "--trainer", trainer, "--num_actor_processes", 2, "--total_steps", 300_000,
        "--report_every", 0.5, "--checkpoint_every", 0.002, *AUTO,
    ]  # fmt: skip
    reached = 0
    for _ in range(10):
        program = start(*command)
        wait_until(lambda old=reached: checkpoint.saved(job) and steps_of(job) > old, "a new checkpoint")
        time.sleep(rng.uniform(0.0, 0.3))
        program.process.kill()
        assert program.finish().code == -signal.SIGKILL, program.story()
        reached = steps_of(job)
    assert reached < 300_000
    done = start(*command).finish(600.0)
    assert done.code == 0, done.story()
    state = checkpoint.load(finding.find(str(job), ""))
    assert state["resumes"] == 10
    log = rows(job)
    assert [row["step"] for row in log] == sorted(row["step"] for row in log)
    assert log[-1]["mean_episode_return"] > 0.9
