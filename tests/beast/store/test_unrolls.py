"""The unroll store: what is written is what is read, every slot has one holder, and no death of a worker harms it."""

import gc
import multiprocessing
import multiprocessing.forkserver
import os
import random
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from beast.core.data import ArraySpec, Chosen, EnvOutput, flatten, map_nested, restack
from beast.core.errors import StoreClosed
from beast.envs import atari
from beast.store import unrolls
from beast.store.unrolls import UnrollSpec, UnrollStore

INT64, FLOAT32 = np.dtype(np.int64), np.dtype(np.float32)
STACK = 3
NESTED = UnrollSpec(
    observation={
        "frames": ArraySpec((STACK, 2, 2), np.dtype(np.uint8), stack=STACK),
        "rest": (ArraySpec((4,), FLOAT32), ArraySpec((), INT64), {"deep": ArraySpec((2,), np.dtype(np.int8))}),
    },
    action=ArraySpec((2,), INT64),
    num_params=5,
    core_state=(ArraySpec((6,), FLOAT32), {"clock": ArraySpec((), np.dtype(np.float64))}),
    metric_names=("level", "lives"),
    extra={"cost": ArraySpec((2,), FLOAT32), "room": ArraySpec((), INT64)},
    agent_extra={"goal": ArraySpec((3,), FLOAT32)},
)
TINY = UnrollSpec(ArraySpec((1,), FLOAT32), ArraySpec((), INT64), 1, ())
ENV_FIELDS = ("reward", "terminated", "truncated", "first", "last_action", "episode_return", "episode_steps", "metrics")


class Source:
    """E environments that say random things in `row`; their stacks are blank before each episode's first frame."""

    def __init__(self, num_envs, seed):
        self.num_envs, self.rng = num_envs, np.random.default_rng(seed)
        self.stack = np.zeros((num_envs, STACK, 2, 2), np.uint8)
        self.over = np.ones(num_envs, bool)
        self.advance()

    def advance(self):
        rng, e, first = self.rng, self.num_envs, self.over
        self.over = rng.random(e) < 0.2
        self.stack = np.where(first[:, None, None, None], 0, np.roll(self.stack, -1, axis=1)).astype(np.uint8)
        self.stack[:, -1] = rng.integers(1, 256, (e, 2, 2))
        observation = {
            "frames": self.stack.copy(),
            "rest": (
                rng.normal(size=(e, 4)).astype(np.float32),
                rng.integers(9, size=e),
                {"deep": rng.integers(-128, 128, (e, 2), dtype=np.int8)},
            ),
        }
        self.row = EnvOutput(
            observation,
            reward=rng.normal(size=e).astype(np.float32),
            terminated=self.over,
            truncated=rng.random(e) < 0.1,
            first=first,
            last_action=rng.integers(7, size=(e, 2)),
            episode_return=np.where(self.over, rng.normal(size=e), np.nan).astype(np.float32),
            episode_steps=np.where(self.over, rng.integers(1, 99, e), np.nan).astype(np.float32),
            metrics=np.where(self.over[:, None], rng.normal(size=(e, 2)), np.nan).astype(np.float32),
            extra={"cost": rng.normal(size=(e, 2)).astype(np.float32), "room": rng.integers(9, size=e)},
        )


def fill_unrolls(store, port, source, count):
    """Write `count` unrolls for each environment of the source; returns (slots, rows, agent's side, state) of each.

    The actors' numbers begin at 100.
    """
    written, rng = [], source.rng
    for number in range(count):
        slots = port.acquire(timeout=0)
        state = rng.normal(size=(len(slots), 6)).astype(np.float32), {"clock": rng.normal(size=len(slots))}
        port.writer.begin(slots, state, actors=tuple(range(100, 100 + len(slots))))
        rows, answers = [], []
        for t in range(store.unroll_length):
            action, logits = rng.integers(7, size=(len(slots), 2)), rng.normal(size=(len(slots), 5)).astype(np.float32)
            goal = rng.normal(size=(len(slots), 3)).astype(np.float32)
            port.writer.write_env(slots, t, source.row)
            port.writer.write_agent(slots, t, Chosen(action, logits, {"goal": goal}), 10 * number + t)
            rows.append(source.row)
            answers.append((action, logits, np.full(len(slots), 10 * number + t), goal))
            source.advance()
        port.writer.write_env(slots, store.unroll_length, source.row)
        port.commit(slots)
        written.append((slots, [*rows, source.row], answers, state))
    return written


def check_account(store, in_batches=()):
    """As many slots have a holder as there are."""
    assert sum(store.fill().values()) + len(in_batches) == store.num_buffers


def check_slots(store):
    """Every slot is there, once. Call it when all workers are detached and all batches freed; it takes what is full."""
    while slots := store.next_slots(1, timeout=0):
        store.free(slots)
    assert store.fill() == {"free": store.num_buffers, "held": 0, "full": 0}
    port = store.attach(0, store.num_buffers)
    assert sorted(port.acquire(timeout=0)) == list(range(store.num_buffers))
    store.detach(0)


def take(store, slots):
    """Read a batch and give its slots back, as a learner does."""
    found = store.read(slots)
    store.free(slots)
    return found


@pytest.fixture
def make_store():
    stores = []

    def make(spec, num_buffers, unroll_length):
        stores.append(UnrollStore(spec, num_buffers, unroll_length))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


# -- what is written is what is read ------------------------------------------------------------------------------------


def test_a_batch_holds_every_field_of_the_nested_rows_that_were_written(make_store):
    length, envs = 5, 2
    store = make_store(NESTED, num_buffers=8, unroll_length=length)
    port = store.attach(0, envs)
    source = Source(envs, seed=0)
    seen_first = seen_terminated = 0
    for _ in range(12):
        ((_, rows, answers, state),) = fill_unrolls(store, port, source, 1)
        batch, _ = take(store, store.next_slots(envs, timeout=1))
        assert torch.equal(
            restack(batch.observation["frames"], batch.first, STACK),
            torch.from_numpy(np.stack([row.observation["frames"] for row in rows])),
        )
        for read, *expected in zip(
            flatten(batch.observation["rest"]), *(flatten(row.observation["rest"]) for row in rows), strict=True
        ):
            assert read.dtype == torch.from_numpy(expected[0]).dtype
            np.testing.assert_array_equal(read, np.stack(expected))
        for name in ("reward", "terminated", "truncated", "first", "last_action"):
            np.testing.assert_array_equal(getattr(batch, name), np.stack([getattr(row, name) for row in rows]))
        assert batch.extra.keys() == {"cost", "room"}
        for name, read in batch.extra.items():
            np.testing.assert_array_equal(read, np.stack([row.extra[name] for row in rows]))
        assert batch.agent_extra.keys() == {"goal"}
        agents = batch.action, batch.behaviour_logits, batch.policy_version, batch.agent_extra["goal"]
        for read, expected in zip(agents, zip(*answers, strict=True), strict=True):
            np.testing.assert_array_equal(read, np.stack(expected))
        for read, expected in zip(flatten(batch.core_state), flatten(state), strict=True):
            np.testing.assert_array_equal(read, expected)
        assert batch.actor.tolist() == [100, 101]
        assert batch.reward.shape == (length + 1, envs)
        assert batch.action.shape == (length, envs, 2)
        seen_first += int(batch.first[1:].sum())
        seen_terminated += int(batch.terminated.sum())
    assert seen_first > 10
    assert seen_terminated > 10


def test_row_t_of_one_unroll_is_row_0_of_the_next_in_every_field(make_store):
    length, envs, count = 4, 3, 10
    store = make_store(NESTED, num_buffers=2 * envs, unroll_length=length)
    port, source = store.attach(0, envs), Source(envs, seed=1)
    last = None
    for _ in range(count):
        ((slots, *_),) = fill_unrolls(store, port, source, 1)
        arrays = {name: store.arrays[name][slots] for name in ENV_FIELDS}  # copies
        arrays |= {name: array[slots] for name, array in store.arrays["extra"].items()}
        arrays |= dict(enumerate(array[slots] for array in flatten(store.arrays["observation"]["rest"])))
        frames, first = (
            torch.from_numpy(store.arrays["observation"]["frames"][slots]),
            torch.from_numpy(arrays["first"]),
        )
        arrays["frames"] = restack(frames, first.T, STACK).transpose(0, 1).numpy()
        if last is not None:
            for name, array in arrays.items():
                np.testing.assert_array_equal(array[:, 0], last[name][:, length], err_msg=str(name))
        last = arrays
        take(store, store.next_slots(envs, timeout=1))


def test_frames_of_stacks_are_stored_once_and_one_blank_frame_beside_them(make_store):
    store = make_store(NESTED, num_buffers=4, unroll_length=5)
    frames = store.arrays["observation"]["frames"]
    assert frames.shape == (4, 1 + (STACK - 1) + 6, 2, 2)
    assert not frames[:, 0].any()
    fill_unrolls(store, store.attach(0, 2), Source(2, seed=0), 2)
    assert not frames[:, 0].any()


@pytest.mark.parametrize(
    ("env_id", "length", "unrolls", "arguments"),
    [
        ("PongNoFrameskip-v4", 7, 30, {"max_num_frames_per_episode": 100}),  # resets at all places in an unroll
        ("PongNoFrameskip-v4", 2, 40, {"max_num_frames_per_episode": 12}),  # unrolls and games shorter than a stack
        ("BreakoutNoFrameskip-v4", 20, 18, {}),  # lost lives end the return, not the stack
    ],
)
def test_restacked_frames_equal_the_emulators_own_stacks(make_store, env_id, length, unrolls, arguments):
    group = atari.make_vector(env_id, [1, 2], **arguments)
    spec = UnrollSpec(group.observation_spec, ArraySpec((), INT64), group.action_space.n, ())
    store = make_store(spec, num_buffers=4, unroll_length=length)
    port = store.attach(0, 2)
    generator, env = np.random.default_rng(0), group.reset()
    shown, seen = [env.observation.copy()], {"first": 0, "terminated": 0, "truncated": 0}
    for _ in range(unrolls):
        slots = port.acquire(timeout=0)
        for t in range(length):
            port.writer.write_env(slots, t, env)
            env = group.step(generator.integers(group.action_space.n, size=2))
            shown.append(env.observation.copy())
        port.writer.write_env(slots, length, env)
        port.commit(slots)
        batch, _ = take(store, store.next_slots(2, timeout=1))
        stacks = restack(batch.observation, batch.first, 4)
        np.testing.assert_array_equal(stacks, np.stack(shown))
        shown = shown[-1:]
        for name in seen:
            seen[name] += int(getattr(batch, name)[1:].sum())
    assert seen["first"] >= 2
    assert seen["truncated"] > 10 or seen["terminated"] > seen["first"]


def test_a_fresh_store_holds_absurd_values_so_that_a_missed_write_shows(make_store):
    store = make_store(NESTED, num_buffers=3, unroll_length=2)
    arrays = dict(store.arrays)
    np.testing.assert_array_equal(arrays["observation"]["frames"][:, 1:], 0xAB)
    for name in ("terminated", "truncated", "first"):
        assert not arrays.pop(name).any()  # a bool has no absurd value
    checked = 0
    for array in flatten(arrays):
        if array.dtype.kind == "f":
            assert np.isnan(array).all()
        elif array.dtype.kind == "i":
            assert (array == np.iinfo(array.dtype).min).all()
        else:
            continue
        checked += 1
    assert checked == 17  # all but the frames and the three bools


# -- episodes -------------------------------------------------------------------------------------------------------------


def test_each_game_is_reported_once_though_its_last_row_may_lie_in_two_unrolls(make_store):
    store = make_store(NESTED, num_buffers=4, unroll_length=3)
    port, source = store.attach(0, 2), Source(2, seed=5)
    expected, reported, border = [], [], 0
    for number in range(40):
        ((_, rows, *_),) = fill_unrolls(store, port, source, 1)
        for t in range(1, 4):
            for env in np.nonzero(~np.isnan(rows[t].episode_return))[0]:
                row = rows[t].episode_return[env], rows[t].episode_steps[env], *rows[t].metrics[env]
                expected.append((number, 100 + env, *row))
                border += t == 3
        _, episodes = take(store, store.next_slots(2, timeout=1))
        for episode in episodes:
            assert set(episode.metrics) == {"level", "lives"}
            assert isinstance(episode.episode_steps, int)
            metrics = episode.metrics["level"], episode.metrics["lives"]
            reported.append((number, episode.actor, episode.episode_return, episode.episode_steps, *metrics))
    assert border > 5
    assert sorted(map(tuple, np.array(reported))) == sorted(map(tuple, np.array(expected, np.float64)))


# -- who holds what -------------------------------------------------------------------------------------------------------


def test_the_oldest_full_unrolls_come_first_whoever_wrote_them(make_store):
    store = make_store(TINY, num_buffers=12, unroll_length=1)
    ports = [store.attach(worker, 1) for worker in range(3)]
    order = []
    for worker in (2, 0, 1, 0, 2, 1):
        slots = ports[worker].acquire(timeout=0)
        ports[worker].commit(slots)
        order += slots.tolist()
    assert store.next_slots(4, timeout=0) == order[:4]
    assert store.next_slots(2, timeout=0) == order[4:]


def test_a_batch_is_handed_out_whole_or_not_at_all(make_store):
    store = make_store(TINY, num_buffers=6, unroll_length=1)
    port = store.attach(0, 1)
    first = port.acquire(timeout=0)
    port.commit(first)
    assert store.next_slots(2, timeout=0) is None
    assert store.fill()["full"] == 1  # and the one that is there stays
    second = port.acquire(timeout=0)
    port.commit(second)
    assert store.next_slots(2, timeout=0) == [*first, *second]


def test_next_slots_gives_up_at_its_timeout_and_not_before(make_store):
    store = make_store(TINY, num_buffers=4, unroll_length=1)
    port = store.attach(0, 1)
    port.commit(port.acquire(timeout=0))
    start = time.monotonic()
    assert store.next_slots(2, timeout=0.3) is None
    assert 0.3 <= time.monotonic() - start < 10


def test_next_slots_wakes_as_soon_as_the_last_unroll_of_a_batch_is_committed(make_store):
    store = make_store(TINY, num_buffers=4, unroll_length=1)
    port = store.attach(0, 1)
    timer = threading.Timer(0.2, lambda: port.commit(port.acquire(timeout=0)))
    timer.start()
    start = time.monotonic()
    assert store.next_slots(1, timeout=20) is not None
    assert time.monotonic() - start < 15
    timer.join()


def test_what_a_dead_worker_had_committed_ends_the_wait_of_a_learner_thread(make_store, monkeypatch):
    store = make_store(TINY, num_buffers=4, unroll_length=1)
    port = store.attach(0, 2)
    slots = port.acquire(timeout=0)

    def sleep_through(pipe, timeout):
        """A wait that sees nothing to read, because `detach` has read it."""
        port.commit(slots)
        store.detach(0)
        time.sleep(timeout)
        return False

    monkeypatch.setattr(unrolls, "readable", sleep_through)
    assert store.next_slots(2, timeout=0.05) == [0, 1]


def test_closing_ends_the_wait_of_a_learner_thread():
    store = UnrollStore(TINY, num_buffers=4, unroll_length=1)
    found = []
    waiting = threading.Thread(target=lambda: found.append(store.next_slots(2, timeout=0.3)))
    waiting.start()
    time.sleep(0.05)
    store.close()
    waiting.join()
    assert found == [None]  # and no EBADF, nor another file's bytes
    assert store.next_slots(2, timeout=0.0) is None


def test_acquire_gives_up_at_its_timeout(make_store):
    store = make_store(TINY, num_buffers=2, unroll_length=1)
    port = store.attach(0, 2)
    assert sorted(port.acquire(timeout=0)) == [0, 1]
    start = time.monotonic()
    assert port.acquire(timeout=0.2) is None
    assert 0.2 <= time.monotonic() - start < 10


def test_a_worker_holds_two_groups_at_most(make_store):
    store = make_store(TINY, num_buffers=20, unroll_length=1)
    port = store.attach(0, 3)
    assert store.fill() == {"free": 14, "held": 6, "full": 0}
    slots = [port.acquire(timeout=0), port.acquire(timeout=0)]
    assert len(set(np.concatenate(slots).tolist())) == 6
    assert port.acquire(timeout=0) is None
    port.commit(slots[0])
    assert store.next_slots(1, timeout=0) is not None
    assert store.fill() == {"free": 11, "held": 6, "full": 2}
    assert len(port.acquire(timeout=0)) == 3


def test_scarce_slots_go_to_the_worker_that_has_the_fewest(make_store):
    store = make_store(TINY, num_buffers=4, unroll_length=1)
    first, second = store.attach(0, 1), store.attach(1, 1)
    taken = [port.acquire(timeout=0) for port in (first, first, second, second)]
    assert store.fill() == {"free": 0, "held": 4, "full": 0}
    for port, slots in zip((first, first, second), taken[:3], strict=True):
        port.commit(slots)
    slots = store.next_slots(3, timeout=0)  # the first holds none now, the second one
    take(store, slots[:1])
    assert first.acquire(timeout=0) is not None
    assert second.acquire(timeout=0) is None


def write_on(port, holds, closed):
    """A child, which has descriptors of its own: it ends well if it hears of the end both ways."""
    slots = port.acquire(timeout=10)
    holds.set()
    assert closed.wait(10)
    assert port.acquire(timeout=0) is not None  # the second group, handed out before
    with pytest.raises(StoreClosed):
        port.acquire(timeout=0)
    with pytest.raises(StoreClosed):
        port.commit(slots)


def test_a_worker_that_writes_on_hears_that_the_store_is_closed():
    store = UnrollStore(TINY, num_buffers=4, unroll_length=1)
    context = multiprocessing.get_context("forkserver")
    holds, closed = context.Event(), context.Event()
    child = context.Process(target=write_on, args=(store.attach(0, 1), holds, closed), daemon=True)
    child.start()
    held = holds.wait(60)
    store.close()
    closed.set()
    child.join(60)
    assert held
    assert child.exitcode == 0
    child.close()


def test_a_dead_workers_unfinished_slots_return_and_its_committed_unrolls_count(make_store):
    store = make_store(TINY, num_buffers=8, unroll_length=1)
    port = store.attach(0, 2)
    committed, half_written = port.acquire(timeout=0), port.acquire(timeout=0)
    port.commit(committed)
    assert store.detach(0) == 2
    assert store.fill() == {"free": 6, "held": 0, "full": 2}
    assert store.next_slots(2, timeout=0) == committed.tolist()
    assert store.next_slots(1, timeout=0) is None
    assert set(half_written.tolist()) <= set(store.attach(0, 6).acquire(timeout=0).tolist())


def test_a_new_worker_in_a_dead_ones_place_gets_slots_at_once(make_store):
    store = make_store(TINY, num_buffers=4, unroll_length=1)
    store.attach(0, 2).acquire(timeout=0)
    assert store.fill() == {"free": 0, "held": 4, "full": 0}
    assert store.detach(0) == 4
    port = store.attach(0, 2)
    assert len(port.acquire(timeout=0)) == 2
    check_account(store)


def test_a_dead_workers_slots_go_to_a_living_one_that_waits(make_store):
    store = make_store(TINY, num_buffers=2, unroll_length=1)
    store.attach(0, 1)
    living = store.attach(1, 1)
    assert living.acquire(timeout=0) is None
    store.detach(0)
    assert len(living.acquire(timeout=0)) == 1


def test_a_slot_is_taken_until_it_is_freed_and_what_was_read_of_it_is_a_copy(make_store):
    store = make_store(NESTED, num_buffers=4, unroll_length=3)
    port = store.attach(0, 2)
    fill_unrolls(store, port, Source(2, seed=2), 1)
    slots = store.next_slots(2, timeout=0)
    before = map_nested(np.copy, {name: map_nested(lambda a: a[slots], store.arrays[name]) for name in store.arrays})
    batch, episodes = store.read(slots)
    port.acquire(timeout=0)
    assert port.acquire(timeout=0) is None  # nobody may write the others yet
    check_account(store, slots)
    store.free(slots)
    check_account(store)
    assert port.acquire(timeout=0).tolist() == slots
    for array in flatten(store.arrays):
        array[slots] = 1
    for read, stored in zip(flatten(batch.core_state), flatten(before["core_state"]), strict=True):
        np.testing.assert_array_equal(read, stored)
    np.testing.assert_array_equal(batch.observation["frames"], before["observation"]["frames"])
    for name in ("reward", "first", "terminated", "truncated", "last_action", "action", "policy_version"):
        np.testing.assert_array_equal(getattr(batch, name).transpose(0, 1), before[name])
    np.testing.assert_array_equal(batch.behaviour_logits.transpose(0, 1), before["behaviour_logits"])
    np.testing.assert_array_equal(batch.actor, before["actor"])
    for name in ("extra", "agent_extra"):
        for read, stored in zip(flatten(getattr(batch, name)), flatten(before[name]), strict=True):
            np.testing.assert_array_equal(read.transpose(0, 1), stored)
    returns = before["episode_return"][:, 1:]
    assert [episode.episode_return for episode in episodes] == returns[~np.isnan(returns)].tolist()
    assert episodes


class Account(RuleBasedStateMachine):
    """Workers come, write, commit and die, the learner reads, in any order; a plain model says who must hold what."""

    @initialize(num_buffers=st.integers(4, 12))
    def open(self, num_buffers):
        self.store = UnrollStore(TINY, num_buffers, 1)
        self.ports, self.acquired, self.full, self.batches = {}, {}, [], []

    @precondition(lambda self: len(self.ports) < 3)
    @rule(group=st.integers(1, 3))
    def attach(self, group):
        worker = next(number for number in range(3) if number not in self.ports)
        self.ports[worker] = self.store.attach(worker, group)
        self.acquired[worker] = []

    @precondition(lambda self: self.ports)
    @rule(data=st.data())
    def acquire(self, data):
        worker = data.draw(st.sampled_from(sorted(self.ports)))
        slots = self.ports[worker].acquire(timeout=0)
        if slots is not None:
            others = {slot for groups in self.acquired.values() for group in groups for slot in group}
            assert not others & set(slots.tolist())
            assert not {*self.full, *(slot for batch in self.batches for slot in batch)} & set(slots.tolist())
            self.acquired[worker].append(slots.tolist())
            assert len(self.acquired[worker]) <= 2

    @precondition(lambda self: any(self.acquired.values()))
    @rule(data=st.data())
    def commit(self, data):
        worker = data.draw(st.sampled_from(sorted(w for w, groups in self.acquired.items() if groups)))
        slots = self.acquired[worker].pop(0)
        self.ports[worker].commit(np.array(slots))
        self.full += slots

    @precondition(lambda self: self.ports)
    @rule(data=st.data())
    def die(self, data):
        worker = data.draw(st.sampled_from(sorted(self.ports)))
        unfinished = [slot for group in self.acquired.pop(worker) for slot in group]
        del self.ports[worker]
        assert self.store.detach(worker) >= len(unfinished)

    @rule(batch_size=st.integers(1, 4))
    def take_batch(self, batch_size):
        expected = self.full[:batch_size] if len(self.full) >= batch_size else None
        assert self.store.next_slots(batch_size, timeout=0) == expected
        if expected:
            del self.full[:batch_size]
            self.batches.append(expected)

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def read(self, data):
        self.store.read(data.draw(st.sampled_from(self.batches)))  # which leaves its slots taken

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def free(self, data):
        self.store.free(self.batches.pop(data.draw(st.integers(0, len(self.batches) - 1))))

    @invariant()
    def every_slot_has_one_holder(self):
        if hasattr(self, "store"):
            check_account(self.store, [slot for batch in self.batches for slot in batch])
            assert self.store.fill()["full"] == len(self.full)

    def teardown(self):
        if hasattr(self, "store"):
            for worker in self.ports:
                self.store.detach(worker)
            for batch in self.batches:
                self.store.free(batch)
            check_slots(self.store)
            self.store.close()


Account.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],  # how slow depends on what else the machine does
)
TestEverySlotHasOneHolderWhateverHappens = Account.TestCase


def test_two_learner_threads_and_three_writers_neither_lose_nor_double_an_unroll(make_store):
    store = make_store(TINY, num_buffers=16, unroll_length=1)
    each, batch_size = 400, 3
    seen, lock = [], threading.Lock()

    def write(worker, port):
        for number in range(each):
            while (slots := port.acquire(timeout=1)) is None:
                pass
            write_numbered(port, slots, [worker * each + number], store.unroll_length)
            port.commit(slots)

    def learn():
        while True:
            slots = store.next_slots(batch_size, timeout=0.5)
            if slots is None:
                return
            batch, _ = take(store, slots)
            with lock:
                seen.extend(batch.policy_version[0].tolist())

    ports = [store.attach(worker, 1) for worker in range(3)]
    threads = [threading.Thread(target=write, args=item, daemon=True) for item in enumerate(ports)]
    threads += [threading.Thread(target=learn, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert sorted(seen) == list(range(3 * each))
    for worker in range(3):
        store.detach(worker)
    check_slots(store)


# -- processes ------------------------------------------------------------------------------------------------------------


def write_numbered(port, slots, numbers, length):
    """Fill whole unrolls of so many steps with one number each, in every field and row."""
    numbers = np.asarray(numbers)
    value, flag, nothing = numbers.astype(np.float32), numbers % 2 == 1, np.full(len(slots), np.nan, np.float32)
    env = EnvOutput(value[:, None], value, flag, flag, flag, numbers, nothing, nothing, np.empty((len(slots), 0)))
    port.writer.begin(slots, (), tuple(numbers.tolist()))
    for t in range(length):
        port.writer.write_env(slots, t, env)
        port.writer.write_agent(slots, t, Chosen(numbers, value[:, None]), numbers)
    port.writer.write_env(slots, length, env)


def write_for_ever(port, life, length):
    """A child: unroll after unroll, numbered."""
    number = life * 10_000
    try:
        while True:
            slots = port.acquire(timeout=0.2)
            if slots is not None:
                write_numbered(port, slots, np.arange(number, number + len(slots)), length)
                port.commit(slots)
                number += len(slots)
    except StoreClosed:
        os._exit(0)


def check_whole(batch):
    """That each column holds one unroll; returns their numbers."""
    numbers = batch.policy_version[0]
    for tensor in (batch.observation.squeeze(-1), batch.reward, batch.last_action, batch.action, batch.policy_version):
        assert torch.equal(tensor, numbers.to(tensor.dtype).expand_as(tensor)), tensor
    assert torch.equal(batch.behaviour_logits.squeeze(-1), numbers.float().expand_as(batch.action))
    assert torch.equal(batch.actor, numbers.int())
    for tensor in (batch.first, batch.terminated, batch.truncated):
        assert torch.equal(tensor, (numbers % 2 == 1).expand_as(tensor))
    return numbers.tolist()


def descriptors():
    """What this process has open."""
    gc.collect()
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that listed them
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return found


def count_shared_blocks():
    return sum("/memfd:beast" in name for name in descriptors())


class Writers:
    """Processes that fill a store, as many unrolls at a time as their number says."""

    def __init__(self, store, count):
        self.store, self.life = store, 0
        self.processes = [self._start(worker) for worker in range(count)]

    def _start(self, worker):
        self.life += 1
        port = self.store.attach(worker, 1 + worker % 3)
        context = multiprocessing.get_context("forkserver")
        process = context.Process(target=write_for_ever, args=(port, self.life, self.store.unroll_length), daemon=True)
        process.start()
        return process

    def kill(self, worker):
        """Kill a process; returns how many unrolls were lost half-written."""
        self.processes[worker].kill()
        self.processes[worker].join(10)
        self.processes[worker].close()
        return self.store.detach(worker)

    def start(self, worker):
        """Start another process in the place of one that was killed."""
        self.processes[worker] = self._start(worker)

    def leave(self):
        """Wait for processes to leave by themselves; returns their exit codes."""
        for process in self.processes:
            process.join(10)
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
            process.join(10)
            process.close()
        return codes


def test_every_batch_is_whole_and_nothing_hangs_while_writers_are_killed_at_random():
    multiprocessing.forkserver.ensure_running()  # its own two pipes are no leak
    before = len(descriptors())
    rng, kills, batch_size = random.Random(1), 24, 4
    store = UnrollStore(TINY, num_buffers=22, unroll_length=6)
    writers = Writers(store, 4)
    last_number, batches, killed, lost, resume_at = {}, 0, 0, 0, 0
    deadline = time.monotonic() + 120
    try:
        while killed < kills or batches < resume_at:
            assert time.monotonic() < deadline, f"stuck after {killed} kills and {batches} batches: {store.fill()}"
            slots = store.next_slots(batch_size, timeout=0.2)
            check_account(store, slots or ())
            if slots is None:
                continue
            batch, _ = store.read(slots)
            check_account(store, slots)
            store.free(slots)
            check_account(store)
            batches += 1
            for number in check_whole(batch):
                # First in, first out: the unrolls of one process come in the order in which it wrote them.
                assert number == last_number.get(number // 10_000, number // 10_000 * 10_000 - 1) + 1
                last_number[number // 10_000] = number
            if killed < kills and batches >= resume_at:
                time.sleep(rng.random() * 3e-3)  # any moment: acquiring, writing, committing
                worker = rng.randrange(4)
                lost += writers.kill(worker)
                check_account(store)
                writers.start(worker)
                killed += 1
                resume_at = batches + rng.randrange(1, 40)
        for worker in range(4):
            writers.kill(worker)
        check_slots(store)
        for worker in range(4):
            writers.start(worker)
    finally:
        store.close()
        codes = writers.leave()
    assert lost > kills  # unfinished unrolls were among the dead
    assert codes == [0] * 4  # the last ones left because the store was closed
    del writers, store
    assert len(descriptors()) == before


def test_a_closed_store_leaves_no_memory_and_no_descriptor_behind():
    blocks, before = count_shared_blocks(), len(descriptors())
    store = UnrollStore(NESTED, num_buffers=4, unroll_length=3)
    port = store.attach(0, 2)
    assert count_shared_blocks() > blocks
    store.detach(0)
    store.attach(0, 1)
    store.close()
    del store, port
    assert len(descriptors()) == before
    assert count_shared_blocks() == blocks
