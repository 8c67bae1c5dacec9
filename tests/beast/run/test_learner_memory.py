"""What the deep network's learner needs of a plain computer."""

from __future__ import annotations

import contextlib
import signal

import psutil
import pytest
from conftest import rows

MOST = 1.5e9


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_the_resnet_trains_within_one_and_a_half_gigabytes(start, tmp_path, precision):
    flags = ["--env", "PongNoFrameskip-v4", "--model", "impala_resnet", "--device", "cpu", "--precision", precision]
    program = start(*flags, "--report_every", 1, "--xpid", "run")
    most = 0
    while program.process.poll() is None:
        pss = 0
        for process in program.family():
            with contextlib.suppress(psutil.Error):
                pss += process.memory_full_info().pss
        most = max(most, pss)
        if (log := rows(tmp_path / "runs" / "run")) and log[-1]["updates"] >= 4:
            program.send(signal.SIGINT)
            program.finish()
    assert program.code == 130, program.story()
    assert 0.4e9 < most < MOST
