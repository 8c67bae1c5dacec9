"""Algorithms, models and sources of one's own, each without a change in `beast/`."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
import torch
from seams import columns

from beast.acting.policy import Policy
from beast.core.algorithms import algorithm_of, impala
from beast.core.flat import FlatModel
from beast.core.gradients import Gradients
from beast.core.learner import Learner, master_parameters
from beast.core.optimisers import OptimiserConfig
from beast.core.ranks import Ranks
from beast.monobeast.train import crew
from beast.run import checkpoint
from beast.run.assemble import assemble
from beast.run.resolve import resolve_config
from beast.tools.evaluation import load_model

SERIAL = {
    "env": "Catch-v0",
    "num_actor_processes": 0,
    "num_actors": 4,
    "batch_size": 4,
    "total_steps": 400,
    "report_every": 1000,
}
BEASTS = pytest.mark.parametrize("beast", ["monobeast", "polybeast"])


def assembled(folder=None, **flags):
    return assemble(*resolve_config(SERIAL | flags), folder, live=False)


def batches_of(**flags):
    """A run's first batches, and what they were made with."""
    run, batches = assembled(**flags), []
    of = run.learning.gradients.of
    run.learning.gradients.of = lambda staged: batches.append(staged.batch) or of(staged)
    assert run.run() == 0
    return run, batches


def learner_of(run, module=impala, learning_rate=1e-3):
    """A new learner for a run's task, always with the same weights."""
    torch.manual_seed(3)
    model, distribution = run.task.model.build(), run.task.model.distribution()
    masters = master_parameters(model)
    algorithm = algorithm_of(module, run.config.loss, distribution)
    gradients = Gradients(FlatModel(model), algorithm, run.task.observation, torch.device("cpu"))
    return gradients, Learner(gradients, OptimiserConfig(learning_rate=learning_rate), 10**9, masters)


def learn(pair, batch, ranks=None):
    gradients, learner = pair
    for gradient in gradients.of(gradients.to_device(batch)):
        update = learner.apply(*(ranks or Ranks()).sum(gradient, batch.action.numel()))
    return update


def test_two_passes_are_two_updates_and_one_unit():
    run, batches = batches_of(algorithm="seams.two_passes")
    assert (run.learner.steps, run.learner.updates) == (400, 10)
    assert batches[1].policy_version.unique().tolist() == [2]  # five units, each published once
    plain = learner_of(run)
    for _ in range(2):
        learn(plain, batches[0])
    import seams.two_passes

    twice = learner_of(run, seams.two_passes)
    learn(twice, batches[0])
    assert torch.equal(plain[1].acting.parameters, twice[1].acting.parameters)


class LastAgain:
    """Every batch twice: as it comes, and once more from memory."""

    def __init__(self, source):
        self.source, self.last = source, None

    def next(self, timeout):
        if self.last is not None:
            again, self.last = self.last._replace(steps=0, versions=self.last.versions[:0], episodes=[]), None
            return again
        return self.source.next(timeout)

    def done(self, work):
        self.last = work if work.steps else None
        self.source.done(work)

    def state_dict(self):
        return self.source.state_dict()


def test_replay_of_the_last_batch_is_a_source(monkeypatch):
    monkeypatch.setattr("beast.monobeast.train.crew", lambda *of: dataclasses.replace(crew(*of), source=LastAgain))
    run, batches = batches_of(total_steps=240)
    assert (run.learner.steps, run.learner.updates) == (240, 5)  # the end comes before the last one's second time
    assert all(batches[i] is batches[i + 1] for i in (0, 2))
    assert batches[1] is not batches[2]


@BEASTS
def test_evaluation_and_actors_see_the_running_mean(tmp_path, beast):
    run = assembled(
        tmp_path,
        model="seams.normalised",
        env="CartPole-v1",
        preset="classic",
        trainer=beast,
        total_steps=800,
        precision="bfloat16",
    )
    assert run.run() == 0
    statistics = run.learner.acting.model.statistics
    assert statistics.count.item() == 10 * 4 * 21
    assert statistics.mean.dtype == torch.float32
    state = checkpoint.load(checkpoint.saved(tmp_path)[0])
    assert torch.equal(state["learner"]["model"]["statistics.mean"], statistics.mean)
    evaluated, acting = (Policy(run.task.model, run.task.dtype, weights, 1) for weights in (None, run.weights))
    load_model(evaluated, state["learner"]["model"], tmp_path)
    acting.refresh()
    for policy in (evaluated, acting):
        assert torch.equal(policy.model.statistics.mean, statistics.mean)
        assert torch.equal(policy.model.statistics.variance, statistics.variance)


@BEASTS
def test_columns_of_environment_model_and_algorithm_reach_the_loss(beast):
    columns.SEEN.clear()
    module = "seams.columns"
    run = assembled(env=f"{module}:make_env", preset="classic", model=module, algorithm=module, trainer=beast)
    assert run.run() == 0
    assert run.store.arrays["extra"].keys() == {"allowed", "lives"}
    for allowed, action, doubt, lives, actor, first in columns.SEEN:
        assert allowed.shape == (21, 4, 3)
        assert allowed[:-1].gather(2, action.unsqueeze(-1))[~first[1:]].all()  # a reset's action is ignored
        assert (lives[1:][~first[1:]] > 0).all()
        assert sorted(actor.tolist()) == [0, 1, 2, 3]
        assert doubt.shape == (20, 4)
    policy = Policy(run.task.model, run.task.dtype, run.weights, 4)
    policy.refresh()
    assert np.abs(columns.SEEN[0][2].numpy()).max() > 0


def test_episodes_know_their_actor():
    run, episodes = assembled(num_actors=3, batch_size=2), []
    run.reports.add_episodes = episodes.extend
    assert run.run() == 0
    assert {episode.actor for episode in episodes} == {0, 1, 2}


class TwoThreads(Ranks):
    """Two learners of one policy, as threads of this process."""

    size = 2

    def __init__(self, barrier, shared):
        self._barrier, self._shared = barrier, shared

    def sum(self, gradient, steps):
        self._shared.append((gradient.vector.clone(), gradient.sums.clone()))
        self._barrier.wait(30)
        vector, sums = (sum(parts) for parts in zip(*self._shared[-2:], strict=True))
        self._barrier.wait(30)
        return gradient._replace(vector=vector, sums=sums), 2 * steps


@pytest.mark.parametrize("spoilt", [False, True])
@pytest.mark.parametrize("popart", [False, True])
def test_two_ranks_with_half_a_batch_are_one_with_all_of_it(spoilt, popart):
    flags = {"model": "seams.normalised", "env": "CartPole-v1", "preset": "classic", "num_actors": 8, "batch_size": 8}
    run, batches = batches_of(**flags, popart=popart)
    batch = batches[0]._replace(core_state=())
    if spoilt:
        batch.reward[3, 6] = torch.nan
    alone = learner_of(run)
    for _ in range(2):  # PopArt only measures the first
        update = learn(alone, batch)
    barrier, shared, pairs = threading.Barrier(2), [], [learner_of(run) for _ in range(2)]

    def rank(i):
        half = type(batch)(*(x[:, 4 * i : 4 * i + 4] if torch.is_tensor(x) and x.ndim > 1 else x for x in batch))
        for _ in range(2):
            learn(pairs[i], half, TwoThreads(barrier, shared))

    threads = [threading.Thread(target=rank, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert bool(update.metrics["finite"]) is not spoilt
    for _, learner in pairs:
        torch.testing.assert_close(learner.acting.parameters, alone[1].acting.parameters, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(learner.acting.statistics, alone[1].acting.statistics, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(learner.own.statistics, alone[1].own.statistics, rtol=1e-5, atol=1e-6)
    assert torch.equal(pairs[0][1].acting.parameters, pairs[1][1].acting.parameters)
