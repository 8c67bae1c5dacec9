"""Models by name, and what the unroll store must hold for them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import torch
from torch import nn

from beast.core import initialisation
from beast.core.data import ArraySpec, Nested, map_nested
from beast.core.distributions import Distribution, distribution_for
from beast.core.errors import ModelError
from beast.core.names import NoSuchModule, import_named
from beast.core.statistics import normalise_observations
from beast.envs.plain_spaces import to_plain
from beast.store.unrolls import UnrollSpec


@dataclass(frozen=True)
class ModelChoice:
    """A model by its name and the spaces; child processes receive this and import the model themselves."""

    model: str
    use_lstm: bool
    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    settings: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's own `Config`, as plain values, so that passing them on does not need the model's import."""
    normalise_observations: bool = False
    """Whether the model reads observations by their running mean and variance (`beast/core/statistics.py`)."""

    def module(self) -> Any:
        """Return the class that the name stands for.

        Raises:
            ModelError: if there is none.
        """
        model_class: Any = model_module(self.model).Model
        return model_class

    def build(self, weights: bool = True) -> nn.Module:
        """Make a float32 model with fresh weights on the CPU.

        Args:
            weights: whether to draw initial weights; without them it is made sooner, for weights that are read later.

        Raises:
            ModelError: if the model does not fit the spaces.
        """
        try:
            model_class = self.module()
            own = {"config": model_class.Config(**self.settings)} if hasattr(model_class, "Config") else {}
            with nullcontext() if weights else initialisation.unwanted():
                model: nn.Module = model_class(self.observation_space, self.action_space, self.use_lstm, **own)
            if self.normalise_observations:
                normalise_observations(model, self.observation_space)
        except ValueError as error:
            raise ModelError(f"--model {self.model}: {error}") from error
        return model

    def spaces(self) -> dict[str, Any]:
        """Return both spaces as plain data, for checkpoints."""
        return {"observation": to_plain(self.observation_space), "action": to_plain(self.action_space)}

    def distribution(self) -> Distribution:
        """Return the distribution of the action space."""
        return distribution_for(self.action_space)

    def unroll_spec(
        self, model: nn.Module, observation: Nested, metric_names: tuple[str, ...],
        columns: Mapping[str, ArraySpec] | None = None,
    ) -> UnrollSpec:  # fmt: skip
        """Return what the store must hold for this model.

        Args:
            model: a built one.
            observation: specs of one observation.
            metric_names: the environment's own metrics.
            columns: specs of the environment's columns from `info`.
        """
        distribution = self.distribution()

        def state_spec(leaf: torch.Tensor) -> ArraySpec:
            return ArraySpec(tuple(leaf.shape[1:]), leaf.numpy().dtype)

        core_state = map_nested(state_spec, model.initial_state(1))  # type: ignore[operator]
        return UnrollSpec(
            observation, distribution.action_spec, distribution.num_params, core_state, metric_names,
            dict(columns or {}), dict(getattr(model, "columns", {})),
        )  # fmt: skip


def model_module(name: str) -> Any:
    """Import the module of a model, which defines `Model` (see `models/base.py`).

    `models.mlp` is the user's own module if there is one, otherwise ours, which older checkpoints call so.

    Raises:
        ModelError: if there is none.
    """
    try:
        try:
            module = import_named(name if "." in name else f"beast.models.{name}")
        except NoSuchModule:
            if not name.startswith("models."):
                raise
            module = import_named(f"beast.{name}")
    except NoSuchModule as error:
        raise ModelError(
            f"no model {name!r}: use one of models/ (atari_shallow, impala_shallow, impala_resnet, multi_input, mlp) "
            "or a module of your own (my_package.my_module) that can be imported from here"
        ) from error
    if not hasattr(module, "Model"):
        raise ModelError(f"--model {name}: the module defines no class Model (see models/base.py)")
    return module
