"""Late weights: actors have exactly the version that is so many updates old, everybody else the newest."""

from __future__ import annotations

import pytest
import torch

from beast.store.late import LateWeights
from beast.store.weights import Weights

SIZE, STATISTICS = 5, 2


class Pair:
    """Late weights whose version u is all u, with statistics that are all u + 1/2; no numbers are wasted on names."""

    def __init__(self, lag: int, dtype: torch.dtype = torch.float32, statistics: int = STATISTICS) -> None:
        self.acting = Weights(SIZE, dtype, statistics)
        self.newest = LateWeights(SIZE, dtype, statistics, self.acting, lag)
        self.dtype, self.statistics = dtype, statistics

    def publish(self, version: int) -> None:
        statistics = torch.full((self.statistics,), version + 0.5) if self.statistics else None
        self.newest.publish(torch.full((SIZE,), version, dtype=self.dtype), version, statistics)

    def read(self, weights: Weights) -> int:
        parameters, statistics = torch.empty(SIZE, dtype=self.dtype), torch.empty(self.statistics)
        version = weights.read(parameters, statistics)
        assert (parameters == version).all()
        assert (statistics == version + 0.5).all()
        return version


@pytest.mark.parametrize("lag", [1, 2, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("statistics", [0, STATISTICS])
def test_after_each_update_actors_have_the_version_that_is_so_much_older(lag, dtype, statistics):
    pair = Pair(lag, dtype, statistics)
    for update in range(30):
        pair.publish(update)
        assert pair.read(pair.acting) == max(0, update - lag)
        assert pair.read(pair.newest) == update
    assert pair.newest.ring_bytes == lag * (SIZE * dtype.itemsize + 4 * statistics)


@pytest.mark.parametrize("passes", [2, 3])
def test_of_several_updates_a_unit_it_is_the_newest_that_is_old_enough(passes):
    pair, lag = Pair(4), 4
    for update in range(0, 60, passes):
        pair.publish(update)
        assert pair.read(pair.acting) == max(0, (update - lag) // passes * passes)


@pytest.mark.parametrize("updates", [1, 2, 3, 10])
@pytest.mark.parametrize("other", [1, 2, 3, 6])
def test_a_resumed_run_goes_on_with_the_same_versions_or_with_those_of_its_own_lag(updates, other):
    before = Pair(3)
    for update in range(updates + 1):
        before.publish(update)
    after = Pair(other)
    after.newest.load_state_dict(before.newest.state_dict())
    oldest = max(0, updates - 3)
    for update in range(updates, updates + 15):
        after.publish(update)
        assert after.read(after.acting) == max(oldest, update - other)


def test_a_run_that_goes_on_without_old_weights_begins_with_the_newest():
    pair = Pair(3)
    for update in range(100, 110):
        pair.publish(update)
        assert pair.read(pair.acting) == max(100, update - 3)


def test_weights_that_are_not_finite_reach_nobody_even_if_their_time_is_far():
    pair = Pair(3)
    pair.publish(0)
    with pytest.raises(FloatingPointError, match="update 1 are infinite or NaN"):
        pair.newest.publish(torch.full((SIZE,), torch.nan), 1, torch.zeros(STATISTICS))
    assert pair.read(pair.newest) == 0


def test_old_weights_of_another_model_are_refused():
    pair, other = Pair(3, statistics=1), Pair(3)
    pair.publish(0)
    with pytest.raises(RuntimeError, match="another model"):
        other.newest.load_state_dict(pair.newest.state_dict())
