"""Unrolls of a task, as its actors write them, held against the table in `beast/core/data.py`."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from gymnasium import spaces

from beast.acting.actors import ActorArguments
from beast.core.data import ModelInput, flatten, map_nested, restack
from beast.core.flat import FlatModel
from beast.monobeast.actor import Actors
from beast.processes.status import Clock, LocalStatus
from beast.run.resolve import resolve_config
from beast.store.unrolls import UnrollStore
from beast.store.weights import Weights

ENV_FIELDS = ("observation", "reward", "terminated", "truncated", "first", "last_action")


def unrolls(flags, count, length=16, num_envs=2):
    """The task that flags settle on, and so many successive batches of one unroll from each of its environments."""
    _, task = resolve_config({"num_actors": num_envs, "batch_size": 2, "precision": "float32", **flags})
    torch.manual_seed(0)
    model = task.model.build()
    flat = FlatModel(model)
    weights = Weights.like(flat)
    weights.publish(flat.parameters, 0, flat.statistics if len(flat.statistics) else None)
    store = UnrollStore(task.unroll, 2 * num_envs, length)
    try:
        port = store.attach(0, num_envs)
        arguments = ActorArguments(task.env, task.model, tuple(range(num_envs)), 5, 0, length)
        actors = Actors(arguments, torch.float32, weights, port.writer, LocalStatus(lambda: False, Clock()))
        batches, episodes = [], []
        for _ in range(count):
            slots = port.acquire(timeout=0)
            assert actors.unroll(slots)
            port.commit(slots)
            taken = store.next_slots(num_envs, timeout=1)
            batch, ended = store.read(taken)
            store.free(taken)

            def rebuilt(spec, leaf, first=batch.first):
                return restack(leaf, first, spec.stack) if spec.stack > 1 else leaf

            batches.append(batch._replace(observation=map_nested(rebuilt, task.observation, batch.observation)))
            episodes += ended
        actors.close()
    finally:
        store.close()
    return task, model, batches, episodes


def check_table(task, model, batches, lives=False):
    """Every promise of the table; returns how many episodes ended."""
    ends = 0
    for batch in batches:
        over = batch.terminated | batch.truncated
        assert not (batch.terminated & batch.truncated).any()
        assert not (batch.first[1:] & ~over[:-1]).any()
        assert lives or torch.equal(batch.first[1:], over[:-1])
        first, action = batch.first[1:], batch.action
        wide = first.reshape(*first.shape, *[1] * (action.ndim - 2))
        assert torch.equal(batch.last_action[1:], torch.where(wide, torch.zeros_like(action), action))
        assert not batch.reward[batch.first].any()
        assert not (batch.first & over).any()
        assert batch.reward.isfinite().all()
        ends += int(batch.first[1:].sum())
        check_observations(task.model.observation_space, task.observation, batch.observation)
        with torch.no_grad():  # the model sees the same rows here as it saw there, one at a time
            output, _ = model(ModelInput(*map_nested(lambda x: x[:-1], batch.model_input()[:-1])), batch.core_state)
        torch.testing.assert_close(output.policy_logits, batch.behaviour_logits, rtol=1e-3, atol=1e-4)
    for before, after in itertools.pairwise(batches):
        for name in ENV_FIELDS:
            for last, row in zip(flatten(getattr(before, name)), flatten(getattr(after, name)), strict=True):
                assert torch.equal(last[-1], row[0]), name
    assert batches[0].first[0].all()
    return ends


def check_observations(space, spec, observation):
    """Each row is of the space that the model was built for."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        keys = list(space.spaces) if isinstance(space, spaces.Dict) else range(len(space.spaces))
        for key in keys:
            check_observations(space.spaces[key], spec[key], observation[key])
        return
    array = observation.numpy()
    assert array.dtype == spec.dtype
    assert array.shape[2:] == space.shape
    for one in array.reshape(-1, *space.shape):
        if isinstance(space, spaces.Box):  # bounds of floats are what an environment says, and seldom what it keeps to
            assert space.dtype.kind == "f" or ((space.low <= one) & (one <= space.high)).all()
        else:
            assert space.contains(one if space.shape else np.int64(one))
