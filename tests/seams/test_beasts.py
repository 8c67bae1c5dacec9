"""A third beast is one file, and nothing in `beast/` knows it."""

from __future__ import annotations

import pytest

from beast.run import checkpoint
from beast.run.assemble import assemble
from beast.run.resolve import resolve_config
from beast.tools.evaluation import from_checkpoint


def train(folder, **flags):
    config, task = resolve_config({"env": "Catch-v0", "report_every": 1000} | flags)
    assert assemble(config, task, folder, live=False).run() == 0
    (path,) = checkpoint.saved(folder)
    return path, checkpoint.load(path)


@pytest.mark.parametrize("processes", [0, 1], ids=["serial", "process"])
def test_what_random_actors_do_teaches_a_policy_to_catch(tmp_path, processes):
    path, state = train(
        tmp_path, trainer="seams.toy_beast", num_actor_processes=processes, num_actors=16, total_steps=200_000, entropy_cost=0.0
    )  # fmt: skip
    result = from_checkpoint(path, state, episodes=100, seed=1, deterministic=True)
    assert result["mean"] >= 0.8
