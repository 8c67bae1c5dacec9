"""The policy as actors use it: a model whose weights come from shared memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from torch import nn

from beast.data import ACTION_MASK, Array, ArraySpec, Chosen, ModelInput, Nested, map_nested
from beast.distributions import Distribution, distribution_for
from beast.flat import FlatModel
from beast.names import NoSuchModule, import_named
from beast.spaces import to_plain
from beast.unrolls import UnrollSpec
from beast.weights import Weights


class ModelError(ValueError):
    """A model cannot be found or built. The message is one line that says what to do."""


@dataclass(frozen=True)
class ModelChoice:
    """Which model; names and spaces only, so that it travels to child processes, and each imports for itself."""

    model: str
    use_lstm: bool
    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the model's own `Config`, by field; plain values, so that who only passes this on need not import the model."""

    def module(self) -> Any:
        """The class that the name stands for.

        Raises:
            ModelError: if there is none.
        """
        model_class: Any = model_module(self.model).Model
        return model_class

    def build(self) -> nn.Module:
        """A fresh float32 model on the CPU.

        Raises:
            ModelError: if the model does not fit the spaces.
        """
        try:
            model_class = self.module()
            own = {"config": model_class.Config(**self.settings)} if hasattr(model_class, "Config") else {}
            model: nn.Module = model_class(self.observation_space, self.action_space, self.use_lstm, **own)
        except ValueError as error:
            raise ModelError(f"--model {self.model}: {error}") from error
        return model

    def spaces(self) -> dict[str, Any]:
        """Both spaces as plain data, for checkpoints."""
        return {"observation": to_plain(self.observation_space), "action": to_plain(self.action_space)}

    def distribution(self) -> Distribution:
        return distribution_for(self.action_space)

    def unroll_spec(
        self, model: nn.Module, observation: Nested, metric_names: tuple[str, ...],
        columns: Mapping[str, ArraySpec] | None = None,
    ) -> UnrollSpec:  # fmt: skip
        """What the store must hold for this model in that environment, with these columns from its `info`."""
        distribution = self.distribution()

        def state_spec(leaf: torch.Tensor) -> ArraySpec:
            return ArraySpec(tuple(leaf.shape[1:]), leaf.numpy().dtype)

        core_state = map_nested(state_spec, model.initial_state(1))  # type: ignore[operator]
        return UnrollSpec(
            observation, distribution.action_spec, distribution.num_params, core_state, metric_names,
            dict(columns or {}), dict(getattr(model, "columns", {})),
        )  # fmt: skip


def model_module(name: str) -> Any:
    """The module of a model: it defines `Model` (see `models/base.py`).

    `models.mlp` is the user's; only where there is none of this name it is ours, which was once called so.

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


class Policy:
    """Acts for E environments with one forward a step.

    Args:
        choice: which model.
        dtype: what it computes in, the dtype of `weights`.
        weights: where newer parameters come from; None: they are loaded into `model`.
        num_envs: E.
        device: where it computes; arrays go in and come out all the same.
    """

    def __init__(
        self, choice: ModelChoice, dtype: torch.dtype, weights: Weights | None, num_envs: int,
        device: torch.device | None = None,
    ) -> None:  # fmt: skip
        self.choice = choice
        self.device = device or torch.device("cpu")
        self._flat = FlatModel(choice.build().eval().requires_grad_(False), self.device, dtype)
        self.model = self._flat.model
        self._columns = tuple(getattr(self.model, "columns", {}))
        self.distribution = choice.distribution()
        self.version = -1
        self._weights = weights
        self._num_envs = num_envs
        self.forget()

    def forget(self) -> None:
        """Back to the initial recurrent state."""
        self.core_state = self.initial_state(self._num_envs)

    def initial_state(self, num_envs: int) -> Nested:
        """On the device, leaves `[num_envs, ...]`."""
        state: Nested = self.model.initial_state(num_envs)  # type: ignore[operator]
        return map_nested(lambda leaf: leaf.to(self.device), state)

    def refresh(self) -> int:
        """Take the newest weights; returns their version."""
        assert self._weights is not None
        if self.version < 0 or self._weights.version != self.version:
            self.version = self._weights.read(self._flat.parameters, self._flat.statistics)
        return self.version

    def act(self, env: Seen, noise: Array | None) -> Chosen:
        """One step for all environments, the recurrent state carried along.

        Args:
            noise: `[E, noise_size]` for a draw; None: the most likely action.
        """
        chosen, self.core_state = self.forward(env, noise, self.core_state)
        return chosen

    # inference_mode from the very first call: a graph that hangs on a shared buffer leaks a little every step.
    @torch.inference_mode()
    def forward(self, env: Seen, noise: Array | None, core_state: Nested) -> tuple[Chosen, Nested]:
        """`act` for any environments and any state; returns the new state too.

        NaN in a state would stay there until the episode's end: those parts begin again at zero.
        """

        def row(array: Array) -> torch.Tensor:
            return torch.from_numpy(array).to(self.device, non_blocking=True).unsqueeze(0)

        inputs = ModelInput(*(map_nested(row, getattr(env, name)) for name in ModelInput._fields))
        output, core_state = self.model(inputs, core_state)
        logits, draw = output.policy_logits.squeeze(0), self.distribution
        if ACTION_MASK in inputs.extra:
            logits = draw.masked(logits, inputs.extra[ACTION_MASK].squeeze(0))
        action = draw.mode(logits) if noise is None else draw.sample(logits, row(noise).squeeze(0))
        core_state = map_nested(lambda leaf: leaf.nan_to_num(0.0, torch.inf, -torch.inf), core_state)
        extra = {name: output.extra[name].squeeze(0).cpu().numpy() for name in self._columns}
        return Chosen(action.cpu().numpy(), logits.cpu().numpy(), extra), core_state

    def state(self) -> Nested:
        """The recurrent state as arrays `[E, ...]`."""
        return map_nested(lambda leaf: leaf.cpu().numpy(), self.core_state)

    def restore(self, state: Nested) -> None:
        """Go on with a recurrent state that `state` gave."""
        self.core_state = map_nested(lambda array: torch.from_numpy(array).to(self.device), state)


class Seen(Protocol):
    """The part of an EnvOutput that a policy looks at."""

    @property
    def observation(self) -> Nested: ...
    @property
    def reward(self) -> Array: ...
    @property
    def last_action(self) -> Array: ...
    @property
    def first(self) -> Array: ...
    @property
    def extra(self) -> dict[str, Array]: ...


def seed_for(seed: int, stream: str, *indices: int) -> int:
    """An independent 31-bit seed for each (seed, what for, who): no two actors ever share a stream."""
    entropy = [seed, *stream.encode(), *indices]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0] >> 1)
