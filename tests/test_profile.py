"""`profile` runs the real trainer and its parts, for both beasts, and its figures fit together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("trainer", ["monobeast", "polybeast"])
def test_profile_prints_and_writes_speed_parts_and_bound(trainer: str, tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    flags = ["--env", "Catch-v0", "--num_actors", "8", "--trainer", trainer, "--seconds", "2", "--json", str(file)]
    done = subprocess.run(
        [sys.executable, "run.py", "profile", *flags], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "efficiency" in done.stdout
    figures = json.loads(file.read_text())
    whole, alone = figures["whole"], figures["alone_us"]
    assert whole["sps"] > 0
    assert set(alone) == {"environment", "inference", "learner"}
    assert all(value > 0 for value in alone.values())
    expected = figures["machine"]["cores"] / sum(alone.values()) * 1e6
    assert figures["bound_sps"] == pytest.approx(expected)
    assert figures["efficiency"] == pytest.approx(whole["sps"] / expected)
    assert whole["worker_us"]["environment"] > 0
    assert bool(whole["inference"]) == (trainer == "polybeast")
