"""What the deep network's learner needs of a plain computer."""

from __future__ import annotations

import contextlib
import signal

import psutil
import pytest
from conftest import rows, wait_until

MOST = 1.5e9
PAPERS = ["--env", "PongNoFrameskip-v4", "--model", "impala_resnet", "--device", "cpu", "--preset", "paper"]
LONG = 900.0  # seconds; a quiet machine needs twenty


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_the_resnet_trains_within_one_and_a_half_gigabytes(start, tmp_path, precision):
    flags = [*PAPERS, "--precision", precision]
    program = start(*flags, "--report_every", 1, "--xpid", "run")
    most = 0

    def has_learned():
        nonlocal most
        pss = 0
        for process in program.family():
            with contextlib.suppress(psutil.Error):
                pss += process.memory_full_info().pss
        most = max(most, pss)
        log = rows(tmp_path / "runs" / "run")
        return program.process.poll() is not None or (log and log[-1]["updates"] >= 4)

    wait_until(has_learned, "four updates", LONG)
    program.send(signal.SIGINT)
    program.finish()
    assert program.code == 130, program.story()
    assert 0.4e9 < most < MOST
