"""What all tests share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_compute_thread():
    """Test processes run beside each other: more threads than cores make small models ten times slower."""
    torch.set_num_threads(1)
