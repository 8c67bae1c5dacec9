"""V-trace against equation 1 of the paper, written out as the sum that it is."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from beast.core import vtrace

T, B, A = 6, 3, 4
TIGHT = {"rtol": 1e-12, "atol": 1e-12}


def random_case(seed, shape=(T, B), end_probability=0.2):
    """Keyword arguments of `from_importance_weights`, float64, with episode ends (zero discounts)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    ends = torch.rand(shape, generator=generator) < end_probability
    return {
        "log_rhos": 0.7 * normal(shape),
        "discounts": torch.where(ends, 0.0, 0.9 + 0.05 * normal(shape)),
        "rewards": normal(shape),
        "values": 2 * normal(shape),
        "bootstrap_value": 2 * normal(shape[1:]),
    }


def equation_1(
    log_rhos,
    discounts,
    rewards,
    values,
    bootstrap_value,
    clip_rho_threshold=1.0,
    clip_pg_rho_threshold=1.0,
    *,
    clip_c_threshold=1.0,
    trace_lambda=1.0,
):
    """v_s = V(x_s) + sum_t (prod_i gamma_i c_i) rho_t (r_t + gamma_t V(x_{t+1}) - V(x_t)), and the advantages."""
    shape = values.shape
    steps = shape[0]
    # Columns of plain floats, whatever the trailing dimensions are.
    log_rho, gamma, r, v = (x.reshape(steps, -1).T.tolist() for x in (log_rhos, discounts, rewards, values))
    bootstrap = bootstrap_value.reshape(-1).tolist()

    def clip(weight, threshold):
        return weight if threshold is None else min(threshold, weight)

    all_vs, all_advantages = [], []
    for column in range(len(bootstrap)):
        V = [*v[column], bootstrap[column]]  # V(x_0) .. V(x_T)
        ratio = [math.exp(x) for x in log_rho[column]]
        rho = [clip(x, clip_rho_threshold) for x in ratio]
        c = [trace_lambda * clip(x, clip_c_threshold) for x in ratio]
        vs = []
        for s in range(steps):
            total = V[s]
            for t in range(s, steps):
                product = 1.0
                for i in range(s, t):
                    product *= gamma[column][i] * c[i]
                total += product * rho[t] * (r[column][t] + gamma[column][t] * V[t + 1] - V[t])
            vs.append(total)
        vs.append(bootstrap[column])
        all_vs.append(vs[:-1])
        all_advantages.append(
            [
                clip(ratio[s], clip_pg_rho_threshold) * (r[column][s] + gamma[column][s] * vs[s + 1] - V[s])
                for s in range(steps)
            ]
        )
    return tuple(torch.tensor(x, dtype=torch.float64).T.reshape(shape) for x in (all_vs, all_advantages))


@pytest.mark.parametrize("shape", [(1, 1), (T, B), (20, 4), (5, 2, 3), (4, 2, 1, 3)])
@pytest.mark.parametrize("seed", range(4))
def test_equals_equation_1_over_random_cases_with_episode_ends(seed, shape):
    case = random_case(seed, shape)
    vs, pg_advantages = vtrace.from_importance_weights(**case)
    expected_vs, expected_advantages = equation_1(**case)
    assert_close(vs, expected_vs, **TIGHT)
    assert_close(pg_advantages, expected_advantages, **TIGHT)


@pytest.mark.parametrize(
    "knobs",
    [
        {"clip_rho_threshold": None, "clip_pg_rho_threshold": None, "clip_c_threshold": None},
        {"clip_rho_threshold": None},
        {"clip_pg_rho_threshold": None},
        {"clip_c_threshold": None},
        {"clip_rho_threshold": 1.5, "clip_c_threshold": 0.8},
        {"clip_rho_threshold": 2.0, "clip_pg_rho_threshold": 0.7, "clip_c_threshold": 1.2},
        {"trace_lambda": 0.9},
        {"trace_lambda": 0.0},
        {"trace_lambda": 0.5, "clip_rho_threshold": 3.7, "clip_pg_rho_threshold": 2.2, "clip_c_threshold": 0.5},
    ],
    ids=str,
)
def test_equals_equation_1_for_any_clips_and_lambda(knobs):
    case = random_case(seed=11)
    results = vtrace.from_importance_weights(**case, **knobs)
    for result, expected in zip(results, equation_1(**case, **knobs), strict=True):
        assert_close(result, expected, **TIGHT)
    # The knob is not idle: without it the numbers are others.
    assert not all(torch.equal(a, b) for a, b in zip(results, vtrace.from_importance_weights(**case), strict=True))


def test_defaults_clip_all_three_weights_at_one():
    case = random_case(seed=12)
    explicit = vtrace.from_importance_weights(**case, clip_rho_threshold=1.0, clip_pg_rho_threshold=1.0)
    spelled_out = equation_1(**case, clip_c_threshold=1.0, trace_lambda=1.0)
    for default, clipped, expected in zip(vtrace.from_importance_weights(**case), explicit, spelled_out, strict=True):
        assert torch.equal(default, clipped)
        assert_close(default, expected, **TIGHT)


def test_the_clip_of_the_policy_gradient_leaves_the_value_targets_alone():
    case = random_case(seed=13)
    one = vtrace.from_importance_weights(**case, clip_pg_rho_threshold=0.5)
    other = vtrace.from_importance_weights(**case, clip_pg_rho_threshold=None)
    assert torch.equal(one.vs, other.vs)
    assert not torch.equal(one.pg_advantages, other.pg_advantages)


@pytest.mark.parametrize("clip", [1.0, None])
def test_on_policy_targets_are_n_step_returns(clip):
    case = random_case(seed=14) | {"log_rhos": torch.zeros(T, B, dtype=torch.float64)}
    vs, pg_advantages = vtrace.from_importance_weights(**case, clip_rho_threshold=clip, clip_c_threshold=clip)
    following = case["bootstrap_value"]
    for t in reversed(range(T)):
        n_step_return = case["rewards"][t] + case["discounts"][t] * following
        assert_close(vs[t], n_step_return, **TIGHT)
        assert_close(pg_advantages[t], n_step_return - case["values"][t], **TIGHT)
        following = n_step_return


def test_nothing_reaches_back_over_an_episode_end():
    case = random_case(seed=15, end_probability=0.0)
    case["discounts"][2] = 0.0
    before = vtrace.from_importance_weights(**case)
    for name in ("rewards", "values", "log_rhos"):
        case[name][3:] += 1.0
    after = vtrace.from_importance_weights(**case)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[:3], new[:3])
        assert not torch.equal(old[3:], new[3:])


@pytest.mark.parametrize("clip", [1.0, None])
def test_a_weight_of_zero_cuts_a_step_out(clip):
    case = random_case(seed=16, end_probability=0.0)
    case["log_rhos"][3] = -torch.inf
    knobs = {"clip_rho_threshold": clip, "clip_pg_rho_threshold": clip, "clip_c_threshold": clip}
    before = vtrace.from_importance_weights(**case, **knobs)
    assert torch.equal(before.vs[3], case["values"][3])
    assert torch.equal(before.pg_advantages[3], torch.zeros(B, dtype=torch.float64))
    for result, expected in zip(before, equation_1(**case, **knobs), strict=True):
        assert_close(result, expected, **TIGHT)
    # Neither its own reward nor anything after it is seen from before it.
    case["rewards"][3:] += 100.0
    case["values"][4:] -= 100.0
    after = vtrace.from_importance_weights(**case, **knobs)
    assert torch.equal(before.vs[:4], after.vs[:4])
    assert torch.equal(before.pg_advantages[:4], after.pg_advantages[:4])


@pytest.mark.parametrize("trailing", [(), (2,)], ids=["TB", "TBN"])
def test_from_logits_is_from_importance_weights_of_the_softmaxes(trailing):
    shape = (T, B, *trailing)
    generator = torch.Generator().manual_seed(17)
    behaviour, target = torch.randn(2, *shape, A, generator=generator, dtype=torch.float64)
    actions = torch.randint(A, shape, generator=generator)
    case = random_case(seed=18, shape=shape)
    chosen = torch.nn.functional.one_hot(actions, A).bool()
    case["log_rhos"] = (target.softmax(-1)[chosen] / behaviour.softmax(-1)[chosen]).log().view(shape)
    knobs = {"clip_rho_threshold": 1.3, "clip_pg_rho_threshold": 0.9, "clip_c_threshold": 1.1, "trace_lambda": 0.8}
    log_rhos = case.pop("log_rhos")
    results = vtrace.from_logits(behaviour, target, actions, **case, **knobs)
    expected = vtrace.from_importance_weights(log_rhos, **case, **knobs)
    for result, expectation in zip(results, expected, strict=True):
        assert_close(result, expectation, **TIGHT)
    default = vtrace.from_logits(behaviour, target, actions, **case)
    for result, expectation in zip(default, vtrace.from_importance_weights(log_rhos, **case), strict=True):
        assert_close(result, expectation, **TIGHT)


def test_results_carry_no_gradient():
    case = {name: x.requires_grad_() for name, x in random_case(seed=19).items()}
    assert not any(result.requires_grad for result in vtrace.from_importance_weights(**case))
    logits = torch.randn(2, T, B, A, requires_grad=True, dtype=torch.float64)
    del case["log_rhos"]
    results = vtrace.from_logits(logits[0], logits[1], torch.zeros(T, B, dtype=torch.int64), **case)
    assert not any(result.requires_grad for result in results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_have_the_dtype_and_shape_of_the_values(dtype):
    case = {name: x.to(dtype) for name, x in random_case(seed=20).items()}
    for result in vtrace.from_importance_weights(**case):
        assert result.dtype == dtype
        assert result.shape == (T, B)


@pytest.mark.parametrize(("name", "rank"), [("discounts", 2), ("rewards", 2), ("values", 2), ("bootstrap_value", 1)])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_rank_mismatch_names_both_ranks(name, rank, change):
    case = random_case(seed=21)
    case[name] = case[name][0] if change < 0 else case[name].unsqueeze(-1)
    with pytest.raises(ValueError, match=rf"{name} has rank {rank + change} .*log_rhos has rank 2 "):
        vtrace.from_importance_weights(**case)


def test_from_logits_names_both_ranks_of_a_mismatch():
    case = random_case(seed=22)
    del case["log_rhos"]
    logits, actions = torch.zeros(T, B, A), torch.zeros(T, B, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"target_policy_logits has rank 2 .*behaviour_policy_logits has rank 3 "):
        vtrace.from_logits(logits, logits[0], actions, **case)
    with pytest.raises(ValueError, match=r"actions has rank 3 .*behaviour_policy_logits has rank 3 "):
        vtrace.from_logits(logits, logits, actions.unsqueeze(-1), **case)
