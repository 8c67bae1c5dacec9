"""Ranks of torchrun: two processes learn what one does, and everything that is shared on a machine is divided."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
import rank
import torch
from conftest import ROOT, assert_one_line

from beast import api
from beast.core.data import flatten
from beast.core.errors import ConfigError
from beast.core.ranks import Ranks
from beast.processes import machine
from beast.processes.launch import Launch, launch
from beast.report import console
from beast.report.report import Report
from beast.run import memory
from beast.run.assemble import assemble
from beast.run.resolve import resolve_config

FLAGS = {"env": "CartPole-v1", "model": "seams.normalised", "preset": "classic", "num_actor_processes": 0,
         "num_actors": 8, "batch_size": 8, "total_steps": 480, "report_every": 1000, "device": "cpu",
         "precision": "float32"}  # fmt: skip


@pytest.fixture
def as_rank(monkeypatch):
    """Make this process believe that torchrun has started it as one of several."""

    def pretend(**place):
        values = {
            "RANK": 1,
            "WORLD_SIZE": 2,
            "LOCAL_RANK": 1,
            "LOCAL_WORLD_SIZE": 2,
            "TORCHELASTIC_RUN_ID": "x",
        } | place
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return pretend


def kept_batches():
    run, batches = assemble(*resolve_config(FLAGS), None, live=False), []
    of = run.learning.gradients.of
    run.learning.gradients.of = lambda staged: batches.append(staged.batch) or of(staged)
    assert run.run() == 0
    assert len(batches) == 3
    batches[1].reward[3, 6] = torch.nan  # of an unroll that only the second rank has
    return batches


def test_two_ranks_with_half_a_batch_learn_what_one_does_with_all_of_it(tmp_path):
    batches = kept_batches()
    torch.save((FLAGS, [tuple(batch) for batch in batches]), tmp_path / "given.pt")
    paths = [str(ROOT), str(ROOT / "tests"), *sys.path]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", rank.__file__, tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    gradients, learner = rank.learner_of(FLAGS)
    for batch in batches:
        update = rank.learn(Ranks(), gradients, learner, batch)
    assert update.metrics["finite"]
    first, second = (torch.load(tmp_path / f"rank_{number}.pt", weights_only=False) for number in range(2))
    alone = learner.state_dict()
    for part in ("model", "optimiser"):
        ours, theirs, hers = (flatten(tuple(plain(state[part]))) for state in (alone, first["state"], second["state"]))
        for one, two, three in zip(ours, theirs, hers, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
            assert torch.equal(two, three)
    assert first["state"]["updates"] == 3
    assert first["state"]["steps"] == second["state"]["steps"] == 3 * sum(rank.STEPS)
    assert first["finite"] == second["finite"] == [True, False, True]
    assert sorted(first["gathered"]) == [(owner, number) for owner in range(2) for number in range(3)]
    assert second["gathered"] == []
    assert first["ending"] == second["ending"] == (False, 1)
    assert first["said"] == second["said"] == "rank 0 of 2"


def plain(state):
    return [value for value in state.values() if torch.is_tensor(value)] or list(state["moments"].values())


def test_alone_there_is_no_process_group():
    import torch.distributed as dist

    assert launch() == Launch(rank=0, size=1, local_rank=0, local_size=1)
    from beast.run.torchrun import joined

    with joined() as ranks:
        assert type(ranks) is Ranks
        assert not dist.is_initialized()


def test_ranks_divide_the_machine(as_rank, monkeypatch):
    cores = machine.usable_cores()
    config, task = resolve_config(FLAGS | {"num_actor_processes": 1, "num_actors": 8})
    need = memory.needed(config, task).total
    monkeypatch.setattr(memory, "free_memory", lambda: 2 * need - 2)
    api.check_machine(config, task)
    as_rank()
    assert machine.usable_cores() == max(1, cores // 2)
    with pytest.raises(ConfigError, match="of memory are needed"):
        api.check_machine(config, task)


def test_each_rank_has_its_own_gpu(as_rank, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    as_rank()
    for asked in ("auto", "cuda"):
        assert resolve_config(FLAGS | {"device": asked})[1].device == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="use --device cuda"):
        resolve_config(FLAGS | {"device": "cuda:1"})
    as_rank(LOCAL_RANK=2, LOCAL_WORLD_SIZE=3)
    with pytest.raises(ConfigError, match="--nproc_per_node 2"):
        resolve_config(FLAGS | {"device": "auto"})


def test_serial_mode_is_refused(as_rank):
    config, task = resolve_config(FLAGS)
    as_rank()
    with pytest.raises(ConfigError, match="without torchrun"):
        api.check_machine(config, task)


@pytest.mark.parametrize("command", ["evaluate", "profile", "plot"])
def test_other_commands_are_refused(as_rank, call, command):
    as_rank()
    assert_one_line(call(command), "torchrun", f"type {command} without it")


def test_only_the_first_rank_shows_reports(as_rank, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    as_rank(RANK=3)
    shown = console.open_console("", Report(100), live=None)
    shown.show(Report(100, step=7))
    shown.log("an actor died")
    shown.close()
    assert out.getvalue() == "rank 3: an actor died\n"


def test_ranks_that_are_not_the_first_have_other_streams_and_no_say():
    class Second(Ranks):
        """The second of two ranks, whose first has the same weights."""

        size, number = 2, 1

        def of_first(self, make):
            return make()

    flags = FLAGS | {"num_actor_processes": 1, "eval_every": 100, "max_minutes": 1.0, "stop_at_return": 5.0}
    first, second = (assemble(*resolve_config(flags), None, live=False, ranks=ranks) for ranks in (Ranks(), Second()))
    assert torch.equal(first.learner.acting.parameters, second.learner.acting.parameters)
    plans = [run.crew.workers[0].arguments([], 0)[1] for run in (first, second)]
    assert plans[0].seed != plans[1].seed
    assert first.evaluator is not None
    assert second.evaluator is None
    assert second.config.run.max_minutes is second.config.run.stop_at_return is None
