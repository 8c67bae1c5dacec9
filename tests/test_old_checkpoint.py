"""Checkpoints of the first format (a run of commit 4e08ef6, kept in tests/data) are evaluated and gone on with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import rows

from beast.envs.plain_spaces import from_plain
from beast.report import files
from beast.run import checkpoint
from beast.run.resolve import resolve_config

OLD = Path(__file__).parent / "data" / "checkpoint_4e08ef6"


@pytest.fixture
def run(tmp_path):
    return Path(shutil.copytree(OLD, tmp_path / "runs" / "old"))


def test_it_is_read_as_one_of_today(run):
    (file,) = checkpoint.saved(run)
    raw, state = torch.load(file, weights_only=True), checkpoint.load(file)
    assert "format" not in raw
    assert state["format"] == checkpoint.FORMAT
    moments, old = state["learner"]["optimiser"]["moments"], raw["learner"]["optimiser"]["state"][0]
    assert torch.equal(moments["mean_square"], old["square_avg"])
    assert torch.equal(moments["momentum"], old["momentum_buffer"])
    assert len(state["source"]["unlearned"]) == len(raw["unlearned"]) + 1  # slots know their actor now


def test_it_is_evaluated(call, run):
    outcome = call("evaluate", "--checkpoint", run, "--episodes", 5, "--seed", 3)
    assert outcome.code == 0, outcome.err
    assert "Catch-v0 at step 1,300" in outcome.out


def test_a_run_goes_on_from_it(call, run):
    outcome = call("--resume", run, "--total_steps", 2600)
    assert outcome.code == 0, outcome.err
    assert "replaying 220 steps" in outcome.out
    assert "not deterministic" not in outcome.out
    assert rows(run)[-1]["step"] == 2600
    state = checkpoint.load(checkpoint.newest_first(run)[0])
    assert state["learner"]["updates"] == 130  # of 20 steps each, those before included
    _, task = resolve_config({"env": "Catch-v0", "env_kwargs": {"rows": 5, "columns": 3}})
    assert from_plain(state["spaces"]["observation"]) == task.model.observation_space
    assert from_plain(state["spaces"]["action"]) == task.model.action_space


def test_a_format_of_the_future_is_refused(call, run):
    (file,) = checkpoint.saved(run)
    files.write_tensors(file, checkpoint.load(file) | {"format": 99})
    outcome = call("evaluate", "--checkpoint", run)
    assert outcome.code == 2
    assert "format 99" in outcome.err
