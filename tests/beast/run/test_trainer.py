"""What a run accounts for, and saves whatever happens at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import rows

from beast.run import checkpoint
from beast.run.assemble import assemble
from beast.run.resolve import resolve_config
from beast.run.trainer import Trainer


def trainer(folder: Path, total_steps: int, state: dict[str, Any] | None = None) -> Trainer:
    flags = {"env": "Catch-v0", "num_actors": 4, "batch_size": 4, "num_actor_processes": 0, "total_steps": total_steps}
    return assemble(*resolve_config(flags), folder, state, live=False)


def test_restarts_and_skipped_updates_are_counted_over_all_resumes(tmp_path: Path) -> None:
    first = trainer(tmp_path, 400)
    first.workers.restarts, first.skipped.count = 3, 2
    assert first.run() == 0
    second = trainer(tmp_path, 800, checkpoint.load(checkpoint.saved(tmp_path)[0]))
    second.skipped.count += 1
    assert second.run() == 0
    assert [(row["restarts"], row["skipped_updates"]) for row in rows(tmp_path)] == [(3, 2), (3, 3)]


def test_workers_that_cannot_be_stopped_do_not_cost_the_checkpoint(tmp_path: Path, monkeypatch) -> None:
    run = trainer(tmp_path, 400)

    def stop(deadline: float) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(run.workers, "stop", stop)
    with pytest.raises(OSError, match="no more processes"):
        run.run()
    assert checkpoint.load(checkpoint.saved(tmp_path)[0])["learner"]["steps"] == 400
