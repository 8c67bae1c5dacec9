"""Processes that are killed, stopped, hang or raise: named with the cause, replaced, and nothing else happens to the run."""

from __future__ import annotations

import json
import random
import re
import signal
import time

import psutil
import pytest
from conftest import Program, assert_own_traceback, rows, wait_until

from beast.run import checkpoint, finding

SMALL = ["--num_actors", 4, "--batch_size", 4, "--report_every", 0.2, "--total_steps", 10**9, "--xpid", "r"]
POLYBEAST = ["--trainer", "polybeast"]
BEASTS = {"monobeast": [], "polybeast": POLYBEAST, "polybeast-process": [*POLYBEAST, "--inference", "process"]}
NOTICED = 2.0  # seconds, at best: tests run on full machines
ON_A_FULL_MACHINE = 20.0
TIMEOUT = 8  # of a hang


def processes(program: Program, kind: str) -> list[psutil.Process]:
    """Those that work on the unrolls, or the one with the forwards."""
    inference = [process for process in program.workers() if process.name().startswith("inference")]
    return inference if kind == "inference" else [p for p in program.workers() if p not in inference]


def break_one(program: Program, kind: str, how: str, chance: random.Random) -> tuple[str, float]:
    """Do it to one of them; returns what is told of it, and after how many seconds."""
    victim = chance.choice(wait_until(lambda: processes(program, kind), f"a process of kind {kind}"))
    began = time.monotonic()
    if how == "while it waits":
        parent = psutil.Process(program.process.pid)
        parent.suspend()  # so that no slot is freed, and every worker comes to wait for one
        time.sleep(1.0)
        victim.kill()
        parent.resume()
    else:
        victim.send_signal(getattr(signal, how))
    told = wait_until(lambda: re.search(rf".*\(pid {victim.pid}\).*\n", program.out), f"a word of {how}")[0].strip()
    seconds = time.monotonic() - began
    assert seconds < ON_A_FULL_MACHINE + (TIMEOUT if how == "SIGSTOP" else 0)
    return told, seconds


CAUSES = {
    "SIGKILL": r"was killed by SIGKILL \(out of memory\?\)",
    "SIGTERM": "was killed by SIGTERM",
    "SIGSTOP": r"gave no sign of life for \d+ s",
    "while it waits": r"was killed by SIGKILL \(out of memory\?\)",
}


@pytest.mark.parametrize("beast", BEASTS)
def test_a_run_outlives_whatever_happens_to_its_processes(start, tmp_path, beast):
    chance = random.Random(beast)
    faults = [("worker", how) for how in (*CAUSES, "SIGKILL")]
    if beast == "polybeast-process":
        faults += [("inference", "SIGKILL"), ("inference", "SIGSTOP")]
    chance.shuffle(faults)
    program = start(
        "--env", "Catch-v0", "--use_lstm", *SMALL, *BEASTS[beast], "--num_actor_processes", 2,
        "--max_restarts", 100, "--actor_timeout", TIMEOUT,
    )  # fmt: skip
    run = tmp_path / "runs" / "r"
    program.wait_for("loss total")
    deaths: list[float] = []
    for kind, how in faults:
        time.sleep(chance.uniform(0.0, 0.3))
        told, seconds = break_one(program, kind, how, chance)
        deaths += [seconds] if how in ("SIGKILL", "SIGTERM") else []
        name = "inference process" if kind == "inference" else r"(actor process|env worker) [01]"
        pattern = rf"{name} \(pid \d+\) {CAUSES[how]}; (\d+) unfinished unrolls discarded; restarting it \(\d+ of 100\)"
        lost = re.fullmatch(pattern, told)
        assert lost, told
        assert int(lost.groups()[-1]) <= (0 if kind == "inference" else 4)  # two for each of a worker's two actors
        before = rows(run)[-1]["step"]
        # More than all the buffers hold: slots that were lost would show.
        wait_until(lambda before=before: rows(run)[-1]["step"] > before + 20 * 50, f"training that goes on after {how}")
    assert min(deaths) < NOTICED
    program.check_no_named_memory()
    restarts = program.out.count("; restarting it (")
    assert restarts >= len(faults)
    program.send(signal.SIGINT)
    assert program.finish().code == 130, program.story()
    assert not program.err
    assert rows(run)[-1]["restarts"] == restarts
    assert checkpoint.load(finding.find(str(run), ""))["learner"]["steps"] == rows(run)[-1]["step"]


@pytest.mark.parametrize("beast", BEASTS)
def test_an_environment_that_raises_again_and_again_ends_the_run_with_what_it_learned(start, tmp_path, beast):
    kwargs = json.dumps({"fail_after": 400, "shape": [3]})
    program = start(
        "--env", "Synthetic-v0", "--env_kwargs", kwargs, *SMALL, *BEASTS[beast], "--num_actor_processes", 1,
        "--max_restarts", 1,
    ).finish()  # fmt: skip
    words = "RuntimeError: the synthetic environment fails", "restarted 1 times already (--max_restarts)"
    assert_own_traceback(program, "in _misbehave", *words)
    assert program.code == 1
    assert program.out.count("Traceback (most recent call last)") == 1  # of the first
    assert program.out.count("unfinished unrolls discarded; restarting it (1 of 1)") == 1
    run = tmp_path / "runs" / "r"
    steps = checkpoint.load(finding.find(str(run), ""))["learner"]["steps"]
    assert steps == rows(run)[-1]["step"] > 1_000
    assert f"failed at step {steps:,}" in program.out


@pytest.mark.parametrize("beast", ["monobeast", "polybeast"])
def test_an_environment_that_hangs_is_found_by_its_silence(start, tmp_path, beast):
    kwargs = json.dumps({"fail_after": 400, "shape": [3], "fail": "hang"})
    program = start(
        "--env", "Synthetic-v0", "--env_kwargs", kwargs, *SMALL, *BEASTS[beast], "--num_actor_processes", 2,
        "--max_restarts", 0, "--actor_timeout", TIMEOUT,
    ).finish()  # fmt: skip
    assert program.code == 1
    assert "gave no sign of life for" in program.err
    assert len(program.err.splitlines()) == 1
    state = checkpoint.load(finding.find(str(tmp_path / "runs" / "r"), ""))
    assert state["learner"]["steps"] > 0
