"""Environments whose memory grows: their process is replaced between unrolls."""

from __future__ import annotations

import re
import signal

import pytest
from conftest import assert_one_line, rows, wait_until

LEAK = """
import numpy as np
from beast.envs.catch import Catch

class Leaking(Catch):
    def __init__(self, at_once=0):
        super().__init__()
        self.kept = [np.ones(at_once * 131072)]

    def step(self, action):
        self.kept.append(np.ones(1 << 16))  # half a megabyte
        return super().step(action)
"""
FLAGS = [
    "--num_actors", 2, "--num_actor_processes", 1, "--batch_size", 2, "--report_every", 0.2, "--xpid", "r",
    "--total_steps", 10**9, "--max_restarts", 1,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["monobeast", "polybeast", "a3c"])
def test_a_process_that_holds_too_much_is_replaced_between_unrolls(start, tmp_path, trainer):
    (tmp_path / "leaking.py").write_text(LEAK)
    program = start("--env", "leaking:Leaking", *FLAGS, "--trainer", trainer, "--max_actor_memory", 700)
    told = r"(actor process|env worker|a3c worker) 0 \(pid (\d+)\) held [\d,]+ MB .* was replaced between unrolls"
    wait_until(lambda: len(re.findall(told, program.out)) > 2 or program.process.poll() is not None, "replacements")
    program.send(signal.SIGINT)
    program.finish()
    assert program.code == 130, program.story()
    assert not program.err
    pids = [pid for _, pid in re.findall(told, program.out)]
    assert len(pids) == len(set(pids)) > 2
    assert "restarting it" not in program.out
    assert rows(tmp_path / "runs" / "r")[-1]["restarts"] == 0


def test_too_little_for_a_first_step_ends_the_run(start, tmp_path):
    (tmp_path / "leaking.py").write_text(
        LEAK.replace("def step(self, action):", "def step(self, action):\n        import time; time.sleep(5.0)")
    )
    program = start("--env", "leaking:Leaking", *FLAGS, "--max_actor_memory", 1).finish()
    assert program.code == 1, program.story()
    assert_one_line(program, "before its first step", "--max_actor_memory 1")
