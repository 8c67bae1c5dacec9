"""Running statistics in whole runs: actors, evaluation and agents see the learner's, and they are saved."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import beast
from beast.acting.policy import Policy
from beast.core.data import DISCOUNTED_RETURN
from beast.core.errors import ConfigError, ModelError
from beast.run import checkpoint
from beast.run.assemble import assemble
from beast.run.resolve import resolve_config
from beast.tools.evaluation import load_model

FLAGS = {
    "env": "Pendulum-v1", "preset": "classic", "num_actors": 4, "batch_size": 4, "num_actor_processes": 0, "total_steps": 1600,
    "report_every": 1000,
    "normalise_observations": True, "scale_rewards": True, "reward_clipping": "none", "model": "mlp",
    "state_independent_std": True,
}  # fmt: skip


def trained(folder=None, **flags):
    run = assemble(*resolve_config(FLAGS | flags), folder, live=False)
    batches = []
    of = run.learning.gradients.of
    run.learning.gradients.of = lambda staged: batches.append(staged.batch) or of(staged)
    assert run.run() == 0
    return run, batches


@pytest.mark.parametrize("trainer", ["monobeast", "polybeast"])
def test_statistics_are_those_of_all_steps_learned_from_and_everyone_has_them(tmp_path, trainer):
    run, batches = trained(tmp_path, trainer=trainer)
    (statistics,) = run.learner.acting.model.observation_statistics.parts
    rows = torch.cat([batch.observation.reshape(-1, 3) for batch in batches]).double()
    assert statistics.count.item() == len(rows) == run.learner.updates * 4 * 21
    torch.testing.assert_close(statistics.mean.double(), rows.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(statistics.variance.double(), rows.var(0, unbiased=False), rtol=1e-3, atol=1e-4)

    returns = run.learner.own.model.discounted_returns
    seen = torch.cat([batch.extra[DISCOUNTED_RETURN][1:][~batch.first[1:]] for batch in batches])
    torch.testing.assert_close(returns.variance[0], seen.var(unbiased=False), rtol=1e-3, atol=1e-3)

    state = checkpoint.load(checkpoint.saved(tmp_path)[0])
    evaluated, acting = (Policy(run.task.model, run.task.dtype, weights, 1) for weights in (None, run.weights))
    load_model(evaluated, state["learner"]["model"], tmp_path)
    acting.refresh()
    for policy in (evaluated, acting):
        (theirs,) = policy.model.observation_statistics.parts
        assert torch.equal(theirs.mean, statistics.mean)
        assert torch.equal(theirs.variance, statistics.variance)
        assert torch.equal(policy.model.log_std, run.learner.acting.model.log_std)


def test_discounted_returns_are_those_of_the_rewards_of_each_actor():
    _, batches = trained(discounting=0.9, max_episode_steps=30)
    reward = torch.cat(
        [batch.reward[:-1] for batch in batches]
    ).numpy()  # batches follow each other: one unroll an actor
    first = torch.cat([batch.first[:-1] for batch in batches]).numpy()
    said = torch.cat([batch.extra[DISCOUNTED_RETURN][:-1] for batch in batches]).numpy()
    expected = np.zeros(4)
    assert first[1:].any()
    for row in range(len(reward)):
        expected = np.where(first[row], 0.0, 0.9 * expected + reward[row])
        np.testing.assert_allclose(said[row], expected, rtol=1e-4, atol=1e-4)


def test_an_agent_and_an_evaluation_read_normalised_observations(tmp_path):
    run = beast.train(**FLAGS, savedir=tmp_path)
    observation = np.array([[0.3, -0.4, 5.0]], np.float32)
    chosen = beast.load(run, deterministic=True).choose(observation)
    saved = checkpoint.load(checkpoint.saved(run)[0])["learner"]["model"]
    mean, variance = (saved[f"observation_statistics.parts.0.{name}"] for name in ("mean", "variance"))
    x = (torch.from_numpy(observation) - mean) / (variance + 1e-8).sqrt()
    for layer in ("fc1", "fc2"):
        x = torch.tanh(x @ saved[f"{layer}.weight"].T + saved[f"{layer}.bias"])
    by_hand = x @ saved["policy.weight"].T + saved["policy.bias"]
    np.testing.assert_allclose(chosen.logits[0, 0], by_hand[0, 0].item(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(chosen.logits[0, 1], saved["log_std"][1].item(), rtol=1e-6)
    assert len(beast.evaluate(run, episodes=2)["returns"]) == 2


def test_a_skipped_batch_leaves_no_trace_in_the_statistics():
    run = assemble(*resolve_config(FLAGS), None, live=False)
    run.config.run.__dict__["max_skipped_updates"] = 10
    of, seen = run.learning.gradients.of, []

    def spoilt(staged):
        seen.append(staged.batch)
        if len(seen) == 3:
            staged = staged._replace(batch=staged.batch._replace(reward=staged.batch.reward * torch.nan))
        return of(staged)

    run.learning.gradients.of = spoilt
    assert run.run() == 0
    (statistics,) = run.learner.acting.model.observation_statistics.parts
    assert statistics.count.item() == (len(seen) - 1) * 4 * 21
    assert run.learner.own.model.discounted_returns.variance.isfinite().all()


@pytest.mark.parametrize(
    "flags",
    [
        {"algorithm": "appo"},
        {"trainer": "polybeast", "policy_lag": 2},
        {"replay_capacity": 20, "batch_size": 8},
    ],
    ids=["appo", "late weights", "replay"],
)
def test_a_run_with_popart_is_saved_evaluated_and_loaded(tmp_path, flags):
    flags = FLAGS | {"scale_rewards": False, "popart": True} | flags
    run = beast.train(**flags, savedir=tmp_path)
    learner = checkpoint.load(checkpoint.saved(run)[0])["learner"]
    statistics = learner["algorithm"]["module"]
    assert statistics["popart.mean"].item() < -1  # rewards lie between -16 and 0
    assert 1 < statistics["popart.variance"].sqrt().item() < 100
    assert beast.load(run).choose(np.array([[0.3, -0.4, 5.0]], np.float32)).action.shape == (1, 1)
    assert len(beast.evaluate(run, episodes=2)["returns"]) == 2


def test_popart_takes_the_place_of_a_presets_scaled_rewards():
    asked = {"env": "CartPole-v1", "popart": True}
    for flags, scaled in (({}, False), ({"popart": False}, True)):
        config, _ = resolve_config(asked | flags)
        assert config.run.preset == "control"
        assert config.loss.scale_rewards is scaled
    with pytest.raises(ConfigError, match=r"--popart and --scale_rewards .*leave one of them out"):
        resolve_config(asked | {"scale_rewards": True})


def test_what_cannot_be_is_said_in_one_line():
    with pytest.raises(ModelError, match=r"--normalise_observations"):
        resolve_config({"env": "Catch-v0", "env_kwargs": {"rows": 36, "columns": 36}, "normalise_observations": True})
    with pytest.raises(ConfigError, match=r"--scale_rewards needs --reward_clipping none"):
        resolve_config({"env": "Catch-v0", "scale_rewards": True})
