"""Whole runs in rounds, and of a policy lag: the versions that batches are made of, over a resume too."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from beast.run import checkpoint
from beast.run.assemble import assemble
from beast.run.resolve import resolve_config

BEASTS = pytest.mark.parametrize("trainer", ["monobeast", "polybeast"])
SERIAL = {"num_actor_processes": 0}


def assembled(folder: Any = None, state: Any = None, rounds: int = 12, **flags: Any) -> Any:
    values = {"env": "Catch-v0", "num_actors": 4, "unroll_length": 5, "total_steps": 20 * rounds, "report_every": 1e6}
    return assemble(*resolve_config({"num_actor_processes": 2} | values | flags), folder, state, live=False)


def versions(run: Any) -> list[list[int]]:
    """Train; the versions in each batch."""
    seen: list[list[int]] = []
    of = run.learning.gradients.of
    run.learning.gradients.of = lambda staged: seen.append(staged.batch.policy_version.unique().tolist()) or of(staged)
    assert run.run() == 0
    return seen


def exactly(lag: int, first: int, last: int) -> list[list[int]]:
    return [[max(0, update - lag)] for update in range(first, last)]


@BEASTS
@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize("lag", [0, 3])
def test_each_update_is_made_from_the_version_that_is_so_much_older(trainer, processes, lag):
    run = assembled(policy_lag=lag, trainer=trainer, num_actor_processes=processes)
    assert versions(run) == exactly(lag, 0, 12)
    assert run.reports.lag()["max"] == lag


@BEASTS
def test_a_lag_goes_on_over_a_resume_bit_for_bit_in_serial_mode(tmp_path, trainer):
    flags = SERIAL | {"policy_lag": 3, "trainer": trainer, "learning_rate_schedule": "constant"}
    whole = assembled(rounds=12, **flags)
    versions(whole)
    first = assembled(tmp_path, rounds=7, **flags)
    assert versions(first) == exactly(3, 0, 7)
    state = checkpoint.load(checkpoint.saved(tmp_path)[-1])
    second = assembled(None, state, rounds=12, **flags)
    assert versions(second) == exactly(3, 7, 12)
    assert torch.equal(whole.learner.acting.parameters, second.learner.acting.parameters)


def test_a_run_that_had_no_lag_goes_on_with_one_that_grows(tmp_path):
    assert versions(assembled(tmp_path, rounds=6, pace="unroll")) == exactly(0, 0, 6)
    state = checkpoint.load(checkpoint.saved(tmp_path)[-1])
    assert "weights" not in state
    assert versions(assembled(None, state, rounds=12, policy_lag=3)) == [[max(6, u - 3)] for u in range(6, 12)]


def test_evaluation_beside_training_has_the_newest_weights():
    run = assembled(policy_lag=3, eval_every=10**6, **SERIAL)
    versions(run)
    assert run.evaluator.weights.version == run.learner.updates == 12
    assert run.weights.version == 9


@pytest.mark.parametrize("flags", [{"pace": "unroll"}, {"pace": "step", "trainer": "polybeast"}])
def test_in_serial_mode_a_round_is_what_it_always_was(flags):
    plain = assembled(batch_size=4, trainer=flags.get("trainer", "monobeast"), **SERIAL)
    paced = assembled(**SERIAL, **flags)
    assert versions(plain) == versions(paced) == exactly(0, 0, 12)
    assert torch.equal(plain.learner.acting.parameters, paced.learner.acting.parameters)


@pytest.mark.parametrize("flags", [{"pace": "unroll"}, {"pace": "unroll", "trainer": "polybeast"}, {"policy_lag": 2}])
def test_runs_in_rounds_repeat_over_processes(flags):
    """Batches are ordered by actor, and everybody's weights are known: nothing is left to who was quicker."""
    one, two = (assembled(num_actor_processes=2, num_learner_threads=threads, **flags) for threads in (1, 2))
    versions(one)
    versions(two)
    torch.testing.assert_close(one.learner.acting.parameters, two.learner.acting.parameters, atol=1e-5, rtol=0)
