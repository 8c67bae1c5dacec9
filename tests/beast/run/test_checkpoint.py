"""Checkpoint files: whole or found out, the newest that is whole, and which are kept."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from beast.core.errors import CheckpointError
from beast.run import checkpoint, finding, trust

STATE: dict[str, Any] = {
    "format": checkpoint.FORMAT,
    "config": {"env": "Catch-v0", "seed": 7},
    "learner": {
        "model": {"weight": torch.arange(600.0).view(20, 30), "bias": torch.ones(3)},
        "algorithm": {"module": {}, "state": {}},
        "optimiser": {"name": "rmsprop", "moments": {"mean_square": torch.ones(603)}},
        "steps": 10,
        "updates": 1,
    },
    "reports": {"games": [(1.0, 9)], "env": {"caught": [1.0]}, "episodes": 1, "elapsed": 0.5, "history": [(8, 1.0)]},
    "torch_rng": torch.get_rng_state(),
    "resumes": 0,
    "restarts": 0,
    "skipped_updates": 0,
}


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


def signed(state: dict[str, Any]) -> dict[str, Any]:
    """As it is saved."""
    return state | {"signature": trust.sign(state["config"])}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder without any checkpoint."""
    (tmp_path / "runs" / "r").mkdir(parents=True)
    (tmp_path / "runs" / "r" / "config.json").write_text("{}")
    return tmp_path / "runs" / "r"


def write(run: Path, *steps: int, keep: int = 0) -> list[Path]:
    return [checkpoint.save(run, STATE | {"learner": STATE["learner"] | {"steps": step}}, step, keep) for step in steps]


def newest(run: Path) -> tuple[int, list[str]]:
    """The step that a run goes on from, and the lines that were told."""
    lines: list[str] = []
    path, state = finding.load_newest(str(run), "", lines.append)
    assert path.name == f"step_{state['learner']['steps']:012d}.pt"
    return state["learner"]["steps"], lines


# -- damage -----------------------------------------------------------------------------------------------------------


def test_what_is_saved_comes_back(run):
    assert same(checkpoint.load(checkpoint.save(run, STATE, 10, keep=3)), signed(STATE))


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_bit_anywhere_is_found_or_harmless(run, seed):
    """Harmless: padding, times of day; PyTorch alone would hand over other weights."""
    path = checkpoint.save(run, STATE, 10, keep=3)
    whole, rng, found = path.read_bytes(), random.Random(seed), 0
    for _ in range(250):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            state = checkpoint.load(path)
        except CheckpointError:
            found += 1
        else:
            assert same(state, signed(STATE))
    assert found > 100


def test_every_byte_of_the_weights_is_watched(run):
    path = checkpoint.save(run, STATE, 10, keep=3)
    whole = path.read_bytes()
    start = whole.index(STATE["learner"]["model"]["weight"].numpy().tobytes())
    for at in range(start, start + 2400, 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert not same(torch.load(path, weights_only=True), signed(STATE))  # why `load` must look
        with pytest.raises(CheckpointError, match=r"damaged.*checksum"):
            checkpoint.load(path)


def test_a_file_cut_off_anywhere_is_found(run):
    path = checkpoint.save(run, STATE, 10, keep=3)
    whole, rng = path.read_bytes(), random.Random(0)
    for length in [0, 1, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(100))]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.load(path)


# -- the newest -------------------------------------------------------------------------------------------------------


def test_the_one_before_a_damaged_one_is_taken(run):
    files = write(run, 100, 200, 300, 400)
    assert newest(run) == (400, [])
    files[3].write_bytes(b"")
    step, (line,) = newest(run)
    assert step == 300
    assert str(files[3]) in line
    assert "damaged" in line
    assert line.endswith("taking step_000000000300.pt instead")
    files[2].write_bytes(files[2].read_bytes()[:-7])
    step, lines = newest(run)
    assert (step, len(lines)) == (200, 2)


def test_without_a_whole_one_the_newest_is_named(run):
    for file in write(run, 100, 200, 300):
        file.write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"step_000000000300.pt is damaged .*; so are the 2 before it"):
        newest(run)


def test_a_file_is_taken_by_its_word(run):
    files = write(run, 100, 200)
    lines: list[str] = []
    assert finding.load_newest(str(files[0]), "", lines.append)[1]["learner"]["steps"] == 100
    files[1].write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"take another one of .*: step_000000000100.pt"):
        finding.load_newest(str(files[1]), "", lines.append)
    assert not lines


@pytest.mark.parametrize("link", ["there", "gone", "dangling"])
def test_newest_is_what_was_written_last_whatever_its_number(run, link):
    write(run, 100, 300, 200)
    latest = run / "checkpoints" / "latest.pt"
    assert latest.resolve().name == "step_000000000200.pt"
    if link != "there":
        latest.unlink()
    if link == "dangling":
        latest.symlink_to("step_000000000999.pt")
    assert newest(run) == (200, [])


# -- which are kept ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clock", ["right", "ahead"])
def test_a_damaged_newer_one_does_not_outlive_those_after_it(run, clock):
    """By step it is the newest for ever, by time too if the clock was wrong when it was written."""
    damaged = write(run, 100, 900)[1]
    damaged.write_bytes(b"")
    if clock == "ahead":
        os.utime(damaged, (2e9, 2e9))
    assert newest(run)[0] == 100
    write(run, 150, keep=2)
    assert newest(run) == (150, [])
    write(run, 200, keep=2)
    assert newest(run) == (200, [])
    assert (run / "checkpoints" / "step_000000000200.pt").exists()
    assert not damaged.exists()


def test_one_is_kept_if_one_is_asked_for(run):
    write(run, 300, 100, 200, keep=1)
    assert [file.name for file in checkpoint.saved(run)] == ["step_000000000200.pt"]
