"""What a run learns: the environment, the model, and where they compute."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from beast.acting.models import ModelChoice
from beast.core.data import Nested
from beast.envs import EnvChoice
from beast.store.unrolls import UnrollSpec


@dataclass(frozen=True)
class Task:
    """The environment and the model of a run, and the formats and devices that follow from them."""

    env: EnvChoice
    model: ModelChoice
    observation: Nested
    """Specs of one observation."""
    metric_names: tuple[str, ...]
    unroll: UnrollSpec
    """Spec of the unrolls that actors write."""
    device: torch.device
    dtype: torch.dtype
    """Dtype of the models' parameters, of actors and learner alike."""
    acting_device: torch.device
    """Device on which the forwards of actors run."""
