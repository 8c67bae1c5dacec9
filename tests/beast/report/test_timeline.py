"""The trace: rings that keep the newest events, blocks cut at the window's edges, and contexts that travel."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from beast.processes.status import Clock, StatusBoard
from beast.report.timeline import Ring, Trace, TracedClock


def worker(index, pid):
    return SimpleNamespace(index=index, name=f"worker {index}", process=SimpleNamespace(pid=pid))


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


def test_clocks_add_up_the_same_seconds_with_and_without_a_trace():
    plain, traced = Clock(), TracedClock()
    for clock in (plain, traced):
        for start in (1.0, 3.0):
            clock._add("learn", start, start + 0.5, 0)
    assert dict(plain.seconds) == dict(traced.seconds) == {"learn": 1.0}
    ((_, events),) = traced.events.items()
    assert [(event.start, event.end) for event in events] == [(1.0, 1.5), (3.0, 3.5)]


def test_a_context_counts_on_the_board_and_in_the_ring_of_its_place_over_several_lives():
    board = StatusBoard(2)
    trace = Trace()
    with trace.status_of(board, 1).time("store"):
        pass
    with trace.status_of(board, 1).time("environment", 3):
        pass
    events, _ = trace._rings[1].read()
    assert [(event.stage, event.size) for event in events] == [("store", 0), ("environment", 3)]
    assert board.seconds()["store"] == pytest.approx(events[0].end - events[0].start)


def test_the_file_holds_what_happened_in_the_window_and_names_rings_that_were_too_small(tmp_path):
    board, trace, path = StatusBoard(2), Trace(capacity=3), tmp_path / "trace.json"
    for index in (0, 1):
        trace.status_of(board, index)
    for start in (1.0, 9.5, 10.5, 11.5):  # the first is overwritten
        trace._rings[0].add(0, start, start + 1.0, 0)
    for start in (10.0, 10.2, 10.4, 10.6):  # here, one of the window itself is
        trace._rings[1].add(1, start, start + 0.1, 7)
    assert trace.write(path, 10.0, 12.0, [worker(0, 70), worker(1, 71)]) == ["worker 1"]
    assert [(e["ts"], e["dur"]) for e in blocks(path, 70)] == [(0.0, 5e5), (5e5, 1e6), (1.5e6, 5e5)]
    assert [e["ts"] for e in blocks(path, 71)] == [2e5, 4e5, 6e5]
    assert {e["name"] for e in blocks(path, 71)} == {"inference"}
    assert all(e["args"] == {"batch_size": 7} for e in blocks(path, 71))
    assert not any("args" in e for e in blocks(path, 70))
