"""What a run learns, by which model, and where."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from beast.acting.models import ModelChoice
from beast.core.data import Nested
from beast.envs import EnvChoice
from beast.store.unrolls import UnrollSpec


@dataclass(frozen=True)
class Task:
    """What is learned, by which model, where."""

    env: EnvChoice
    model: ModelChoice
    observation: Nested
    """Specs of one observation."""
    metric_names: tuple[str, ...]
    unroll: UnrollSpec
    """Of the unrolls that actors write."""
    device: torch.device
    dtype: torch.dtype
    """What models compute in, actors' and learner's alike."""
    acting_device: torch.device
    """Where actors' forwards run."""
