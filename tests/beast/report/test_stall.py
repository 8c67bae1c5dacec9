"""Whether a run has stopped learning, on curves of real runs (tests/data/curves) and on made-up ones.

Each recorded row is a report: step, games so far, mean entropy in nats since the row before, mean and deviation of the newest
games' returns, and how many these were.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from beast.report.stall import CERTAIN, Stall
from beast.run.assemble import assemble
from beast.run.resolve import resolve_config

CURVES = Path(__file__).parents[2] / "data" / "curves"
SOLVED = {path.stem: path for path in sorted(CURVES.glob("*_solved.csv"))}


def told(stall: Stall, curve: Iterator[tuple[int, int, float, float, float, int]]) -> list[tuple[int, str]]:
    """Where it spoke (steps), and what it said."""
    lines = []
    for step, episodes, entropy, mean, deviation, games in curve:
        half = games // 2
        returns = [mean - deviation] * half + [mean + deviation] * half + [mean] * (games - 2 * half)
        if line := stall.look(entropy, returns, episodes):
            lines.append((step, line))
    return lines


def recorded(path: Path) -> Iterator[tuple[int, int, float, float, float, int]]:
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            numbers = float(row["entropy"]), float(row["mean"]), float(row["deviation"])
            yield int(row["step"]), int(row["episodes"]), *numbers, int(row["games"])


def test_lunar_landers_collapse_is_told_once_and_within_100k_steps():
    ((step, line),) = told(Stall(math.log(4)), recorded(CURVES / "lunar_lander_collapse.csv"))
    assert step < 100_000
    assert "--entropy_cost" in line
    assert "\n" not in line


@pytest.mark.parametrize("name", SOLVED)
def test_runs_that_learn_hear_nothing(name):
    choices = {"cartpole": 2, "catch": 3, "acrobot": 3, "mountain": 3, "empty": 7, "lunar": 4}[name.split("_")[0]]
    rows = list(recorded(SOLVED[name]))
    assert told(Stall(math.log(choices)), iter(rows)) == []
    assert rows[-1][3] > rows[0][3]


def curve(*parts: tuple[int, float, float], deviation: float = 10.0, games: int = 40):
    """Reports, each of so many games: (how many reports, entropy, mean return)."""
    episodes = 0
    for reports, entropy, mean in parts:
        for _ in range(reports):
            episodes += games
            yield episodes, episodes, entropy, mean, deviation, min(100, episodes)


def test_a_solved_task_needs_no_doubt():
    assert told(Stall(1.0), curve((5, 0.9, -20.0), (5, 0.4, 5.0), (40, 0.001, 20.0))) == []


def test_a_policy_that_is_certain_and_no_better_is_told_of():
    ((_, line),) = told(Stall(1.0), curve((5, 0.9, -20.0), (40, 0.001, -15.0)))
    assert "no better than the -20 that it began with" in line


def test_nothing_is_said_while_returns_rise():
    rising = [(3, 0.001, -100.0 + 10 * i) for i in range(20)]
    assert told(Stall(1.0), curve(*rising)) == []
    assert len(told(Stall(1.0), curve(*rising, (20, 0.001, 90.0)))) == 1


def test_a_moment_of_certainty_is_nothing():
    moments = [(4, 0.001, -20.0), (1, 2 * CERTAIN, -20.0)] * 10
    assert told(Stall(1.0), curve((5, 0.9, -20.0), *moments)) == []


def test_few_games_say_nothing_and_no_update_neither():
    stall = Stall(1.0)
    assert not any(stall.look(0.0, [-1.0] * 49, 1000 * i) for i in range(20))
    assert not any(stall.look(None, [-1.0] * 100, 1000 * i) for i in range(20))


@pytest.mark.parametrize("at", [1, 7, 9, 12, 30])
def test_a_resumed_run_says_it_where_an_unbroken_one_does_and_not_twice(at):
    rows = list(curve((5, 0.9, -20.0), (40, 0.001, -15.0)))
    expected = told(Stall(1.0), iter(rows))
    first, second = Stall(1.0), Stall(1.0)
    lines = told(first, iter(rows[:at]))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert lines + told(second, iter(rows[at:])) == expected


def test_a_run_from_before_there_was_a_watch_goes_on_in_silence():
    stall = Stall(1.0)
    stall.load_state_dict(None)
    assert told(stall, curve((40, 0.001, -15.0))) == []


@pytest.mark.parametrize(("env", "watched"), [("Catch-v0", True), ("Pendulum-v1", False)])
def test_runs_of_choices_are_watched(env, watched, tmp_path):
    run = assemble(*resolve_config({"env": env, "num_actor_processes": 0, "num_actors": 2, "batch_size": 2}), None)
    assert ("stall" in run.reports.state_dict()) is watched
