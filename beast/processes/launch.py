"""What torchrun has told this process: which of several ranks it is. Without torchrun it is the only one."""

from __future__ import annotations

import os
from typing import NamedTuple


class Launch(NamedTuple):
    """This process's place among those that were started together."""

    rank: int = 0
    size: int = 1
    """How many ranks there are, on all machines."""
    local_rank: int = 0
    local_size: int = 1
    """How many there are on this machine, which share it."""


def launch() -> Launch:
    """Read the environment that torchrun gives its processes."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Launch()
    return Launch(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
