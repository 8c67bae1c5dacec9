"""Whole runs that must learn, with default flags, through real processes."""

from __future__ import annotations

import signal

import pytest
from conftest import rows, wait_until


@pytest.mark.slow
def test_catch_is_learned(start, tmp_path):
    program = start("--env", "Catch-v0", "--xpid", "catch", "--total_steps", 150_000, "--report_every", 1).finish()
    assert program.code == 0, program.story()
    last = rows(tmp_path / "runs" / "catch")[-1]
    assert last["mean_episode_return"] > 0.9  # of 1; a random policy has -0.6
    assert last["env/caught"] > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_both_beasts_learn_cartpole_alike(start, tmp_path, seed):
    solved_at = {}
    for trainer in ("monobeast", "polybeast"):
        program = start(
            "--env", "CartPole-v1", "--trainer", trainer, "--seed", seed, "--xpid", trainer, "--report_every", 1
        )

        def solved(folder=tmp_path / "runs" / trainer) -> float | None:
            """The step at which the mean over 100 episodes, of 500, was first 475: what Gymnasium calls solved."""
            log = rows(folder)
            return next((row["step"] for row in log if row.get("mean_episode_return", 0.0) >= 475), None)

        wait_until(lambda program=program, solved=solved: solved() or program.process.poll() is not None, trainer, 280)
        assert solved(), program.story()
        solved_at[trainer] = solved()
        program.send(signal.SIGINT)
        assert program.finish().code in (0, 130), program.story()
        assert rows(tmp_path / "runs" / trainer)[-1]["policy_lag_mean"] < 5 * 4  # each batch makes four updates
    # One curve: seeds spread further than beasts do. (70,000 steps and more.)
    assert 0.25 < solved_at["polybeast"] / solved_at["monobeast"] < 4.0, solved_at
