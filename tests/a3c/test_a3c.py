"""A3C: gradients are those of the workers' own unrolls at the weights that acted in them, and a run lives like any other."""

from __future__ import annotations

import signal

import pytest
import torch
from checked_gradients import Checked
from conftest import assert_one_line, rows, wait_until

from beast.run import checkpoint
from beast.run.assemble import assemble
from beast.run.finding import find
from beast.run.resolve import resolve_config


def test_each_gradient_is_that_of_its_unrolls_at_the_weights_that_acted(tmp_path):
    checked = Checked(folder=tmp_path, num_actors=5)
    steps = checked.run.board.arrays["steps"]  # otherwise one worker may be done before the other has started
    checked.look = lambda work: wait_until(lambda: steps[:2].all(), "steps of both workers")
    checked.train()
    assert {work.slots: work.steps for work in checked.works} == {(0,): 3 * 20, (1,): 2 * 20}
    assert checked.run.config.learner.batch_size == 3
    assert max(checked.staleness) >= 1  # one's update comes between the other's weights and gradient
    (row,) = rows(tmp_path)
    assert row["policy_lag_max"] == max(checked.staleness)
    lags = [lag for lag, work in zip(checked.staleness, checked.works, strict=True) for _ in range(work.steps)]
    assert row["policy_lag_mean"] == pytest.approx(sum(lags) / len(lags))
    assert row["share_gradient"] > 0


def test_one_worker_is_never_stale():
    checked = Checked(num_actor_processes=1, use_lstm=True, total_steps=1_200).train()
    assert checked.staleness == [0] * 15


def test_several_passes_each_with_the_newest_weights():
    checked = Checked(num_actor_processes=1, algorithm="seams.two_passes", total_steps=800).train()
    assert [work.steps for work in checked.works] == [80, 0] * 9 + [80]
    assert checked.staleness == [0] * 19


def run_of(folder=None, **flags):
    run = assemble(*resolve_config({"env": "Catch-v0", "num_actors": 4, "total_steps": 1_600, "report_every": 1000} | flags),
                   folder, live=False)  # fmt: skip
    assert run.run() == 0
    return run


def test_serial_mode_is_monobeasts_with_a_round_a_batch():
    one = run_of(trainer="a3c", num_actor_processes=0)
    other = run_of(trainer="monobeast", num_actor_processes=0, batch_size=4)
    assert one.learner.updates == other.learner.updates == 20
    assert torch.equal(one.learner.acting.parameters, other.learner.acting.parameters)


def test_running_statistics_count_every_step_however_stale():
    run = run_of(trainer="a3c", model="seams.normalised", env="CartPole-v1", preset="classic", num_actor_processes=2)
    assert run.learner.acting.model.statistics.count.item() == run.learner.updates * 2 * 21
    read = torch.zeros_like(run.learner.acting.statistics)
    run.weights.read(torch.zeros_like(run.learner.acting.parameters), read)
    assert torch.equal(read, run.learner.acting.statistics)


def test_a_bad_reward_costs_its_update_alone_and_its_unrolls_are_kept(tmp_path):
    kwargs = {"fail": "nan", "fail_after": 300, "shape": [3]}
    config, task = resolve_config(
        {"env": "Synthetic-v0", "env_kwargs": kwargs, "trainer": "a3c", "num_actors": 4, "num_actor_processes": 2,
         "report_every": 1000, "max_skipped_updates": 3}
    )  # fmt: skip
    run = assemble(config, task, tmp_path, live=False)
    with pytest.raises(FloatingPointError, match="NaN or infinity in the reward"):
        run.run()
    assert run.learner.acting.parameters.isfinite().all()
    kept = torch.load(next((tmp_path / "bad_batches").iterdir()), weights_only=True)
    assert not kept["batch"]["reward"].isfinite().all()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--batch_size", 3], ["--batch_size 3", "2 of them", "leave it out"]),
        (["--batch_size", 3, "--num_actor_processes", 0], ["--batch_size 3", "4 of them", "this process"]),
        (["--pace", "unroll"], ["--trainer a3c has no --pace unroll", "--trainer monobeast"]),
        (["--policy_lag", 2], ["--trainer a3c has no --pace"]),
        (["--replay_capacity", 100], ["--replay_capacity", "--trainer a3c"]),
        (["--compile_model"], ["--compile_model", "leave it out"]),
        (["--popart"], ["--algorithm impala", "has numbers of its own", "--popart out"]),
    ],
    ids=["batch", "batch, serial", "pace", "lag", "replay", "compiled", "popart"],
)
def test_what_it_cannot_do_is_one_line(call, tmp_path, flags, words):
    done = call("--env", "Catch-v0", "--trainer", "a3c", "--num_actors", 4, "--num_actor_processes", 2, *flags)
    assert_one_line(done, *words)
    assert not (tmp_path / "runs").exists()


SMALL = ["--env", "Catch-v0", "--trainer", "a3c", "--num_actors", 4, "--num_actor_processes", 2, "--report_every", 0.2]


def load(run):
    return checkpoint.load(find(str(run), ""))


def test_it_lives_the_same_life(start, call, tmp_path):
    """A worker is killed, Ctrl-C, evaluated, resumed with other processes, killed."""
    program = start(*SMALL, "--xpid", "r", "--total_steps", 10**9)
    program.wait_for("loss total")
    victim = program.workers()[0]
    victim.kill()
    program.wait_for("restarting it (1 of 5)")
    assert f"a3c worker 0 (pid {victim.pid}) was killed by SIGKILL" in program.out
    run = tmp_path / "runs" / "r"
    before = rows(run)[-1]["step"]
    wait_until(lambda: rows(run)[-1]["step"] > before + 1_000, "training that goes on")
    program.send(signal.SIGINT, group=True)
    assert program.finish().code == 130, program.story()
    assert not program.err
    state = load(run)
    assert state["learner"]["steps"] == rows(run)[-1]["step"]
    assert state["config"]["batch_size"] == 2
    played = call("evaluate", "--checkpoint", "r", "--episodes", 3)
    assert "over 3 full games" in played.out, played.err
    again = start("--resume", "r", "--num_actor_processes", 1)
    steps = state["learner"]["steps"]
    wait_until(
        lambda: rows(run)[-1]["step"] > steps + 1_000 or again.process.poll() is not None, "training that goes on"
    )
    again.send(signal.SIGKILL)
    assert again.finish().code == -signal.SIGKILL, again.story()


def test_profile_says_where_the_time_goes(call, tmp_path):
    done = call("profile", *SMALL[:-2], "--seconds", 1, "--warm_up", 0.2, "--json", "profile.json")
    assert done.code == 0, done.err
    assert "gradient" in done.out
    assert "a3c worker" in done.out
