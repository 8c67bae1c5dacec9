"""Rows and messages between workers and inference arrive whole, in this process and across processes."""

from __future__ import annotations

import multiprocessing
import time

import numpy as np
import pytest

from beast.core.data import ArraySpec, Chosen, EnvOutput, map_nested
from beast.polybeast.mailbox import LAST_TICKET, Line, Mailbox, Request, Rows
from beast.store.unrolls import UnrollSpec

FLOAT = np.dtype(np.float32)
SPEC = UnrollSpec(
    observation={"image": ArraySpec((2, 3), np.dtype(np.uint8)), "vector": ArraySpec((4,), FLOAT)},
    action=ArraySpec((), np.dtype(np.int64)),
    num_params=5,
    core_state=(ArraySpec((6,), FLOAT),),
    extra={"cost": ArraySpec((2,), FLOAT)},
    agent_extra={"goal": ArraySpec((3,), FLOAT)},
)


def env_output(count: int, value: int) -> EnvOutput:
    nothing = np.full(count, np.nan, np.float32)
    return EnvOutput(
        {"image": np.full((count, 2, 3), value, np.uint8), "vector": np.full((count, 4), value, np.float32)},
        np.full(count, value, np.float32), np.zeros(count, bool), np.zeros(count, bool), np.ones(count, bool),
        np.full(count, value), nothing, nothing, np.zeros((count, 0), np.float32),
        {"cost": np.full((count, 2), value, np.float32)},
    )  # fmt: skip


@pytest.mark.parametrize("groups", [[slice(0, 2), slice(2, 5)], [slice(2, 5), slice(0, 2)]])
def test_rows_of_groups_are_collected_in_the_order_asked_for(groups: list[slice]) -> None:
    mailbox = Mailbox(SPEC, noise_size=5, num_actors=5)
    mailbox.put_rows(slice(0, 2), env_output(2, 10), np.full((2, 5), 0.5, np.float32), opening=True)
    mailbox.put_rows(slice(2, 5), env_output(3, 20), np.full((3, 5), 0.25, np.float32), opening=False)
    post = mailbox.get_rows(groups)
    expected = [10, 10, 20, 20, 20] if groups[0].start == 0 else [20, 20, 20, 10, 10]
    assert post.reward.tolist() == expected
    assert post.observation["image"][:, 1, 2].tolist() == expected
    assert post.last_action.tolist() == expected
    assert post.extra["cost"][:, 1].tolist() == expected
    assert post.opening.tolist() == [value == 10 for value in expected]


def test_answers_go_back_to_their_own_places() -> None:
    mailbox = Mailbox(SPEC, noise_size=5, num_actors=5)
    goal = np.arange(9, dtype=np.float32).reshape(3, 3)
    chosen = Chosen(np.array([7, 8, 9]), np.arange(15, dtype=np.float32).reshape(3, 5), {"goal": goal})
    mailbox.put_actions([slice(3, 5), slice(0, 1)], chosen, version=4)
    answer, version = mailbox.get_actions(slice(3, 5))
    assert answer.action.tolist() == [7, 8]
    assert answer.logits[1].tolist() == [5, 6, 7, 8, 9]
    assert answer.extra["goal"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert version == 4
    answer, version = mailbox.get_actions(slice(0, 1))
    assert answer.action.tolist() == [9]
    assert answer.extra["goal"].tolist() == [[6, 7, 8]]
    assert version == 4


def test_states_are_left_for_their_places_alone() -> None:
    mailbox = Mailbox(SPEC, noise_size=5, num_actors=3)
    mailbox.put_state(slice(1, 2), [np.ones((1, 6), np.float32)])
    (state,) = mailbox.core_state(slice(0, 3))
    assert state.sum(axis=1).tolist() == [0, 6, 0]


def kept(mailbox: Mailbox, ticket: int, places: slice = slice(1, 3)) -> list[float] | None:
    state = mailbox.kept_state(Request(0, ticket), places)
    return None if state is None else state[0][:, 0].tolist()


def test_a_state_is_kept_for_the_request_after_the_one_that_it_came_from() -> None:
    mailbox = Mailbox(SPEC, noise_size=5, num_actors=4)
    for ticket in (LAST_TICKET - 1, LAST_TICKET, 0, 1):
        mailbox.keep_state(slice(1, 3), ticket, [np.full((2, 6), ticket % 100, np.float32)])
        following = (ticket + 1) & LAST_TICKET
        assert kept(mailbox, following) == [ticket % 100] * 2
        assert kept(mailbox, following, slice(0, 2)) is None  # not all of them have one
        assert kept(mailbox, following + 5) is None


def test_a_death_while_a_state_is_kept_leaves_the_one_before_it() -> None:
    mailbox = Mailbox(SPEC, noise_size=5, num_actors=4)
    mailbox.keep_state(slice(1, 3), 7, [np.full((2, 6), 70, np.float32)])
    with pytest.raises(ValueError, match="broadcast"):  # it stops in the midst
        mailbox.keep_state(slice(1, 3), 8, [np.full((5, 5), 80, np.float32)])
    assert kept(mailbox, 8) == [70, 70]  # the request that was not answered is made again
    assert kept(mailbox, 9) is None


def test_groups_are_unfinished_until_they_say_otherwise_of_this_version() -> None:
    mailbox = Mailbox(SPEC, noise_size=5, num_actors=5)
    groups = [slice(0, 2), slice(2, 5)]
    assert mailbox.unfinished(groups, 0) == {0, 1}
    mailbox.finish(slice(2, 5), 0)
    assert mailbox.unfinished(groups, 0) == {0}
    assert mailbox.unfinished(groups, 1) == {0, 1}
    mailbox.finish(slice(2, 5), -1)
    assert mailbox.unfinished(groups, 0) == {0, 1}


def test_a_line_delivers_messages_in_order_and_times_out_when_there_are_none() -> None:
    line = Line()
    line.send([Request(1, 2), Request(3, 4)])
    line.send([Request(5, 6)])
    assert line.receive(0.0) == [(1, 2), (3, 4), (5, 6)]
    start = time.monotonic()
    assert line.receive(0.05) == []
    assert time.monotonic() - start >= 0.045


def _answer_all(requests: Line, answers: Line, count: int) -> None:
    while count:
        for request in requests.receive(1.0):
            answers.send([request])
            count -= 1


def test_messages_cross_processes_and_none_is_lost() -> None:
    requests, answers = Line(), Line()
    context = multiprocessing.get_context("forkserver")
    child = context.Process(target=_answer_all, args=(requests, answers, 500), daemon=True)
    child.start()
    got: list[Request] = []
    for ticket in range(500):
        requests.send([Request(ticket % 7, ticket)])
    deadline = time.monotonic() + 60
    while len(got) < 500 and time.monotonic() < deadline:
        got += answers.receive(0.5)
    child.join(10)
    assert [request.ticket for request in got] == list(range(500))


def test_rows_can_be_copied_into_room_that_is_there_already() -> None:
    mailbox = Mailbox(SPEC, noise_size=5, num_actors=5)
    mailbox.put_rows(slice(0, 2), env_output(2, 10), np.full((2, 5), 0.5, np.float32), opening=True)
    mailbox.put_rows(slice(2, 5), env_output(3, 20), np.full((3, 5), 0.25, np.float32), opening=False)
    room = mailbox.get_rows([slice(0, 5)])
    room = Rows(*(map_nested(np.copy, field) for field in room))
    groups = [slice(2, 5), slice(0, 1)]
    post, expected = mailbox.get_rows(groups, room), mailbox.get_rows(groups)
    map_nested(np.testing.assert_array_equal, tuple(post), tuple(expected))
    assert np.shares_memory(post.observation["image"], room.observation["image"])
