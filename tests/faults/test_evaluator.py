"""The evaluator beside training: stopped or killed at any moment, also while it answers, it holds nobody up."""

from __future__ import annotations

import random
import signal
import time

import psutil
from conftest import Program, rows, wait_until

FLAGS = [
    "--env", "Catch-v0", "--num_actors", 4, "--num_actor_processes", 2, "--batch_size", 4, "--report_every", 0.2,
    "--total_steps", 10**9, "--xpid", "r", "--max_restarts", 100, "--actor_timeout", 5,
    "--eval_every", 400, "--eval_episodes", 1,
]  # fmt: skip


def evaluator(program: Program) -> psutil.Process:
    def found() -> psutil.Process | None:
        return next((process for process in program.workers() if process.name().startswith("evaluator")), None)

    return wait_until(found, "an evaluator")


def test_it_is_stopped_and_killed_at_any_moment_and_training_goes_on(start, tmp_path):
    chance = random.Random(0)
    program, run = start(*FLAGS), tmp_path / "runs" / "r"

    def answered(after: float) -> bool:
        steps = [row["eval_step"] for row in rows(run) if row.get("eval_step")]
        return bool(steps) and steps[-1] > after

    wait_until(lambda: answered(0), "a first evaluation")
    for how in (signal.SIGSTOP, signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP):
        time.sleep(chance.uniform(0.0, 0.3))  # an evaluation of one game takes milliseconds: many are answers
        victim = evaluator(program)
        victim.send_signal(how)
        told = "gave no sign of life" if how == signal.SIGSTOP else "was killed by SIGKILL"
        before = rows(run)[-1]["step"]
        wait_until(
            lambda before=before: rows(run)[-1]["step"] > before, f"training beside an evaluator after {how.name}"
        )
        program.wait_for(f"evaluator (pid {victim.pid}) {told}")
        done = rows(run)[-1]["step"]
        wait_until(lambda done=done: answered(done), "an evaluation by the next one")
    program.send(signal.SIGINT)
    assert program.finish().code == 130, program.story()
