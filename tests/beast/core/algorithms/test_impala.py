"""The loss against a slow reference, written from the table of row alignment in `beast/core/data.py` with loops and floats."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from gymnasium import spaces
from torch.testing import assert_close

from beast.core.algorithms import impala
from beast.core.data import Batch, ModelOutput
from beast.core.distributions import distribution_for

T, B, A = 12, 5, 3
CATEGORICAL = distribution_for(spaces.Discrete(A))
# Discounts that float32 holds exactly, so that float64 results can be compared tightly.
CONFIG = impala.Config(discounting=0.96875, baseline_cost=0.375, entropy_cost=0.125)
TIGHT = {"rtol": 1e-11, "atol": 1e-11}


def random_case(seed, end_probability=0.3):
    """(outputs, batch), float64: games end by terminal states, time limits and lost lives."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    terminated, truncated, first = (torch.zeros(T + 1, B, dtype=torch.bool) for _ in range(3))
    for b in range(B):
        over = False  # does the environment reset on this row?
        for t in range(T + 1):
            first[t, b] = over
            over = False
            if not first[t, b] and torch.rand((), generator=generator) < end_probability:
                kind = int(torch.randint(4, (), generator=generator))
                terminated[t, b] = kind in (0, 1, 3)
                truncated[t, b] = kind in (2, 3)
                over = kind != 1  # 1: a lost life, the game goes on
    batch = Batch(
        observation=torch.zeros(T + 1, B),
        reward=torch.where(first, 0.0, 2 * normal(T + 1, B)),
        terminated=terminated,
        truncated=truncated,
        first=first,
        last_action=torch.zeros(T + 1, B, dtype=torch.int64),
        action=torch.randint(A, (T, B), generator=generator),
        behaviour_logits=normal(T, B, A),
        core_state=(),
        policy_version=torch.zeros(T, B, dtype=torch.int64),
    )
    outputs = ModelOutput(normal(T + 1, B, A).requires_grad_(), normal(T + 1, B).requires_grad_())
    return outputs, batch


def clip_reward(config, r):
    if config.reward_clipping == "abs_one":
        return max(-1.0, min(1.0, r))
    if config.reward_clipping == "soft_asymmetric":
        return 5 * math.tanh(r / 5) * (0.3 if r < 0 else 1)
    return r


def log_softmax(logits):
    total = math.log(sum(math.exp(x) for x in logits))
    return [x - total for x in logits]


def pieces(first_column):
    """Row ranges (a, e) of one unroll without a reset inside; row e is the last observation of its piece."""
    starts = [0] + [t for t in range(1, T + 1) if first_column[t]]
    return list(zip(starts, [s - 1 for s in starts[1:]] + [T], strict=True))


def reference(outputs, batch, config):
    """The losses by name, and the gradients with respect to logits and values, as nested lists."""
    rows_of_logits, rows_of_values = outputs.policy_logits.tolist(), outputs.value.tolist()
    losses, entropies = {"pg_loss": 0.0, "baseline_loss": 0.0, "entropy_loss": 0.0}, []
    logits_grad = torch.zeros(T + 1, B, A, dtype=torch.float64)
    value_grad = torch.zeros(T + 1, B, dtype=torch.float64)
    for b in range(B):
        for a, e in pieces(batch.first[:, b].tolist()):
            V = {t: rows_of_values[t][b] for t in range(a, e + 1)}
            v = {e: V[e]}  # the last observation of a piece only bootstraps
            for t in reversed(range(a, e)):  # action[t] leads from row t to row t + 1
                action = int(batch.action[t, b])
                r = clip_reward(config, float(batch.reward[t + 1, b]))
                gamma = 0.0 if batch.terminated[t + 1, b] else config.discounting
                log_pi = log_softmax(rows_of_logits[t][b])
                log_mu = log_softmax(batch.behaviour_logits[t, b].tolist())
                ratio = math.exp(log_pi[action] - log_mu[action])
                rho, c = min(config.clip_rho_threshold, ratio), min(config.clip_c_threshold, ratio)
                v[t] = V[t] + rho * (r + gamma * V[t + 1] - V[t])
                v[t] += gamma * config.trace_lambda * c * (v[t + 1] - V[t + 1])
                advantage = min(config.clip_pg_rho_threshold, ratio) * (r + gamma * v[t + 1] - V[t])
                entropy = -sum(math.exp(x) * x for x in log_pi)

                entropies.append(entropy)
                losses["pg_loss"] += -log_pi[action] * advantage
                losses["baseline_loss"] += config.baseline_cost * 0.5 * (v[t] - V[t]) ** 2
                losses["entropy_loss"] += -config.entropy_cost * entropy
                value_grad[t, b] = -config.baseline_cost * (v[t] - V[t])
                for i in range(A):
                    pi = math.exp(log_pi[i])
                    logits_grad[t, b, i] = -advantage * ((i == action) - pi)
                    logits_grad[t, b, i] += config.entropy_cost * pi * (log_pi[i] + entropy)
    losses["total_loss"] = sum(losses.values())
    losses["entropy"] = sum(entropies) / max(1, len(entropies))
    return losses, logits_grad, value_grad


def gradients(outputs, batch, config=CONFIG, distribution=CATEGORICAL):
    total, metrics = impala.loss(outputs, batch, distribution, config)
    return metrics, *torch.autograd.grad(total, [outputs.policy_logits, outputs.value])


def assert_equals_reference(outputs, batch, config=CONFIG):
    metrics, logits_grad, value_grad = gradients(outputs, batch, config)
    losses, expected_logits_grad, expected_value_grad = reference(outputs, batch, config)
    assert metrics.keys() == losses.keys()
    for name, expected in losses.items():
        assert_close(metrics[name], torch.tensor(expected, dtype=torch.float64), **TIGHT)
    assert_close(logits_grad, expected_logits_grad, **TIGHT)
    assert_close(value_grad, expected_value_grad, **TIGHT)


@pytest.mark.parametrize("end_probability", [0.0, 0.2, 0.6])
@pytest.mark.parametrize("seed", range(4))
def test_losses_and_gradients_equal_the_reference(seed, end_probability):
    assert_equals_reference(*random_case(seed, end_probability))


@pytest.mark.parametrize(
    "change",
    [
        {"discounting": 0.0},
        {"discounting": 1.0},
        {"baseline_cost": 0.0},
        {"entropy_cost": 0.0},
        {"reward_clipping": "none"},
        {"reward_clipping": "soft_asymmetric"},
        {"clip_rho_threshold": 2.0},
        {"clip_pg_rho_threshold": 0.5},
        {"clip_c_threshold": 0.5},
        {"trace_lambda": 0.75},
        {"clip_rho_threshold": 3.0, "clip_pg_rho_threshold": 1.5, "clip_c_threshold": 2.0, "trace_lambda": 0.5},
    ],
    ids=str,
)
def test_every_setting_reaches_the_loss(change):
    outputs, batch = random_case(seed=5)
    assert_equals_reference(outputs, batch, dataclasses.replace(CONFIG, **change))


def one_column(ends):
    """Three actions in one environment, on policy; `ends` names what row 2 says."""
    outputs = ModelOutput(
        torch.zeros(4, 1, A, dtype=torch.float64, requires_grad=True),
        torch.tensor([[1.0], [2.0], [4.0], [8.0]], dtype=torch.float64, requires_grad=True),
    )
    no = torch.zeros(4, 1, dtype=torch.bool)
    row_2, row_3 = torch.arange(4).unsqueeze(1) == 2, torch.arange(4).unsqueeze(1) == 3
    batch = Batch(
        observation=torch.zeros(4, 1),
        reward=torch.tensor([[99.0], [0.25], [0.5], [0.0]], dtype=torch.float64),
        terminated=row_2 if "terminated" in ends else no,
        truncated=row_2 if "truncated" in ends else no,
        first=row_3 if "reset" in ends else no,
        last_action=torch.zeros(4, 1, dtype=torch.int64),
        action=torch.tensor([[0], [1], [2]]),
        behaviour_logits=torch.zeros(3, 1, A, dtype=torch.float64),
        core_state=(),
        policy_version=torch.zeros(3, 1, dtype=torch.int64),
    )
    return outputs, batch


@pytest.mark.parametrize(
    ("ends", "targets"),
    [
        # gamma = 1/2: v_2 = r_3 + V(x_3) / 2, v_1 = r_2 + v_2 / 2, v_0 = r_1 + v_1 / 2
        ((), [0.25 + 2.5 / 2, 0.5 + 4.0 / 2, 0.0 + 8.0 / 2]),
        # a true end on row 2: nothing beyond its reward, and action 2 was ignored by the reset: v_2 = V(x_2)
        (("terminated", "reset"), [0.25 + 0.5 / 2, 0.5, 4.0]),
        # a time limit on row 2: v_1 = r_2 + V(x_2) / 2 from the last real observation; the reset's V(x_3) has no part
        (("truncated", "reset"), [0.25 + 2.5 / 2, 0.5 + 4.0 / 2, 4.0]),
        # both at once: a true end
        (("terminated", "truncated", "reset"), [0.25 + 0.5 / 2, 0.5, 4.0]),
        # a lost life on row 2: the return ends there, but action 2 counts
        (("terminated",), [0.25 + 0.5 / 2, 0.5, 0.0 + 8.0 / 2]),
    ],
    ids=["no end", "terminated", "truncated", "both", "lost life"],
)
def test_value_targets_by_hand(ends, targets):
    outputs, batch = one_column(ends)
    config = dataclasses.replace(CONFIG, discounting=0.5, baseline_cost=1.0)
    _, _, value_grad = gradients(outputs, batch, config)  # V - v
    vs = outputs.value[:3, 0] - value_grad[:3, 0]
    assert vs.tolist() == targets


# -- alignment --------------------------------------------------------------------------------------------------------


def test_row_0_tells_of_the_action_before_the_unroll_and_counts_for_nothing():
    outputs, batch = random_case(seed=6)
    changed = batch._replace(
        **{
            name: torch.cat([~x[:1] if x.dtype == torch.bool else x[:1] + 7, x[1:]])
            for name, x in batch._asdict().items()
            if name in ("reward", "terminated", "truncated", "first")
        }
    )
    for one, other in zip(gradients(outputs, batch)[1:], gradients(outputs, changed)[1:], strict=True):
        assert torch.equal(one, other)


def test_row_t_only_bootstraps():
    outputs, batch = random_case(seed=6, end_probability=0.0)
    before, logits_grad, value_grad = gradients(outputs, batch)
    assert not logits_grad[-1].any()
    assert not value_grad[-1].any()
    other_logits = outputs._replace(policy_logits=(outputs.policy_logits + (torch.arange(T + 1) == T).view(-1, 1, 1)))
    assert gradients(other_logits, batch)[0]["total_loss"] == before["total_loss"]
    other_value = outputs._replace(value=outputs.value + (torch.arange(T + 1) == T).view(-1, 1))
    assert gradients(other_value, batch)[0]["total_loss"] != before["total_loss"]


def rows_of(outputs, batch, start, stop):
    """The unroll that reaches from row `start` to row `stop`."""
    rows, steps = slice(start, stop + 1), slice(start, stop)
    per_row = ("observation", "reward", "terminated", "truncated", "first", "last_action")
    per_step = ("action", "behaviour_logits", "policy_version")
    cut = {name: getattr(batch, name)[rows] for name in per_row} | {n: getattr(batch, n)[steps] for n in per_step}
    return ModelOutput(outputs.policy_logits[rows], outputs.value[rows]), batch._replace(**cut)


@pytest.mark.parametrize("overlap", range(1, T))
def test_two_unrolls_that_share_a_row_count_each_step_once(overlap):
    """With gamma = 0 a long unroll's loss is the sum of its parts' losses: row T of one is row 0 of the next."""
    outputs, batch = random_case(seed=7)
    config = dataclasses.replace(CONFIG, discounting=0.0)

    def losses(start, stop):
        return impala.loss(*rows_of(outputs, batch, start, stop), CATEGORICAL, config)[1]

    whole, left, right = losses(0, T), losses(0, overlap), losses(overlap, T)
    for name, value in whole.items():
        if name == "entropy":  # a mean
            continue
        assert_close(left[name] + right[name], value, **TIGHT)
    # Were the second unroll to begin one row later or earlier, a step would be lost or counted twice.
    for wrong_start in {overlap - 1, min(overlap + 1, T - 1)} - {overlap}:
        wrong = losses(wrong_start, T)
        assert abs(left["total_loss"] + wrong["total_loss"] - whole["total_loss"]) > 1e-6


@pytest.mark.parametrize("t", [0, 4, T - 1])
def test_reward_t_plus_1_is_what_action_t_earned(t):
    outputs, batch = random_case(seed=8, end_probability=0.0)
    config = dataclasses.replace(CONFIG, discounting=0.0, reward_clipping="none")
    _, logits_before, values_before = gradients(outputs, batch, config)
    batch.reward[t + 1] += 1.0
    _, logits_after, values_after = gradients(outputs, batch, config)
    changed_rows = (logits_before != logits_after).any(-1).any(-1).nonzero().flatten().tolist()
    assert changed_rows == [t]
    assert (values_before != values_after).any(-1).nonzero().flatten().tolist() == [t]


def test_the_action_that_a_reset_ignored_is_no_part_of_any_loss():
    outputs, batch = random_case(seed=9)
    ignored = batch.first[1:]
    assert ignored.sum() >= 5  # or this test shows nothing
    before = gradients(outputs, batch)
    assert not before[1][:-1][ignored].any()
    assert not before[2][:-1][ignored].any()

    absurd = batch._replace(
        reward=torch.where(batch.first, 1000.0, batch.reward),
        action=torch.where(ignored, (batch.action + 1) % A, batch.action),
        behaviour_logits=torch.where(ignored.unsqueeze(-1), torch.tensor([9.0, -9.0, 0.0]), batch.behaviour_logits),
    )
    config = dataclasses.replace(CONFIG, reward_clipping="none")
    before, after = gradients(outputs, batch, config), gradients(outputs, absurd, config)
    assert before[0] == after[0]
    assert torch.equal(before[1], after[1])
    assert torch.equal(before[2], after[2])


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_losses_are_sums_over_steps_and_unrolls():
    outputs, batch = random_case(seed=10)
    once = impala.loss(outputs, batch, CATEGORICAL, CONFIG)[1]
    doubled = ModelOutput(*(torch.cat([x, x], dim=1) for x in (outputs.policy_logits, outputs.value)))
    fields = {name: x for name, x in batch._asdict().items() if isinstance(x, torch.Tensor)}
    assert {"observation", "reward", "first", "action", "behaviour_logits", "policy_version"} <= fields.keys()
    tensors = {name: torch.cat([x, x], dim=1) for name, x in fields.items()}
    twice = impala.loss(doubled, batch._replace(**tensors), CATEGORICAL, CONFIG)[1]
    for name in once:
        assert_close(twice[name], (1 if name == "entropy" else 2) * once[name], **TIGHT)


def test_metrics_are_the_terms_and_carry_no_gradient():
    total, metrics = impala.loss(*random_case(seed=11), CATEGORICAL, CONFIG)
    assert total.requires_grad
    assert not any(value.requires_grad for value in metrics.values())
    assert metrics["total_loss"] == total
    parts = metrics["pg_loss"] + metrics["baseline_loss"] + metrics["entropy_loss"]
    assert_close(parts, total.detach(), **TIGHT)


def test_masked_actions_leave_losses_and_gradients_finite():
    outputs, batch = random_case(seed=12)
    never = torch.zeros(A, dtype=torch.float64)
    never[0] = -torch.inf
    masked = outputs._replace(policy_logits=outputs.policy_logits + never)
    batch = batch._replace(behaviour_logits=batch.behaviour_logits + never, action=batch.action.clamp(min=1))
    metrics, logits_grad, value_grad = gradients(masked, batch)
    assert all(value.isfinite() for value in metrics.values())
    assert logits_grad.isfinite().all()
    assert value_grad.isfinite().all()
    assert not logits_grad[..., 0].any()
    assert logits_grad[..., 1].any()


def test_a_multi_discrete_space_of_one_part_has_the_loss_of_the_discrete_one():
    outputs, batch = random_case(seed=13)
    multi = distribution_for(spaces.MultiDiscrete([A]))
    one = gradients(outputs, batch)
    other = gradients(outputs, batch._replace(action=batch.action.unsqueeze(-1)), distribution=multi)
    assert one[0] == other[0]
    assert_close(one[1], other[1], **TIGHT)


def test_continuous_actions_give_the_policy_gradient_of_the_gaussian():
    outputs, batch = random_case(seed=14, end_probability=0.0)
    gaussian = distribution_for(spaces.Box(-1, 1, (1,)))
    logits = outputs.policy_logits[..., :2].detach().clamp(max=1.5).requires_grad_()  # mean, log deviation
    action = logits[:-1, :, :1].detach() + 0.5
    batch = batch._replace(action=action, behaviour_logits=logits[:-1].detach())  # on policy
    config = dataclasses.replace(CONFIG, discounting=0.0, entropy_cost=0.25, reward_clipping="none")
    _, logits_grad, _ = gradients(outputs._replace(policy_logits=logits), batch, config, gaussian)
    advantage = (batch.reward[1:] - outputs.value[:-1]).detach()
    deviation = logits[:-1, :, 1].detach().exp()
    assert_close(logits_grad[:-1, :, 0], -advantage * 0.5 / deviation**2, **TIGHT)
    # d log_prob / d log_std = z^2 - 1, and the entropy grows by one per unit of log_std
    assert_close(logits_grad[:-1, :, 1], -advantage * ((0.5 / deviation) ** 2 - 1) - 0.25, **TIGHT)


# r, clip(r, -1, 1), and what the authors' released code makes of r
REWARDS = [
    (-100.0, -1.0, -1.5),
    (-10.0, -1.0, -1.4460413701137254),
    (-5.0, -1.0, -1.1423912339336473),
    (-1.0, -1.0, -0.296062980337356),
    (-0.5, -0.5, -0.14950199193743374),
    (-0.01, -0.01, -0.0029999960000064),
    (0.0, 0.0, 0.0),
    (0.01, 0.01, 0.009999986666688),
    (0.5, 0.5, 0.49833997312477907),
    (1.0, 1.0, 0.98687660112452),
    (5.0, 1.0, 3.8079707797788243),
    (10.0, 1.0, 4.820137900379084),
    (100.0, 1.0, 5.0),
]


def test_reward_transforms_are_the_published_ones():
    r, abs_one, soft_asymmetric = torch.tensor(REWARDS, dtype=torch.float64).unbind(-1)
    assert torch.equal(impala.REWARD_CLIPPING["abs_one"](r), abs_one)
    assert_close(impala.REWARD_CLIPPING["soft_asymmetric"](r), soft_asymmetric, rtol=1e-12, atol=1e-15)
    assert torch.equal(impala.REWARD_CLIPPING["none"](r), r)


def test_defaults_are_the_papers_for_atari():
    assert dataclasses.asdict(impala.Config()) == {
        "discounting": 0.99,
        "baseline_cost": 0.5,
        "entropy_cost": 0.01,
        "reward_clipping": "abs_one",
        "clip_rho_threshold": 1.0,
        "clip_pg_rho_threshold": 1.0,
        "clip_c_threshold": 1.0,
        "trace_lambda": 1.0,
        "correction": "vtrace",
        "scale_rewards": False,
        "popart": False,
        "squashed_entropy": False,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("discounting", 1.01),
        ("discounting", -0.1),
        ("reward_clipping", "abs_two"),
        ("clip_rho_threshold", 0.0),
        ("clip_pg_rho_threshold", -1.0),
        ("clip_c_threshold", 0.0),
    ],
)
def test_a_setting_out_of_range_is_refused_with_its_flag_and_value(name, value):
    with pytest.raises(ValueError, match=rf"--{name} .*got '?{value}"):
        impala.Config(**{name: value})
