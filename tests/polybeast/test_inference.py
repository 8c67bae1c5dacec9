"""Inference under load, and how many groups workers have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from beast.polybeast.batcher import Batcher, Waiting
from beast.polybeast.inference import attend
from beast.polybeast.mailbox import Request
from beast.polybeast.train import _groups


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
    ("serial", "workers", "device", "pace", "groups"),
    [
        (True, 1, "cpu", "free", 1),
        (True, 1, "cuda", "free", 1),
        (False, 1, "cpu", "free", 2),
        (False, 2, "cpu", "free", 1),
        (False, 16, "cuda", "free", 2),
        (False, 16, "cuda", "unroll", 2),
        (False, 16, "cuda", "step", 1),
    ],
)
def test_workers_have_two_groups_where_one_can_step_beside_the_others_forward(
    serial: bool, workers: int, device: str, pace: str, groups: int
) -> None:
    task: Any = SimpleNamespace(device=torch.device(device))
    config: Any = SimpleNamespace(actors=SimpleNamespace(serial=serial), pace=SimpleNamespace(pace=pace))
    assert _groups(workers, config, task) == groups
