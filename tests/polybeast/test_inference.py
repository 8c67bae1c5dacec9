"""Inference under load, and how many groups workers have."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from beast.core.flat import FlatModel
from beast.polybeast.batcher import Batcher, Waiting
from beast.polybeast.inference import attend
from beast.polybeast.mailbox import Request
from beast.polybeast.train import crew
from beast.run.resolve import resolve_config
from beast.store.weights import Weights


def test_whoever_always_has_work_still_gives_signs_of_life_and_sees_the_stop() -> None:
    """Two groups, of which one always waits: as with a network that is slower than the environments."""
    served: list[Request] = []
    beats = 0

    def beat() -> None:
        nonlocal beats
        beats += 1

    batcher = Batcher({0: 1, 1: 1}, 1, 1, 1.0)

    def receive(timeout: float) -> None:
        batcher.add(Request(len(served) % 2, len(served)), now=0.0)

    def answer(batch: list[Waiting]) -> None:
        served.extend(waiting.request for waiting in batch)

    attend(batcher, lambda group: 0, answer, receive, lambda: len(served) >= 1_000, beat)
    assert len(served) == 1_000
    assert beats >= 1_000


@pytest.mark.parametrize(
    ("workers", "device", "pace", "groups"),
    [
        (1, "cpu", "free", 2),
        (2, "cpu", "free", 1),
        (16, "cuda", "free", 2),
        (16, "cuda", "unroll", 2),
        (16, "cuda", "step", 1),
    ],
)
def test_workers_have_two_groups_where_one_can_step_beside_the_others_forward(
    workers: int, device: str, pace: str, groups: int
) -> None:
    flags = {"env": "Catch-v0", "trainer": "polybeast", "num_actors": 4 * workers, "num_actor_processes": workers}
    config, task = resolve_config(flags | {"pace": pace, "inference": "thread", "device": "cpu"})
    weights = Weights.like(FlatModel(task.model.build()))
    plans = crew(dataclasses.replace(task, device=torch.device(device)), config, task.unroll, weights).workers
    assert [plan.groups for plan in plans] == [(4 // groups,) * groups] * workers
