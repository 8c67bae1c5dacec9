"""The newest policy in shared memory: versions, and that no read is ever torn."""

from __future__ import annotations

import multiprocessing
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from beast.core.flat import FlatModel
from beast.store.weights import Weights

SIZE = 1000
FORKSERVER = multiprocessing.get_context("forkserver")  # as the system's own workers


def constant(version, size=SIZE, dtype=torch.float32):
    return torch.full((size,), float(version), dtype=dtype)


def read(weights, size=SIZE, dtype=torch.float32):
    """(version, the one number that all of the vector holds)."""
    out = torch.full((size,), -7.0, dtype=dtype)
    version = weights.read(out)
    assert (out == out[0]).all(), f"torn: version {version} holds {out.unique().tolist()}"
    return version, out[0].item()


def test_there_is_nothing_to_read_before_the_first_version():
    weights = Weights(SIZE, torch.float32)
    assert weights.version == -1
    with pytest.raises(RuntimeError, match="no policy has been published yet"):
        weights.read(torch.empty(SIZE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_read_gives_the_newest_version_and_its_number(dtype):
    weights = Weights(SIZE, dtype)
    for version in (0, 1, 2, 3, 7, 8, 100):  # also such as skip some
        weights.publish(constant(version, dtype=dtype), version)
        assert weights.version == version
        assert read(weights, dtype=dtype) == (version, version)
        assert read(weights, dtype=dtype) == (version, version)


def test_a_run_may_resume_at_any_version():
    weights = Weights(SIZE, torch.float32)
    weights.publish(constant(1), version=123_456_789_012)
    assert read(weights) == (123_456_789_012, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_read_is_exact_to_the_bit_and_a_copy(dtype):
    weights = Weights(SIZE, dtype)
    published = torch.randn(SIZE, generator=torch.Generator().manual_seed(0)).to(dtype)
    published[:3] = torch.tensor([3e38, 1e-40, -0.0])
    kept = published.clone()
    weights.publish(published, 0)
    published.zero_()  # the learner goes on in its own memory
    out = torch.empty(SIZE, dtype=dtype)
    weights.read(out)
    bits = torch.int16 if dtype == torch.bfloat16 else torch.int32
    assert torch.equal(out.view(bits), kept.view(bits))
    out.fill_(5.0)
    again = torch.empty(SIZE, dtype=dtype)
    weights.read(again)
    assert torch.equal(again.view(bits), kept.view(bits))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_policy_that_is_not_finite_is_never_read(dtype, bad):
    weights = Weights(SIZE, dtype)
    weights.publish(constant(4, dtype=dtype), 4)
    for version in (5, 6):
        broken = constant(version, dtype=dtype)
        broken[SIZE // 2] = bad
        with pytest.raises(FloatingPointError, match=f"weights of update {version} .*--learning_rate"):
            weights.publish(broken, version)
        assert read(weights, dtype=dtype) == (4, 4.0)
    weights.publish(constant(7, dtype=dtype), 7)
    assert read(weights, dtype=dtype) == (7, 7.0)


# -- torn reads -------------------------------------------------------------------------------------------------------


class SlowCopy:
    """A destination whose copy can be interrupted half-way, at each attempt by the next of `interruptions`."""

    def __init__(self, out, *interruptions):
        self.out, self.interruptions = out, list(interruptions)

    def copy_(self, source):
        half = len(source) // 2
        self.out[:half] = source[:half]
        if self.interruptions:
            self.interruptions.pop(0)()
        self.out[half:] = source[half:]


def publishing(weights, *versions):
    def publish():
        for version in versions:
            weights.publish(constant(version), version, constant(version))

    return publish


@pytest.mark.parametrize(
    ("interruptions", "result"),
    [
        ([], 4),
        ([(5,)], 4),  # goes into the other copy: the read is whole
        ([(5, 6)], 6),  # overwrites the copy being read: read again
        ([(5, 6, 7)], 7),
        ([(5, 6), (7,)], 6),
        ([(5, 6), (7, 8), (9, 10)], 10),
        ([(6,)], 4),  # skips a version: which copy it goes into depends on how many were published, not on that
        ([(6, 8)], 8),  # as with algorithms that make two updates of each batch
        ([(6, 8, 10)], 10),
        ([(6, 8), (10,)], 8),
        ([(6, 8), (10, 12), (14, 16)], 16),
        ([(7, 100)], 100),
        ([(4,)], 4),  # the same version twice is two publications
        ([(4, 4)], 4),
    ],
    ids=str,
)
@pytest.mark.parametrize("field", ["parameters", "statistics"])
def test_a_read_that_a_learner_publishes_into_is_whole_or_made_again(interruptions, result, field):
    weights = Weights(SIZE, torch.float32, num_statistics=SIZE)
    publishing(weights, 3, 4)()
    out = {"parameters": torch.empty(SIZE), "statistics": torch.empty(SIZE)}
    slow = SlowCopy(out[field], *(publishing(weights, *versions) for versions in interruptions))
    assert weights.read(**(out | {field: slow})) == result
    assert slow.interruptions == []  # all of them happened
    for vector in out.values():
        assert torch.equal(vector, constant(result))


def test_a_publish_that_never_ended_leaves_the_version_before_it():
    weights = Weights(SIZE, torch.float32)
    for version in (0, 1):
        weights.publish(constant(version), version)
    with pytest.raises(RuntimeError):
        weights.publish(torch.zeros(SIZE - 1), 2)  # fails between the beginning and the announcement
    assert read(weights) == (1, 1.0)
    weights.publish(constant(2), 2)
    assert read(weights) == (2, 2.0)


def publish_until(weights, size, stop, pause=2e-4):
    """A learner that publishes two versions at once, as fast as readers can bear."""
    version = 0
    while not stop():
        weights.publish(constant(version + 1, size), version + 1)
        weights.publish(constant(version + 2, size), version + 2)
        version += 2
        time.sleep(pause)


def publish_in_child(weights, size, connection):
    torch.set_num_threads(1)
    publish_until(weights, size, connection.poll)  # true as well when the parent is gone


def check_many_reads(weights, size, reads=300, versions=10):
    """At least `reads` reads, until `versions` different ones were seen; each whole, and no older than announced."""
    out, last, seen, deadline = torch.empty(size), 0, set(), time.monotonic() + 200  # on a very busy machine
    while reads > 0 or len(seen) < versions:
        assert time.monotonic() < deadline, f"{len(seen)} versions seen, {reads} reads to go"
        before = weights.version
        version = weights.read(out)
        assert version >= max(before, last)
        assert (out == version).all(), f"torn: version {version} holds {out.unique().tolist()}"
        last, reads = version, reads - 1
        seen.add(version)


def test_no_read_is_torn_while_a_thread_publishes():
    size = 200_000
    weights = Weights(size, torch.float32)
    weights.publish(constant(0, size), 0)
    stop = threading.Event()
    writer = threading.Thread(target=publish_until, args=(weights, size, stop.is_set))
    writer.start()
    try:
        check_many_reads(weights, size)
    finally:
        stop.set()
        writer.join()


def test_no_read_is_torn_while_another_process_publishes():
    size = 200_000
    weights = Weights(size, torch.float32)
    weights.publish(constant(0, size), 0)
    receiver, sender = FORKSERVER.Pipe(duplex=False)
    writer = FORKSERVER.Process(target=publish_in_child, args=(weights, size, receiver), daemon=True)
    writer.start()
    try:
        check_many_reads(weights, size)
        sender.send("stop")
        writer.join(60)
        assert writer.exitcode == 0
    finally:
        writer.kill()
        writer.join()
        sender.close()
        receiver.close()


# -- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_travel_with_their_parameters_in_float32(dtype):
    weights = Weights(SIZE, dtype, num_statistics=3)
    for version in (0, 2, 5):
        published = torch.tensor([version + 1e-3, 1e9 + version, -0.0])  # nothing that bfloat16 could hold
        weights.publish(constant(version, dtype=dtype), version, published)
        out, statistics = torch.empty(SIZE, dtype=dtype), torch.empty(3)
        assert weights.read(out, statistics) == version
        assert torch.equal(out, constant(version, dtype=dtype))
        assert torch.equal(statistics.view(torch.int32), published.view(torch.int32))


def test_statistics_that_are_not_finite_are_never_read():
    weights = Weights(SIZE, torch.float32, num_statistics=2)
    weights.publish(constant(4), 4, torch.ones(2))
    with pytest.raises(FloatingPointError, match="weights of update 5 "):
        weights.publish(constant(5), 5, torch.tensor([1.0, torch.nan]))
    out, statistics = torch.empty(SIZE), torch.empty(2)
    assert weights.read(out, statistics) == 4
    assert torch.equal(out, constant(4))
    assert torch.equal(statistics, torch.ones(2))


def test_weights_are_made_as_large_as_a_models_vectors():
    flat = FlatModel(WithBuffers(), dtype=torch.bfloat16)
    weights = Weights.like(flat)
    weights.publish(flat.parameters, 1, flat.statistics)
    other = FlatModel(WithBuffers(), dtype=torch.bfloat16)
    assert weights.read(other.parameters, other.statistics) == 1
    assert torch.equal(other.parameters, flat.parameters)
    assert torch.equal(other.statistics, flat.statistics)


# -- the flat vectors -------------------------------------------------------------------------------------------------


class WithBuffers(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)  # two floating-point buffers, and an integer one


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_and_buffers_become_views_of_one_vector_each(dtype):
    model = WithBuffers()
    nn.init.normal_(model.norm.running_mean)
    parameters = torch.cat([p.detach().clone().reshape(-1) for p in model.parameters()])
    buffers = torch.cat([model.norm.running_mean, model.norm.running_var])
    flat = FlatModel(model, dtype=dtype)
    assert torch.equal(flat.parameters, parameters.to(dtype))
    assert torch.equal(flat.statistics, buffers)  # float32, whatever the model computes in
    flat.parameters.copy_(torch.arange(12.0))
    flat.statistics.copy_(torch.arange(12.0, 16.0))
    assert model.linear.weight.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert model.norm.running_mean.tolist() == [12, 13]
    assert model.norm.running_var.tolist() == [14, 15]
    assert model.norm.num_batches_tracked == 0
    with torch.no_grad():
        model.linear.bias.fill_(-1)
        model.norm.running_mean.fill_(-2)
    assert flat.parameters[6:8].tolist() == [-1, -1]
    assert flat.statistics.tolist() == [-2, -2, 14, 15]


def test_parts_of_another_vector_are_named_and_shaped_as_the_models():
    flat = FlatModel(WithBuffers())
    parameters, statistics = torch.arange(12.0), torch.arange(4.0)
    named = flat.parameter_views(parameters)
    assert named.keys() == {"linear.weight", "linear.bias", "norm.weight", "norm.bias"}
    assert named["linear.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    named["norm.bias"].fill_(-1)
    assert parameters[10:].tolist() == [-1, -1]
    assert {name: view.tolist() for name, view in flat.statistic_views(statistics).items()} == {
        "norm.running_mean": [0, 1],
        "norm.running_var": [2, 3],
    }


def test_flattening_leaves_what_the_model_computes_unchanged():
    model = WithBuffers().eval()
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    before = model.norm(model.linear(x))
    FlatModel(model)
    assert torch.equal(model.norm(model.linear(x)), before)


def test_parameters_of_two_dtypes_are_refused():
    model = WithBuffers()
    model.linear.to(torch.bfloat16)
    with pytest.raises(ValueError, match="one dtype"):
        FlatModel(model)


def test_a_vector_travels_from_model_to_model():
    learner, actor = (nn.Linear(4, 3) for _ in range(2))
    flat, mine = FlatModel(learner).parameters, FlatModel(actor).parameters
    weights = Weights(len(flat), torch.float32)
    weights.publish(flat, 5)
    assert weights.read(mine) == 5
    assert torch.equal(actor.weight, learner.weight)
    assert np.array_equal(actor.bias.detach().numpy(), learner.bias.detach().numpy())
