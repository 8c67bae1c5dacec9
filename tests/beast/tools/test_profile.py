"""`profile` runs the real trainer and its parts, for both beasts; its figures fit together, its trace shows who did what."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict

import pytest
from conftest import assert_one_line

LEARNER = {"wait", "batch", "copy", "learn", "publish"}
ACTOR = {"environment", "inference", "store", "wait"}
QUICK = ["--env", "Catch-v0", "--num_actors", 8, "--warm_up", 0.5, "--seconds", 1.5]


def profiled(outcome, folder):
    """Figures, and the trace's stages by (process, thread)."""
    assert outcome.code == 0, outcome.err
    figures = json.loads((folder / "profile.json").read_text())
    threads = check_trace(json.loads((folder / "trace.json").read_text()), figures["whole"]["seconds"])
    assert figures["trace_too_small_for"] == []
    return figures, threads


def check_trace(trace, seconds):
    """Named processes and threads; blocks within the window, one after the other on each thread."""
    processes, threads, blocks = {}, {}, defaultdict(list)
    for event in trace["traceEvents"]:
        key = event["pid"], event["tid"]
        if event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] >= 0
            assert event["ts"] + event["dur"] <= seconds * 1e6 + 0.01
            blocks[key].append(event)
        elif event["name"] == "process_name":
            processes[event["pid"]] = event["args"]["name"]
        elif event["name"] == "thread_name":
            threads[key] = event["args"]["name"]
    assert set(blocks) <= set(threads)
    assert {pid for pid, _ in threads} == set(processes)
    for events in blocks.values():
        for one, other in itertools.pairwise(sorted(events, key=lambda event: event["ts"])):
            assert one["ts"] + one["dur"] <= other["ts"] + 0.01
    return {(processes[key[0]], name): blocks[key] for key, name in threads.items()}


def stages(blocks):
    return {block["name"] for block in blocks}


@pytest.mark.parametrize("trainer", ["monobeast", "polybeast"])
def test_profile_prints_and_writes_speed_parts_bound_and_trace(start, tmp_path, trainer):
    flags = [
        *QUICK,
        "--trainer",
        trainer,
        "--inference",
        "thread",
        "--num_learner_threads",
        2,
        "--json",
        "profile.json",
        "--trace",
        "trace.json",
    ]
    done = start("profile", *flags, "--num_actor_processes", 2).finish()
    assert "efficiency" in done.out
    figures, threads = profiled(done, tmp_path)
    whole, alone = figures["whole"], figures["alone_us"]
    assert whole["sps"] > 0
    assert set(alone) == {"environment", "inference", "learner"}
    assert all(value > 0 for value in alone.values())
    expected = figures["machine"]["cores"] / sum(alone.values()) * 1e6
    assert figures["bound_sps"] == pytest.approx(expected)
    assert figures["efficiency"] == pytest.approx(whole["sps"] / expected)
    assert all(whole["worker_us"][stage] > 0 for stage in ("environment", "inference", "store"))
    assert all(whole["learner_us"][stage] > 0 for stage in ("batch", "copy", "learn", "publish"))
    assert bool(whole["inference"]) == (trainer == "polybeast")
    roles = {"actor"} if trainer == "monobeast" else {"env worker", "inference"}
    assert set(whole["cores_used"]) == roles | {"learner", "rest"}
    assert sum(whole["cores_used"].values()) <= figures["machine"]["cores"] * 1.1

    worker = "actor process" if trainer == "monobeast" else "env worker"
    named = {("trainer", f"learner-{i}") for i in range(2)} | {(f"{worker} {i}", f"{worker} {i}") for i in range(2)}
    assert set(threads) == named | ({("trainer", "inference")} if trainer == "polybeast" else set())
    assert set.union(*(stages(blocks) for (_, thread), blocks in threads.items() if "learner" in thread)) == LEARNER
    for i in range(2):
        own = stages(threads[f"{worker} {i}", f"{worker} {i}"])
        assert ACTOR - {"inference", "wait"} <= own <= ACTOR
        assert ("inference" in own) == (trainer == "monobeast")
    if trainer == "polybeast":
        assert stages(threads["trainer", "inference"]) == {"inference"}
        assert all(1 <= block["args"]["batch_size"] <= 8 for block in threads["trainer", "inference"])


def test_inference_in_a_process_of_its_own_is_measured_and_traced_there(call, tmp_path):
    flags = [*QUICK, "--trainer", "polybeast", "--inference", "process", "--num_actor_processes", 1, "--no_bound"]
    figures, threads = profiled(call("profile", *flags, "--json", "profile.json", "--trace", "trace.json"), tmp_path)
    assert "efficiency" not in figures
    assert figures["whole"]["worker_us"]["inference"] > 0
    assert set(figures["whole"]["cores_used"]) == {"env worker", "inference", "learner", "rest"}
    name = "inference process"
    assert stages(threads[name, name]) == {"inference"}
    assert all(block["args"]["batch_size"] >= 1 for block in threads[name, name])


@pytest.mark.parametrize("trainer", ["monobeast", "polybeast"])
def test_serial_mode_does_all_in_one_thread(call, tmp_path, trainer):
    flags = [*QUICK, "--trainer", trainer, "--num_actor_processes", 0, "--no_bound"]
    figures, threads = profiled(call("profile", *flags, "--json", "profile.json", "--trace", "trace.json"), tmp_path)
    assert list(threads) == [("trainer", "MainThread")]
    assert stages(threads["trainer", "MainThread"]) == LEARNER | ACTOR
    assert set(figures["whole"]["cores_used"]) == {"serial"}


def test_impossible_times_and_places_are_one_line(call):
    assert_one_line(call("profile", "--seconds", 0), "--seconds")
    assert_one_line(call("profile", "--warm_up", -1), "--warm_up")
    assert_one_line(call("profile", "--trace", "/proc/none/trace.json"), "--trace")
