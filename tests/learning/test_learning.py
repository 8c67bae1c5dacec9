"""Whole runs that must learn, with default flags, through real processes."""

from __future__ import annotations

import pytest
from conftest import rows


@pytest.mark.slow
def test_catch_is_learned(start, tmp_path):
    program = start("--env", "Catch-v0", "--xpid", "catch", "--total_steps", 150_000, "--report_every", 1).finish()
    assert program.code == 0, program.story()
    last = rows(tmp_path / "runs" / "catch")[-1]
    assert last["mean_episode_return"] > 0.9  # of 1; a random policy has -0.6
    assert last["env/caught"] > 0.95


@pytest.mark.slow
def test_cartpole_is_learned(start, tmp_path):
    program = start("--env", "CartPole-v1", "--xpid", "pole", "--report_every", 1).finish()
    assert program.code == 0, program.story()
    log = rows(tmp_path / "runs" / "pole")
    best = max(row["mean_episode_return"] for row in log if "mean_episode_return" in row)
    assert best >= 475  # over 100 episodes, of 500: what Gymnasium calls solved
    assert log[-1]["policy_lag_mean"] < 5
