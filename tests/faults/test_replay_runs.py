"""Runs with a replay and a recorder, hurt and stopped as others are."""

from __future__ import annotations

import signal

import numpy as np
import pytest
from conftest import rows, wait_until

from beast.run import checkpoint, finding

pytestmark = pytest.mark.slow

FLAGS = ["--env", "Catch-v0", "--num_actors", 4, "--num_actor_processes", 2, "--batch_size", 5, "--xpid", "r",
         "--report_every", 0.1, "--replay_capacity", 50, "--record_unrolls", "rec", "--num_learner_threads", 3]  # fmt: skip


@pytest.mark.parametrize("trainer", ["monobeast", "polybeast"])
def test_a_run_with_replay_is_killed_stopped_and_gone_on_with(start, tmp_path, trainer):
    run = tmp_path / "runs" / "r"
    program = start(*FLAGS, "--trainer", trainer, "--total_steps", 10**9, "--checkpoint_every", 1e-3)
    wait_until(lambda: [row for row in rows(run) if row.get("replay_unrolls") == 50], "a full replay")
    program.workers()[0].kill()
    wait_until(lambda: rows(run)[-1]["restarts"] >= 1 or program.process.poll() is not None, "a restart")
    program.process.kill()
    program.finish()
    steps = checkpoint.load(finding.find(str(run), ""))["learner"]["steps"]
    program = start("--resume", "r", "--record_unrolls", "rec", "--total_steps", 10**9)
    program.wait_for("resuming")  # rows of after the checkpoint are gone by then
    wait_until(lambda: [row for row in rows(run) if row["step"] > steps and row.get("replay_age_mean")], "more")
    program.process.send_signal(signal.SIGINT)
    program.finish()
    assert program.code == 130, program.story()
    assert "the replay begins empty" in program.out
    last = rows(run)[-1]
    assert last["skipped_updates"] == 0
    assert last["step"] % (3 * 20) == 0  # three fresh unrolls of each five
    unrolls = [np.load(file) for file in sorted((tmp_path / "rec").glob("unrolls_*.npz"))]
    assert unrolls
    for file in unrolls:
        assert np.isfinite(file["behaviour_logits"]).all()
    assert not [file for file in (tmp_path / "rec").iterdir() if file.name.startswith(".")]
