"""The gradients of a run's algorithm, for the process that computes them."""

from __future__ import annotations

import torch

from beast.acting.task import Task
from beast.core.algorithms import algorithm_module, algorithm_of
from beast.core.flat import FlatModel
from beast.core.gradients import Gradients
from beast.settings.config import Config


def make_gradients(config: Config, task: Task, model: torch.nn.Module, device: torch.device) -> Gradients:
    """Make what turns batches into gradients.

    Args:
        config: settings of the run.
        task: what is learned.
        model: float32 model, which is converted to the dtype of the run and kept.
        device: device to compute on.
    """
    algorithm = algorithm_of(algorithm_module(config.learner.algorithm), config.loss, task.model.distribution())
    acting = FlatModel(model, device, task.dtype)
    return Gradients(acting, algorithm, task.observation, device, config.learner.compile_model)
