"""Skipped updates: what is said of them, what is kept, and when it is too much."""

from __future__ import annotations

import pytest
import torch
from test_learner import random_batch

from beast.core.finite import all_finite, spoil
from beast.run.skipped_updates import KEPT, SkippedUpdates

GOOD = {"finite": torch.tensor(True), "total_loss": torch.tensor(1.0)}
BAD = {"finite": torch.tensor(False), "total_loss": torch.tensor(1.0)}


@pytest.fixture
def told():
    return []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_number_among_many_is_found(dtype, value):
    numbers = torch.randn(3, 1000).to(dtype)
    assert all_finite([numbers, torch.zeros(0), torch.tensor([3], dtype=torch.uint8)])
    numbers[2, 567] = value
    assert not all_finite([torch.zeros(2), numbers])
    assert all_finite([torch.full((4,), torch.finfo(dtype).max, dtype=dtype)])  # large is not infinite


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_number_is_spoilt_by_any_that_is_not_finite_and_by_no_other(dtype, value):
    numbers = torch.randn(3, 1000).to(dtype)
    large = torch.full((4,), torch.finfo(torch.float32 if dtype == torch.float64 else dtype).max, dtype=dtype)
    number = torch.tensor([0.1])
    spoil(number, [numbers, large, -large, torch.tensor(2.0), torch.zeros(0), torch.tensor([3], dtype=torch.uint8)])
    assert torch.equal(number, torch.tensor([0.1]))
    numbers[2, 567] = value
    for bad in (numbers, torch.tensor(value)):
        spoilt = number.clone()
        spoil(spoilt, [large, bad])
        assert spoilt.isnan()


@pytest.mark.parametrize(("field", "remedy"), [("observation", "environment"), ("reward", "step()"),
                                               ("loss", "--learning_rate"), ("gradient", "--learning_rate")])  # fmt: skip
def test_the_first_field_that_is_wrong_is_named_and_its_batch_kept(tmp_path, told, field, remedy):
    batch, metrics = random_batch(1), dict(BAD)
    if field == "observation":
        batch.observation[0, 0, 0] = torch.nan
    if field in ("observation", "reward"):
        batch.reward[0, 0] = torch.inf
    if field != "gradient":
        metrics["total_loss"] = torch.tensor(torch.nan)
    account = SkippedUpdates(tmp_path, 2, told.append)
    assert not account.record(7, batch, metrics)
    path = tmp_path / "bad_batches" / "update_7.pt"
    assert told == [f"update 7 skipped: NaN or infinity in the {field}; its batch is {path}"]
    kept = torch.load(path, weights_only=True)
    assert (kept["update"], kept["field"]) == (7, field)
    assert kept["batch"].keys() == set(batch._fields)
    assert torch.equal(kept["batch"]["action"], batch.action)
    assert torch.equal(kept["batch"]["observation"].isnan(), batch.observation.isnan())
    with pytest.raises(FloatingPointError, match=rf"2 updates in a row .* update 8 for .* the {field}: .*") as error:
        account.record(8, batch, metrics)
    assert remedy in str(error.value)


def test_only_those_in_a_row_end_a_run_and_few_batches_are_kept(tmp_path, told):
    account = SkippedUpdates(tmp_path, 2, told.append)
    for update in range(1, 21):
        assert account.record(update, random_batch(), GOOD if update % 2 else BAD) == bool(update % 2)
    assert account.count == len(told) == 10
    assert len(list((tmp_path / "bad_batches").iterdir())) == KEPT
    assert told[-1].endswith(f"bad_batches holds {KEPT} batches already")


def test_a_batch_that_cannot_be_written_is_told_and_no_more(tmp_path, told):
    (tmp_path / "bad_batches").write_text("in the way")
    assert not SkippedUpdates(tmp_path, 2, told.append).record(1, random_batch(), BAD)
    assert "could not be written" in told[0]
    assert not SkippedUpdates(None, 2, told.append).record(1, random_batch(), BAD)
    assert told[1].endswith("its batch is not kept")
