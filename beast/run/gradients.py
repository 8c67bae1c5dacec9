"""What computes the gradients of a run's algorithm, in whichever process that is done."""

from __future__ import annotations

import torch

from beast.acting.task import Task
from beast.core.algorithms import algorithm_module, algorithm_of
from beast.core.flat import FlatModel
from beast.core.gradients import Gradients
from beast.settings.config import Config


def make_gradients(config: Config, task: Task, model: torch.nn.Module, device: torch.device) -> Gradients:
    """The gradients of this run's loss.

    Args:
        config, task: of the run.
        model: float32; taken over, in the dtype that the run computes in.
        device: where they are computed.
    """
    algorithm = algorithm_of(algorithm_module(config.learner.algorithm), config.loss, task.model.distribution())
    acting = FlatModel(model, device, task.dtype)
    return Gradients(acting, algorithm, task.observation, device, config.learner.compile_model)
