"""Rounds whose workers are killed at any row: each batch has each actor once, lag 0, and importance weights of 1."""

from __future__ import annotations

import itertools
import os
import signal
from typing import Any, NamedTuple

import pytest
import torch
from conftest import rows, wait_until

from beast.run import checkpoint, finding
from beast.run.assemble import assemble
from beast.run.resolve import resolve_config

pytestmark = pytest.mark.slow

T, NUM_ACTORS = 5, 6
POLYBEAST = {"trainer": "polybeast", "inference": "process"}
PACED = {
    "monobeast unroll": {"pace": "unroll"},
    "polybeast unroll": {"pace": "unroll"} | POLYBEAST,
    "polybeast step": {"pace": "step"} | POLYBEAST,
}
ROWS = [(7, "me"), (13, "me"), (20, "me"), (29, "me")]  # steps of an environment: rows 2, 3, 0 and 4 of an unroll
INFERENCE = [(8, "inference"), (14, "inference"), (25, "inference")]


class Seen(NamedTuple):
    """Of one batch."""

    actors: list[int]
    lags: set[int]
    weights: torch.Tensor
    """pi / mu `[T, B]`."""


def trained(rounds: int = 12, killed: bool = False, **flags: Any) -> tuple[Any, list[Seen]]:
    """A run, and what its learner saw of each batch.

    Args:
        killed: after some rounds, while all workers wait for the update, one of them is killed.
    """
    values = {
        "env": "deadly_envs:Deadly", "num_actors": NUM_ACTORS, "num_actor_processes": 2, "unroll_length": T,
        "total_steps": rounds * T * NUM_ACTORS, "use_lstm": True, "max_restarts": 100, "report_every": 1e6,
        "precision": "float32",
    }  # fmt: skip
    run = assemble(*resolve_config(values | flags), None, live=False)
    gradients, learner, seen = run.learning.gradients, run.learner, []
    of = gradients.of

    def watched(staged: Any) -> Any:
        batch = staged.batch
        with torch.no_grad():
            outputs, _ = gradients.acting.model(batch.model_input(), batch.core_state)
        log_prob = gradients.algorithm.distribution.log_prob
        log_weights = log_prob(outputs.policy_logits[:-1], batch.action) - log_prob(
            batch.behaviour_logits, batch.action
        )
        lags = set((learner.updates - batch.policy_version).flatten().tolist())
        seen.append(Seen(batch.actor.tolist(), lags, log_weights.exp()))
        if killed and len(seen) % 4 == 0:
            os.kill(run.workers.workers[len(seen) // 4 % 2].process.pid, signal.SIGKILL)
        return of(staged)

    gradients.of = watched
    assert run.run() == 0
    return run, seen


def check(run: Any, seen: list[Seen], deaths: int) -> None:
    assert len(seen) == run.learner.updates == 12
    assert run.workers.restarts == deaths
    for batch in seen:
        assert batch.actors == list(range(NUM_ACTORS))
        assert batch.lags == {0}
        torch.testing.assert_close(batch.weights, torch.ones_like(batch.weights), atol=1e-5, rtol=0)


@pytest.mark.parametrize("flags", PACED.values(), ids=PACED)
def test_a_worker_that_is_killed_at_any_row_changes_neither_lag_nor_weights(tmp_path, flags):
    run, seen = trained(env_kwargs={"deaths": ROWS, "marks": str(tmp_path)}, **flags)
    check(run, seen, len(ROWS))


@pytest.mark.slow
@pytest.mark.parametrize("flags", PACED.values(), ids=PACED)
@pytest.mark.parametrize("row", range(2 * T + 1))
def test_a_worker_that_is_killed_at_each_row(tmp_path, flags, row):
    run, seen = trained(env_kwargs={"deaths": [(T + row, "me")], "marks": str(tmp_path)}, **flags)
    check(run, seen, 1)


@pytest.mark.parametrize("flags", PACED.values(), ids=PACED)
def test_a_worker_that_is_killed_after_it_delivered_delivers_no_second_time(flags):
    run, seen = trained(killed=True, **flags)
    assert run.workers.restarts >= 2  # the last one's death may come after the end
    check(run, seen, run.workers.restarts)


@pytest.mark.slow
@pytest.mark.parametrize("pace", ["unroll", "step"])
def test_inference_that_is_killed_goes_on_with_the_recurrent_states_that_it_had(tmp_path, pace):
    run, seen = trained(env_kwargs={"deaths": INFERENCE, "marks": str(tmp_path)}, **POLYBEAST, pace=pace)
    check(run, seen, len(INFERENCE))


@pytest.mark.parametrize("trainer", ["monobeast", "polybeast"])
def test_without_rounds_weights_are_not_one(trainer):
    """What the tests above look at does move."""
    _, seen = trained(rounds=40, trainer=trainer, batch_size=3)
    assert max(max(batch.lags) for batch in seen) > 0
    assert max((batch.weights - 1).abs().max() for batch in seen) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("flags", [*PACED.values(), {"policy_lag": 3}], ids=[*PACED, "lag"])
def test_a_run_in_rounds_stops_is_killed_and_goes_on(start, tmp_path, flags, how):
    given = [part for name, value in flags.items() for part in (f"--{name}", value)]
    common = ["--report_every", 0.2, "--total_steps", 10**6]
    program = start(
        "--env", "Catch-v0", "--num_actors", 6, "--num_actor_processes", 2, "--xpid", "r", *common, *given
    )  # fmt: skip
    run = tmp_path / "runs" / "r"
    wait_until(lambda: len(rows(run)) > 3, "rows")
    program.send(signal.SIGUSR1)
    program.wait_for("saved")
    count = len(rows(run))
    wait_until(lambda: len(rows(run)) > count + 2, "more rows")
    program.send(how)
    assert program.finish().code == (130 if how == signal.SIGINT else -signal.SIGKILL), program.story()
    saved = checkpoint.load(finding.find(str(run), ""))["learner"]["steps"]
    again = start("--resume", "r")
    wait_until(lambda: rows(run)[-1]["step"] > saved + 2_000, f"training that goes on\n{again.story()}")
    again.send(signal.SIGINT)
    assert again.finish().code == 130, again.story()
    lag = flags.get("policy_lag", 0)
    told = [
        (row["policy_lag_mean"], row["policy_lag_max"])
        for before, row in itertools.pairwise(rows(run))
        if "policy_lag_max" in row and before["updates"] >= lag
    ]
    assert len(told) > 5
    assert set(told) == {(lag, lag)}
