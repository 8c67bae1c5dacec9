"""Actors: what they write is what they saw and did, whatever process they live in."""

import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from beast.acting.actors import ActorArguments, ActorGroup, spread
from beast.acting.models import ModelChoice
from beast.core.data import Chosen, ModelInput, flatten, map_nested, restack
from beast.core.flat import FlatModel
from beast.core.seeds import seed_for
from beast.envs import EnvChoice
from beast.monobeast.actor import Actors, run
from beast.processes.status import LocalStatus, StatusBoard
from beast.processes.supervisor import Worker, Workers
from beast.store.unrolls import UnrollStore
from beast.store.weights import Weights

ENV_FIELDS = ("observation", "reward", "terminated", "truncated", "first", "last_action")
CLOSE = {"atol": 2e-5, "rtol": 1e-4}  # one forward over T rows rounds otherwise than T forwards over one
PONG = EnvChoice("PongNoFrameskip-v4", {"max_num_frames_per_episode": 60})


class Watch(LocalStatus):
    """A stopwatch that calls a function at each beat."""

    stopping = False

    def __init__(self, on_beat=lambda watch: None):
        self.on_beat, self.steps = on_beat, 0

    def beat(self, steps=0):
        self.steps += steps
        self.on_beat(self)

    def time(self, name):
        return nullcontext()


class Setting:
    """All that actors need, in one process; and the model whose weights they act with."""

    def __init__(self, env=None, model="mlp", use_lstm=True, length=7, num_buffers=24, seed=3):
        self.env = env or EnvChoice("Catch", {"rows": 5})
        self.length, self.seed = length, seed
        group = self.env.make_vector([0])
        self.choice = ModelChoice(model, use_lstm, group.observation_space, group.action_space)
        torch.manual_seed(0)
        self.model = self.choice.build()
        with torch.no_grad():
            self.model.policy.weight.mul_(10)  # so that a wrong input shows in the logits, and in the actions
        self.flat = FlatModel(self.model).parameters
        self.weights = Weights(self.flat.numel(), torch.float32)
        self.weights.publish(self.flat, 0)
        self.spec = self.choice.unroll_spec(self.model, group.observation_spec, group.metric_names)
        self.store = UnrollStore(self.spec, num_buffers, length)
        self.ports = []

    def arguments(self, actors, life=0):
        return ActorArguments(self.env, self.choice, tuple(actors), self.seed, life, self.length)

    def actors(self, *numbers, life=0, watch=None):
        """Actors with a port of their own: call it for a batch of one unroll of each."""
        port = self.store.attach(len(self.ports), len(numbers))
        self.ports.append(port)
        watch = watch or Watch()
        actors = Actors(self.arguments(numbers, life), torch.float32, self.weights, port.writer, watch)

        def unroll():
            slots = port.acquire(timeout=0)
            assert actors.unroll(slots)
            port.commit(slots)
            return self.batch(len(numbers))[0]

        return unroll

    def batch(self, size):
        slots = self.store.next_slots(size, timeout=1)
        batch, episodes = self.store.read(slots)
        self.store.free(slots)
        if not isinstance(self.spec.observation, dict | tuple) and self.spec.observation.stack > 1:
            frames = batch.observation
            batch = batch._replace(observation=restack(frames, batch.first, self.spec.observation.stack))
        return batch, episodes

    @torch.no_grad()
    def recompute(self, batch):
        """Logits and final state of this model on the rows 0 .. T-1 of a batch."""
        inputs = ModelInput(*map_nested(lambda tensor: tensor[:-1], batch.model_input()[:-1]))
        output, state = self.model(inputs, batch.core_state)
        return output.policy_logits, state


@pytest.fixture
def setting():
    made = []

    def make(**arguments):
        made.append(Setting(**arguments))
        return made[-1]

    yield make
    for one in made:
        one.store.close()


def concatenate(unrolls, name):
    """A field's rows 0 .. T-1 of successive unrolls, end to end."""
    return torch.cat([getattr(batch, name)[: len(batch.action)] for batch in unrolls]).numpy()


# -- streams --------------------------------------------------------------------------------------------------------------


def test_no_two_actors_share_a_stream_of_actions(setting):
    one = setting(length=20)
    together = one.actors(0, 1, 2)
    actions = concatenate([together() for _ in range(4)], "action").T
    assert actions.shape == (3, 80)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        # Three actions drawn apart agree on a third of the steps, on some more if the policy has a favourite.
        assert (actions[a] == actions[b]).mean() < 0.75


def test_actors_in_processes_of_their_own_share_no_stream_either(setting):
    one = setting(length=40)
    first, second = one.actors(0), one.actors(1)
    assert (concatenate([first(), first()], "action") == concatenate([second(), second()], "action")).mean() < 0.75


def test_a_restarted_process_draws_anew(setting):
    one = setting(length=40)
    first, again, restarted = one.actors(0), one.actors(0), one.actors(0, life=1)
    actions = first().action
    assert torch.equal(actions, again().action)
    assert (actions == restarted().action).float().mean() < 0.75


@pytest.mark.parametrize("case", ["catch", "pong"])
def test_unrolls_do_not_depend_on_how_actors_are_spread_over_processes(setting, case):
    one = setting() if case == "catch" else setting(env=PONG, model="impala_shallow", length=5, num_buffers=32)
    four = one.actors(0, 1, 2, 3)
    pairs = [one.actors(*actors) for actors in spread(4, 2)]
    for _ in range(6):
        whole, parts = four(), [unroll() for unroll in pairs]
        for name in (*ENV_FIELDS, "action", "policy_version"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts], dim=1)), name
        parted = torch.cat([part.behaviour_logits for part in parts], dim=1)
        torch.testing.assert_close(whole.behaviour_logits, parted, **CLOSE)
        for state, *others in zip(flatten(whole.core_state), *(flatten(p.core_state) for p in parts), strict=True):
            torch.testing.assert_close(state, torch.cat(others), **CLOSE)


def test_actors_are_spread_as_evenly_as_can_be():
    assert spread(7, 3) == [(0, 1, 2), (3, 4), (5, 6)]
    assert spread(2, 2) == [(0,), (1,)]
    assert sum(spread(48, 5), ()) == tuple(range(48))


# -- rows -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["catch", "pong"])
def test_row_t_of_one_unroll_is_row_0_of_the_next_in_every_field(setting, case):
    one = setting() if case == "catch" else setting(env=PONG, model="impala_shallow", length=4)
    unroll = one.actors(0, 1)
    last, seen_first, seen_action = unroll(), 0, 0
    for _ in range(12):
        batch = unroll()
        for name in ENV_FIELDS:
            assert torch.equal(getattr(batch, name)[0], getattr(last, name)[-1]), name
        last = batch
        seen_first += int(batch.first[0].sum())
        seen_action += int((batch.last_action[0] != 0).sum())
    assert seen_first > 0
    assert seen_action > 5


def test_the_actions_of_an_unroll_replayed_show_its_observations_and_rewards(setting):
    one = setting()
    unroll = one.actors(4)
    unrolls = [unroll() for _ in range(6)]
    replay = one.env.make_vector([seed_for(one.seed, "env", 4, 0)])
    env = replay.reset()
    for t, action in enumerate(concatenate(unrolls, "action")):
        for name in ENV_FIELDS:
            np.testing.assert_array_equal(getattr(env, name), concatenate(unrolls, name)[t], err_msg=f"{name}, row {t}")
        env = replay.step(action)
    assert concatenate(unrolls, "first").sum() > 6


def test_last_action_is_the_action_of_the_row_before_and_zero_on_first_rows(setting):
    one = setting(length=30)
    batch = one.actors(0, 1)()
    expected = torch.where(batch.first[1:], 0, batch.action)
    assert torch.equal(batch.last_action[1:], expected)
    assert not batch.last_action[0].any()
    assert (batch.action[batch.first[1:]] != 0).any()  # an ignored action is not the last one


@pytest.mark.parametrize("case", ["catch", "catch without memory", "pong"])
def test_behaviour_logits_are_those_of_the_weights_on_the_stored_rows(setting, case):
    pong = {"env": PONG, "model": "impala_shallow", "length": 6}
    one = setting(**pong) if case == "pong" else setting(use_lstm=case == "catch")
    unroll, shifted = one.actors(0, 1), 0.0
    for _ in range(5):
        batch = unroll()
        logits, _ = one.recompute(batch)
        torch.testing.assert_close(batch.behaviour_logits, logits, **CLOSE)
        shifted = max(shifted, float((batch.behaviour_logits.roll(1, dims=0) - logits).abs().max()))
    assert shifted > 1e-3  # what a row too early or late would look like


def test_actions_are_drawn_from_the_stored_logits_with_the_actors_own_noise(setting):
    one = setting()
    unroll = one.actors(5, 2)
    streams = [np.random.default_rng(seed_for(one.seed, "actions", actor, 0)) for actor in (5, 2)]
    distribution = one.choice.distribution()
    for _ in range(4):
        batch = unroll()
        noise = np.stack([distribution.noise(stream, one.length) for stream in streams], axis=1)
        drawn = distribution.sample(batch.behaviour_logits, torch.from_numpy(noise))
        assert torch.equal(batch.action, drawn)


def test_the_recurrent_state_of_an_unroll_is_the_one_carried_over_from_the_last(setting):
    one = setting()
    unroll = one.actors(0, 1)
    batch = unroll()
    assert not any(leaf.any() for leaf in batch.core_state)  # at the start of the run
    nonzero = 0
    for _ in range(6):
        _, carried = one.recompute(batch)
        batch = unroll()
        for stored, expected in zip(batch.core_state, carried, strict=True):
            torch.testing.assert_close(stored, expected, **CLOSE)
            nonzero += bool(stored.abs().max() > 1e-3)
    assert nonzero == 12


def test_games_are_reported_with_their_return_length_and_metrics(setting):
    one = setting(length=20)
    port = one.store.attach(0, 1)
    actors = Actors(one.arguments([0]), torch.float32, one.weights, port.writer, Watch())
    count = 0
    for _ in range(5):
        slots = port.acquire(timeout=0)
        assert actors.unroll(slots)
        port.commit(slots)
        _, episodes = one.batch(1)
        for episode in episodes:
            assert episode.episode_steps == 4
            assert episode.episode_return == 2 * episode.metrics["caught"] - 1
        count += len(episodes)
    assert count == 20  # four steps and a reset each, in a hundred rows


# -- versions ---------------------------------------------------------------------------------------------------------------


def test_each_unroll_is_stamped_with_the_version_that_was_newest_at_its_start(setting):
    one = setting()
    unroll = one.actors(0, 1)
    for version in (1, 5, 6):
        one.weights.publish(one.flat, version)
        assert (unroll().policy_version == version).all()
    assert (unroll().policy_version == 6).all()


def test_weights_published_during_an_unroll_are_not_used_before_the_next(setting):
    one = setting(use_lstm=False)
    old, new = one.flat.clone(), one.flat * 3

    def publish_at_the_third_step(watch):
        if watch.steps == 3:
            one.weights.publish(new, 1)

    unroll = one.actors(0, watch=Watch(publish_at_the_third_step))
    first, second = unroll(), unroll()
    assert (first.policy_version == 0).all()
    assert (second.policy_version == 1).all()
    for flat, mine, other in ((old, first, second), (new, second, first)):
        one.flat.copy_(flat)  # the model's parameters are views of it
        torch.testing.assert_close(mine.behaviour_logits, one.recompute(mine)[0], **CLOSE)
        assert (other.behaviour_logits - one.recompute(other)[0]).abs().max() > 1e-2


# -- life -------------------------------------------------------------------------------------------------------------------


def test_an_unroll_breaks_off_when_the_run_stops(setting):
    one = setting()

    def stop_at_the_third_step(watch):
        watch.stopping = watch.steps >= 3

    port = one.store.attach(0, 1)
    watch = Watch(stop_at_the_third_step)
    actors = Actors(one.arguments([0]), torch.float32, one.weights, port.writer, watch)
    assert actors.unroll(port.acquire(timeout=0)) is False
    assert watch.steps == 3


def test_a_beat_counts_the_steps_of_all_actors_of_the_process(setting):
    one = setting()
    watch = Watch()
    one.actors(0, 1, 2, watch=watch)()
    assert watch.steps == 3 * one.length


def test_an_actor_group_without_a_policy_writes_what_it_is_given(setting):
    one = setting(length=2)
    port = one.store.attach(0, 2)
    group = ActorGroup(one.arguments([0, 1]), port.writer, Watch())
    slots = port.acquire(timeout=0)
    assert group.row == 2
    group.begin(slots)
    group.remember((np.full((2, 256), 0.5), np.full((2, 256), -0.5)))
    assert group.noise.shape == (2, 3)
    assert not group.step(Chosen(np.array([0, 2]), np.ones((2, 3))), 7)
    assert group.step(Chosen(np.array([1, 1]), np.full((2, 3), 2.0)), 8)
    port.commit(slots)
    batch, _ = one.batch(2)
    assert batch.action.tolist() == [[0, 2], [1, 1]]
    assert batch.policy_version.tolist() == [[7, 7], [8, 8]]
    assert batch.actor.tolist() == [0, 1]
    assert batch.behaviour_logits[:, 0, 0].tolist() == [1.0, 2.0]
    assert [leaf.unique().tolist() for leaf in batch.core_state] == [[0.5], [-0.5]]


def test_actor_processes_commit_whole_unrolls_as_they_would_in_one_process_and_leave_when_told(setting):
    one = setting(num_buffers=16)
    board, told = StatusBoard(2), []
    workers = Workers(board, 0, 60.0, told.append)
    for index, actors in enumerate(spread(4, 2)):

        def arguments(count, index=index, actors=actors):
            ports = [one.store.attach(index, len(actors))]
            return ports, one.arguments(actors, count), torch.float32, one.weights

        workers.add(Worker(f"actor-{index}", index, run, arguments, str))
    end, unrolls = time.monotonic() + 60, []
    try:
        while len(unrolls) < 20:
            assert time.monotonic() < end, f"only {len(unrolls)} unrolls; told: {told}"
            workers.check()
            if (slots := one.store.next_slots(2, timeout=0.2)) is not None:
                unrolls.append(one.store.read(slots)[0])
                one.store.free(slots)
    finally:
        workers.stop(deadline=20.0)
    assert [worker.process.exitcode for worker in workers.workers] == [0, 0]
    assert told == []
    one.store.detach(0), one.store.detach(1)
    assert one.store.fill()["held"] == 0
    # Each pair of unrolls is one process's: both sequences must be those that one process alone would have written.
    reference = setting(num_buffers=48)
    pairs = [reference.actors(*actors) for actors in spread(4, 2)]
    expected = [{unroll().action.numpy().tobytes(): number for number in range(20)} for unroll in pairs]
    seen = [[table[key] for batch in unrolls if (key := batch.action.numpy().tobytes()) in table] for table in expected]
    assert sum(map(len, seen)) == 20
    assert all(numbers == list(range(len(numbers))) for numbers in seen)
    assert board.arrays["steps"].sum() >= 20 * 2 * one.length
