"""Runs that learn again from what they have learned from: what counts, what enters, what a stop leaves."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from conftest import assert_one_line, rows

from beast.api import check_machine
from beast.core.errors import ConfigError
from beast.core.learner import Update
from beast.report.reports import Reports
from beast.run import checkpoint
from beast.run.assemble import assemble
from beast.run.callbacks import Callbacks
from beast.run.reporter import Reporter
from beast.run.resolve import resolve_config
from beast.run.skipped_updates import SkippedUpdates
from beast.store.sources import Work

BEASTS = pytest.mark.parametrize("trainer", ["monobeast", "polybeast"])
SERIAL = {"env": "Catch-v0", "num_actor_processes": 0, "num_actors": 4, "batch_size": 4, "unroll_length": 10}
T = 10


class OnceNaN(gymnasium.Env):
    """Says NaN once in its life, as the reward of step 35."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    spoilt: list[int] = []  # noqa: RUF012 - of this process

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action):
        OnceNaN.spoilt.append(0)
        reward = float("nan") if len(OnceNaN.spoilt) == 4 * 35 else float(action)
        return np.full(3, 0.5, np.float32), reward, False, False, {}


def assembled(folder=None, state=None, **flags):
    return assemble(*resolve_config(SERIAL | flags), folder, state, live=False)


def run(folder=None, **flags):
    """A run that has ended, and the batches that it learned from."""
    trainer, batches = assembled(folder, **flags), []
    of = trainer.learning.gradients.of
    trainer.learning.gradients.of = lambda staged: batches.append(staged.batch) or of(staged)
    assert trainer.run() == 0
    return trainer, batches


@BEASTS
@pytest.mark.parametrize(("batch_size", "fresh"), [(4, 2), (5, 3)])
def test_fresh_steps_alone_are_counted(tmp_path, trainer, batch_size, fresh):
    flags = {"replay_capacity": 9, "batch_size": batch_size, "total_steps": 20 * T * fresh, "trainer": trainer}
    ended, batches = run(tmp_path, **flags)
    assert (ended.learner.steps, ended.learner.updates) == (20 * T * fresh, 20)
    assert [batch.action.shape[1] for batch in batches] == [fresh] + [batch_size] * 19
    last = rows(tmp_path)[-1]
    assert last["replay_unrolls"] == 9
    assert last["policy_lag_max"] <= 2  # a round of four actors is learned from before the next
    assert last["replay_age_max"] > last["policy_lag_max"]
    assert last["learning_rate"] == 0.0
    games = ended.reports.state_dict()["episodes"]
    assert games == sum((~b.first[:-1, :fresh] & b.first[1:, :fresh]).sum().item() for b in batches)  # each once
    assert "replay" not in checkpoint.load(checkpoint.saved(tmp_path)[0])


def test_without_replay_there_is_no_trace_of_it(tmp_path):
    run(tmp_path, total_steps=200)
    assert not [name for name in rows(tmp_path)[-1] if "replay" in name]
    assert "replay: " not in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("algorithm", [{}, {"algorithm": "appo"}, {"correction": "one_step"}, {"correction": "epsilon"},
                                       {"correction": "none"}, {"use_lstm": True}], ids=str)  # fmt: skip
def test_the_same_seed_gives_the_same_numbers_with_every_correction(algorithm):
    flags = {"total_steps": 200, "replay_capacity": 20, **algorithm}
    ends = [run(**flags)[0].learner for _ in range(2)]
    assert torch.equal(ends[0].acting.parameters, ends[1].acting.parameters)
    assert ends[0].updates == 10 * (2 if "algorithm" in algorithm else 1)
    other, _ = run(**(flags | {"replay_ratio": 0.25}))
    assert not torch.equal(other.learner.acting.parameters, ends[0].acting.parameters)


@BEASTS
def test_the_stored_recurrent_state_is_the_one_that_is_used(trainer):
    _, batches = run(total_steps=400, replay_capacity=20, use_lstm=True, trainer=trainer)
    states = {}
    for batch in batches:
        for i in range(2):
            states[batch.policy_version[0, i].item(), batch.actor[i].item()] = batch.core_state[0][i]
    found = 0
    for batch in batches[1:]:
        for i in range(2, 4):
            state = states[batch.policy_version[0, i].item(), batch.actor[i].item()]
            assert torch.equal(batch.core_state[0][i], state)
            found += bool(state.abs().sum() > 0)
    assert found > 10


@BEASTS
def test_a_batch_with_nan_is_skipped_once(tmp_path, trainer):
    OnceNaN.spoilt.clear()
    flags = {
        "env": f"{__name__}:OnceNaN",
        "preset": "classic",
        "total_steps": 800,
        "replay_capacity": 100,
        "trainer": trainer,
    }
    ended, batches = run(tmp_path, **flags)
    spoilt = [number for number, batch in enumerate(batches) if not batch.reward.isfinite().all()]
    assert len(spoilt) == 1
    assert rows(tmp_path)[-1]["skipped_updates"] == 1
    assert rows(tmp_path)[-1]["replay_unrolls"] == 2 * (len(batches) - 1)
    assert ended.learner.updates == len(batches) == 40


@pytest.mark.parametrize("late", [False, True])
def test_who_hears_of_made_updates_hears_of_no_others(late):
    heard, reports = [], Reports(None, total_steps=1, action_repeat=1, live=False)
    skipped = SkippedUpdates(None, most=10, log=reports.log)
    reporter = Reporter(
        reports, skipped, Callbacks([]), late, learned=lambda work, number: heard.append((work.steps, number))
    )
    none, loss = torch.empty(0, dtype=torch.int64), torch.tensor(1.0)
    number = 0
    for unit, passes in enumerate([(True,), (False,), (True, True), (True, False), (False, True), ()], 1):
        updates = [
            Update(number := number + 1, {"finite": torch.tensor(finite), "total_loss": loss}) for finite in passes
        ]
        reporter.add(0, Work(unit, none, []), none, updates)
        assert [steps for steps, _ in heard] == [n for n in (1, 3) if n <= (unit - 1 if late else unit)]
    reporter.flush()
    assert heard == [(1, 1), (3, 3)]
    assert skipped.count == 3


def test_a_resumed_run_says_that_its_replay_is_empty(tmp_path):
    run(tmp_path, total_steps=400, replay_capacity=50)
    assert "begins empty" not in (tmp_path / "log.txt").read_text()
    state = checkpoint.load(checkpoint.saved(tmp_path)[0])
    again = assembled(tmp_path, state, total_steps=800, replay_capacity=50)
    assert again.run() == 0
    text = (tmp_path / "log.txt").read_text()
    assert text.count("the replay begins empty: checkpoints do not hold the unrolls that it had") == 1
    assert text.count("replay: 50 unrolls take 0.0") == 2
    assert again.learner.updates == 40


def test_resume_without_replay_is_bit_for_bit_after_one_with_it_too(tmp_path):
    """Serial actors go on where they were, whatever the learner keeps beside them."""
    run(tmp_path, total_steps=400, replay_capacity=50)
    state = checkpoint.load(checkpoint.saved(tmp_path)[0])
    ends = []
    for part in "ab":
        again = assembled(tmp_path / part, state, total_steps=800)
        assert again.run() == 0
        ends.append(again.learner.acting.parameters.clone())
    assert torch.equal(*ends)


def test_a_trainer_whose_workers_send_gradients_has_nothing_to_keep():
    for flags in ({"replay_capacity": 10}, {"record_unrolls": "there"}):
        with pytest.raises(ConfigError, match="do not go with --trainer a3c, whose workers send gradients"):
            assembled(trainer="a3c", num_actor_processes=1, **flags)


def test_memory_is_told_and_refused(call, tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 3 * 10**9}))
    monkeypatch.setattr("beast.processes.machine.CGROUPS", "/nowhere")
    config, task = resolve_config({"env": "PongNoFrameskip-v4", "num_actors": 2, "num_actor_processes": 0})
    check_machine(config, task)
    check_machine(config.replace(replay_capacity=10_000), task)  # 1.8 GB: 25 frames of 84x84 an unroll
    with pytest.raises(ConfigError, match=r"the replay 3\.\d GB.* 3\.0 GB are free: lower --replay_capacity 20000$"):
        check_machine(config.replace(replay_capacity=20_000), task)
    assert_one_line(call("--env", "Catch-v0", "--replay_capacity", 10**8), "lower --replay_capacity 100000000")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--replay_capacity", 10, "--replay_ratio", 1.0], "--replay_ratio must lie between 0 and 1"),
        (["--replay_capacity", 3], "--replay_capacity 3 is too small: each batch draws 4"),  # of the preset's batch
        (["--replay_capacity", 1, "--batch_size", 1], "less than one unroll"),
    ],
)
def test_what_is_refused_leaves_nothing(call, tmp_path, flags, said):
    assert_one_line(call("--env", "Catch-v0", *flags), said)
    assert not (tmp_path / "runs").exists()
