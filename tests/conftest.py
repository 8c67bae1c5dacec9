"""What all tests share."""

from __future__ import annotations

import multiprocessing

import pytest
import torch

from beast.workers import PRELOAD


@pytest.fixture(scope="session", autouse=True)
def _one_compute_thread():
    """Test processes run beside each other: more threads than cores make small models ten times slower."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _fork_server_with_torch():
    """A process has one fork server for all tests: whichever starts it, its children must not import torch each."""
    multiprocessing.set_forkserver_preload(PRELOAD)
