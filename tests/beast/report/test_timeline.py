"""The trace: rings that keep the newest events, blocks cut at the window's edges, and contexts that travel."""

from __future__ import annotations

import json
import pickle
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace

import pytest

from beast.processes import children, status
from beast.processes.status import Clock, StatusBoard
from beast.processes.supervisor import Worker
from beast.report.timeline import Ring, Trace, TracedClock


@pytest.fixture
def block(monkeypatch):
    """A function that times a block with a clock or a worker's status, from one moment to another."""
    now = [0.0]
    monkeypatch.setattr(status, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def time(timer, stage, start, end, size=0):
        now[0] = start
        with timer.time(stage, size):
            now[0] = end

    return time


def worker(index, pid):
    """A worker that has ended."""
    process = children.Process(children.server, f"worker {index}")
    process.pid = pid
    return Worker(process.name, index, print, lambda restarts: (), str, process=process)


def blocks(path, pid):
    return [e for e in json.loads(path.read_text())["traceEvents"] if e["ph"] == "X" and e["pid"] == pid]


@pytest.mark.parametrize("written", [0, 3, 4, 6, 8, 9])
def test_a_ring_keeps_the_newest_events_in_order(written):
    ring, kept = Ring(4), list(range(max(0, written - 4), written))
    for i in range(written):
        ring.add(i % 4, float(i), i + 0.5, 10 * i)
    events, lost = ring.read()
    assert [event.start for event in events] == kept
    assert [event.size for event in events] == [10 * i for i in kept]
    assert [event.stage for event in events] == [StatusBoard.STAGES[i % 4] for i in kept]
    assert lost == (written > 4)


def test_clocks_add_up_the_same_seconds_with_and_without_a_trace(block):
    plain, traced = Clock(), TracedClock()
    for clock in (plain, traced):
        for start in (1.0, 3.0):
            block(clock, "learn", start, start + 0.5)
    assert dict(plain.seconds) == dict(traced.seconds) == {"learn": 1.0}
    ((_, events),) = traced.events.items()
    assert [(event.start, event.end) for event in events] == [(1.0, 1.5), (3.0, 3.5)]


def test_a_context_counts_on_the_board_and_in_the_ring_of_its_place_over_several_lives(block, tmp_path):
    board, trace, path = StatusBoard(2), Trace(), tmp_path / "trace.json"
    block(trace.status_of(board, 1), "store", 1.0, 3.0)
    block(pickle.loads(ForkingPickler.dumps(trace.status_of(board, 1))), "environment", 4.0, 4.5, 3)
    assert board.seconds() == {**dict.fromkeys(StatusBoard.STAGES, 0.0), "store": 2.0, "environment": 0.5}
    assert trace.write(path, 0.0, 5.0, [worker(1, 71)]) == []
    found = [(e["name"], e["ts"], e["dur"], e.get("args")) for e in blocks(path, 71)]
    assert found == [("store", 1e6, 2e6, None), ("environment", 4e6, 5e5, {"batch_size": 3})]


def test_the_file_holds_what_happened_in_the_window_and_names_rings_that_were_too_small(block, tmp_path):
    board, trace, path = StatusBoard(2), Trace(capacity=3), tmp_path / "trace.json"
    first, second = (trace.status_of(board, index) for index in (0, 1))
    for start in (1.0, 9.5, 10.5, 11.5):  # the first is overwritten
        block(first, "environment", start, start + 1.0)
    for start in (10.0, 10.2, 10.4, 10.6):  # here, one of the window itself is
        block(second, "inference", start, start + 0.1, 7)
    assert trace.write(path, 10.0, 12.0, [worker(0, 70), worker(1, 71)]) == ["worker 1"]
    assert [(e["ts"], e["dur"]) for e in blocks(path, 70)] == [(0.0, 5e5), (5e5, 1e6), (1.5e6, 5e5)]
    assert [e["ts"] for e in blocks(path, 71)] == [2e5, 4e5, 6e5]
    assert {e["name"] for e in blocks(path, 71)} == {"inference"}
    assert all(e["args"] == {"batch_size": 7} for e in blocks(path, 71))
    assert not any("args" in e for e in blocks(path, 70))
