"""The policy of actors: a model whose weights come from shared memory."""

from __future__ import annotations

from typing import Protocol

import torch

from beast.acting.models import ModelChoice
from beast.core.data import ACTION_MASK, Array, Chosen, ModelInput, Nested, map_nested
from beast.core.flat import FlatModel
from beast.store.weights import Weights


class Policy:
    """A policy that acts for E environments with one forward for each step.

    Args:
        choice: which model.
        dtype: dtype of its parameters and of `weights`.
        weights: where it reads newer parameters; None if they are loaded into `model`.
        num_envs: E.
        device: where it computes; its inputs and outputs are NumPy arrays in any case.
    """

    def __init__(
        self, choice: ModelChoice, dtype: torch.dtype, weights: Weights | None, num_envs: int,
        device: torch.device | None = None,
    ) -> None:  # fmt: skip
        self.choice = choice
        self.device = device or torch.device("cpu")
        self._flat = FlatModel(choice.build(weights=False).eval().requires_grad_(False), self.device, dtype)
        self.model = self._flat.model
        self._columns = tuple(getattr(self.model, "columns", {}))
        self.distribution = choice.distribution()
        self.version = -1
        self._weights = weights
        self._num_envs = num_envs
        self.forget()

    def forget(self) -> None:
        """Return to the initial recurrent state."""
        self.core_state = self.initial_state(self._num_envs)

    def initial_state(self, num_envs: int) -> Nested:
        """Return the initial recurrent state on the device, leaves `[num_envs, ...]`."""
        state: Nested = self.model.initial_state(num_envs)  # type: ignore[operator]
        return map_nested(lambda leaf: leaf.to(self.device), state)

    def refresh(self) -> int:
        """Load the newest weights and return their version."""
        assert self._weights is not None
        if self.version < 0 or self._weights.version != self.version:
            self.version = self._weights.read(self._flat.parameters, self._flat.statistics)
        return self.version

    def act(self, env: ActingInput, noise: Array | None) -> Chosen:
        """Choose actions for all environments and update the recurrent state.

        Args:
            env: the rows to act on, `[E, ...]`.
            noise: `[E, noise_size]` for sampling; None takes the most probable action.
        """
        chosen, self.core_state = self.forward(env, noise, self.core_state)
        return chosen

    # inference_mode from the first call on: otherwise a graph attached to a shared buffer leaks memory at every step.
    @torch.inference_mode()
    def forward(self, env: ActingInput, noise: Array | None, core_state: Nested) -> tuple[Chosen, Nested]:
        """Do as `act` for any environments and any recurrent state; return the new state too.

        NaN in a state would remain until the end of the episode, so the affected entries are reset to zero.
        """

        def row(array: Array) -> torch.Tensor:
            return torch.from_numpy(array).to(self.device, non_blocking=True).unsqueeze(0)

        fields = (name for name in ModelInput._fields if name != "resets")  # which mean nothing to a single row
        inputs = ModelInput(*(map_nested(row, getattr(env, name)) for name in fields))
        output, core_state = self.model(inputs, core_state)
        logits, draw = output.policy_logits.squeeze(0), self.distribution
        if ACTION_MASK in inputs.extra:
            logits = draw.masked(logits, inputs.extra[ACTION_MASK].squeeze(0))
        action = draw.mode(logits) if noise is None else draw.sample(logits, row(noise).squeeze(0))
        core_state = map_nested(lambda leaf: leaf.nan_to_num(0.0, torch.inf, -torch.inf), core_state)
        extra = {name: output.extra[name].squeeze(0).cpu().numpy() for name in self._columns}
        return Chosen(action.cpu().numpy(), logits.cpu().numpy(), extra), core_state

    def state(self) -> Nested:
        """Return the recurrent state as arrays `[E, ...]`."""
        return map_nested(lambda leaf: leaf.cpu().numpy(), self.core_state)

    def restore(self, state: Nested) -> None:
        """Continue with a recurrent state that `state` returned."""
        self.core_state = map_nested(lambda array: torch.from_numpy(array).to(self.device), state)


class ActingInput(Protocol):
    """The part of a row that a policy reads; an EnvOutput has it."""

    @property
    def observation(self) -> Nested:
        """Observations, leaves `[E, ...]`."""

    @property
    def reward(self) -> Array:
        """Unclipped rewards of the last actions, `[E]` float32."""

    @property
    def last_action(self) -> Array:
        """The last actions as stored, `[E]` (+ `[N]`)."""

    @property
    def first(self) -> Array:
        """Whether each row is the first after a reset, `[E]` bool."""

    @property
    def extra(self) -> dict[str, Array]:
        """Columns from the environment by name, `[E, ...]`."""
