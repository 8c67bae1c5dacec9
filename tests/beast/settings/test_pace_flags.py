"""The flags of pace and policy lag: what they imply, and one line for what does not go with them."""

from __future__ import annotations

import pytest
from conftest import assert_one_line

from beast.core.errors import ConfigError
from beast.run import memory
from beast.run.resolve import resolve_config
from beast.settings.config import Config

CATCH = {"env": "Catch-v0", "num_actor_processes": 1}
POLYBEAST = ["--trainer", "polybeast"]


@pytest.mark.parametrize(
    ("flags", "pace", "num_actors"),
    [
        ({}, "free", 16),
        ({"pace": "unroll"}, "unroll", 16),  # the preset's actors
        ({"pace": "unroll", "batch_size": 16}, "unroll", 16),
        ({"pace": "unroll", "num_actors": 5}, "unroll", 5),
        ({"pace": "step", "trainer": "polybeast"}, "step", 16),
        ({"policy_lag": 0}, "unroll", 16),
        ({"policy_lag": 7, "num_actors": 3}, "unroll", 3),
    ],
)
def test_a_batch_is_a_round_and_the_store_holds_no_more(flags, pace, num_actors):
    config, _ = resolve_config(CATCH | flags)
    assert config.pace.pace == pace
    assert config.actors.num_actors == num_actors
    free = pace == "free"
    assert config.learner.batch_size == (8 if free else num_actors)
    assert config.num_buffers == (40 if free else num_actors)
    assert Config.from_flat(config.flat()) == config
    if not free:
        assert config.replace(num_actors=9).learner.batch_size == 9


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--pace", "slow"], ["--pace must be one of free, unroll, step"]),
        (["--pace", "step"], ["--trainer monobeast has no --pace step: use --trainer polybeast or --pace unroll"]),
        (["--pace", "unroll", "--batch_size", 8], ["--batch_size 8", "leave it out, or give --batch_size 16"]),
        (["--pace", "step", *POLYBEAST, "--batch_size", 8], ["--batch_size 8", "--batch_size 16"]),
        (["--pace", "unroll", "--num_buffers", 15], ["num_actors (16) = 16 are needed"]),
        (["--pace", "step", *POLYBEAST, "--inference_max_batch", 4], ["--inference_max_batch 4", "--pace unroll"]),
        (["--pace", "step", *POLYBEAST, "--inference_min_batch", 4], ["--inference_min_batch 4"]),
        (["--pace", "step", *POLYBEAST, "--inference_timeout_ms", 1], ["--inference_timeout_ms 1"]),
        (["--policy_lag", -1], ["--policy_lag must be at least 0"]),
        (["--policy_lag", 2, "--pace", "free"], ["--policy_lag 2 goes with --pace unroll only, not with free"]),
        (["--policy_lag", 2, "--pace", "step", *POLYBEAST], ["not with step", "leave --policy_lag out"]),
        (["--policy_lag", 2, "--batch_size", 4], ["--batch_size 4"]),
        (["--policy_lag", 10**12], ["GB of memory are needed", "old weights", "lower --policy_lag 1000000000000"]),
    ],
)
def test_what_does_not_go_with_it_is_refused_in_one_line(call, tmp_path, flags, words):
    assert_one_line(call("--env", "Catch-v0", "--num_actor_processes", 1, *flags), *words)
    assert not (tmp_path / "runs").exists()


def test_a_beast_of_ones_own_names_the_paces_that_it_knows(own_module, tmp_path):
    (tmp_path / "hasty").mkdir()
    own_module(
        "hasty/beast",
        "PACES = ('free',)\ndef crew(task, config, spec, weights): ...\ndef acting_device(device): return device\n",
    )
    beast = "hasty.beast"
    resolve_config(CATCH | {"trainer": beast})
    with pytest.raises(
        ConfigError, match="--pace unroll: use --trainer monobeast or --trainer polybeast or --pace free"
    ):
        resolve_config(CATCH | {"trainer": beast, "pace": "unroll"})


def test_memory_of_old_weights_is_their_number_times_what_the_model_acts_with():
    need = {lag: memory.needed(*resolve_config(CATCH | {"policy_lag": lag})) for lag in (0, 1, 10)}
    assert need[0].old_weights == 0
    assert need[10].old_weights == 10 * need[1].old_weights
    _, task = resolve_config(CATCH)
    assert need[1].old_weights == 4 * sum(p.numel() for p in task.model.build().parameters())
