"""The terms of the system: what environments return, what policies return, what unrolls and batches hold.

T is the unroll length in steps, B counts unrolls in a batch, E environments stepped together, P the parameters of the
policy's distribution. An unroll has T steps and T+1 rows; row T of one unroll is row 0 of the next.

Row alignment (THE table; everything else refers to it):

    ==========  ====================================================  =============================================
    row t       from the environment, on arriving at t                from the agent, on leaving t
    ==========  ====================================================  =============================================
    0 .. T-1    observation, reward, terminated, truncated, first,    action, behaviour_logits
                last_action
    T           the same (bootstraps only)                            nothing: it is row 0 of the next unroll
    ==========  ====================================================  =============================================

- reward[t], terminated[t] and truncated[t] are the outcome of action[t-1]; last_action[t] is action[t-1].
- Environments reset on the step *after* an episode's end (Gymnasium's next-step autoreset). So the last observation of
  an episode has a row of its own, and a truncated step bootstraps from the value of exactly that observation.
- first[t] marks the row that such a reset produced: action[t-1] was ignored, last_action[t] is zero, reward[t] is zero,
  the recurrent state is zeroed before row t, and the transition t-1 -> t is no part of any loss.
- terminated[t] without a first[t+1] is a lost life: the return ends there, but the game and the recurrent state continue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

# A leaf, or a dict or tuple of these: observations and recurrent states may nest to any depth.
Nested = Any
Array = npt.NDArray[Any]

ACTION_MASK = "action_mask"
"""Name of the column of allowed choices, `[..., M]` bool: policies give the others probability zero."""

DISCOUNTED_RETURN = "discounted_return"
"""The column that holds the discounted sum of an episode's rewards up to each row, `[E]` float32, where rewards are scaled."""


@dataclass(frozen=True)
class ArraySpec:
    """The shape and dtype of one field, without its leading time and batch axes."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stack: int = 1
    """If it is more than 1, axis 0 holds this many successive frames, newest last, blank (zero) before the episode's
    first one: the store then keeps every frame once and `restack` rebuilds the stacks."""


class EnvOutput(NamedTuple):
    """What E environments return on one step: NumPy arrays with leading axis `[E]`."""

    observation: Nested
    """`[E, ...]`, nested like the observation space."""
    reward: Array
    """`[E]` float32: unclipped reward of the action just taken."""
    terminated: Array
    """`[E]` bool: the return ends here (a true end, or a lost life where lives count as episodes)."""
    truncated: Array
    """`[E]` bool: the episode was cut here, and its return continues."""
    first: Array
    """`[E]` bool: this row starts a new episode; the action before it was ignored."""
    last_action: Array
    """`[E]` (+ `[N]`): the action just taken, as stored; zero on first rows."""
    episode_return: Array
    """`[E]` float32: unclipped return of the full game that ended on this row; NaN elsewhere, and if it is not finite."""
    episode_steps: Array
    """`[E]` float32: agent steps of that game, NaN elsewhere."""
    metrics: Array
    """`[E, M]` float32: the environment's own `metric_names`, at a game's end, NaN elsewhere."""
    extra: dict[str, Array] = {}  # noqa: RUF012 - nobody writes to it
    """`[E, ...]` by name: keys of `info` that environment or algorithm declare as columns; zero where a key is missing."""


class Chosen(NamedTuple):
    """What a policy returns for E environments, as arrays."""

    action: Array
    """`[E]` (+ `[N]`): the actions, as stored."""
    logits: Array
    """`[E, P]` float32: parameters of the distributions that the actions were sampled from."""
    extra: dict[str, Array] = {}  # noqa: RUF012 - nobody writes to it
    """`[E, ...]` by name: the model's own columns."""


class ModelInput(NamedTuple):
    """What a model reads: tensors `[T, B, ...]` (T = 1 when acting)."""

    observation: Nested
    """`[T, B, ...]` in the environment's own dtype (uint8 pixels stay uint8 until the model converts them)."""
    reward: torch.Tensor
    """`[T, B]` float32, unclipped."""
    last_action: torch.Tensor
    """`[T, B]` int64, `[T, B, N]` int64 or `[T, B, N]` float32, as the action space asks."""
    first: torch.Tensor
    """`[T, B]` bool: the recurrent state is zeroed before this row."""
    extra: dict[str, torch.Tensor] = {}  # noqa: RUF012 - nobody writes to it
    """`[T, B, ...]` by name: columns from the environment."""
    resets: tuple[int, ...] | None = None
    """The rows with a `first`, if the host knows them: then it need not wait for a GPU to read `first`. None: it does not."""


class ModelOutput(NamedTuple):
    """What a model returns: float32, whatever the model computes in."""

    policy_logits: torch.Tensor
    """`[T, B, P]` float32: parameters of the policy's distribution (`beast/core/distributions.py`)."""
    value: torch.Tensor
    """`[T, B]` float32."""
    extra: dict[str, torch.Tensor] = {}  # noqa: RUF012 - nobody writes to it
    """`[T, B, ...]` by name: what the model declares as `columns`, stored with the unroll when it acts."""


UNROLL_FIRST = ("core_state", "actor")
"""Fields of a batch whose unrolls lie along axis 0; along axis 1 in all others."""


class Batch(NamedTuple):
    """A batch of B unrolls, time first. The table above says what a row means."""

    observation: Nested
    """`[T+1, B, ...]`; a stacked field comes from the store as frames `[B, stack + T + 1, ...]`, see `restack`."""
    reward: torch.Tensor
    """`[T+1, B]` float32, unclipped."""
    terminated: torch.Tensor
    """`[T+1, B]` bool."""
    truncated: torch.Tensor
    """`[T+1, B]` bool."""
    first: torch.Tensor
    """`[T+1, B]` bool."""
    last_action: torch.Tensor
    """`[T+1, B]` (+ `[N]`)."""
    action: torch.Tensor
    """`[T, B]` (+ `[N]`): what the behaviour policy chose."""
    behaviour_logits: torch.Tensor
    """`[T, B, P]` float32: parameters of its distribution (mu of the paper)."""
    core_state: Nested
    """The recurrent state before row 0, leaves `[B, ...]`."""
    policy_version: torch.Tensor
    """`[T, B]` int64: the version (number of updates) of the policy that acted on each row."""
    actor: torch.Tensor | tuple[()] = ()
    """`[B]` int32: number of the actor that collected each unroll."""
    extra: dict[str, torch.Tensor] = {}  # noqa: RUF012 - nobody writes to it
    """Columns from the environment by name, `[T+1, B, ...]`."""
    agent_extra: dict[str, torch.Tensor] = {}  # noqa: RUF012 - nobody writes to it
    """Columns from the model that acted by name, `[T, B, ...]`."""

    def model_input(self) -> ModelInput:
        """Return all T+1 rows as the model reads them."""
        return ModelInput(self.observation, self.reward, self.last_action, self.first, self.extra)

    def unrolls(self, which: slice) -> Batch:
        """Return a copy of some of its unrolls, whose frame stacks must have been rebuilt."""

        def chosen(name: str) -> Nested:
            by_time = name not in UNROLL_FIRST
            return map_nested(lambda x: (x[:, which] if by_time else x[which]).contiguous(), getattr(self, name))

        return Batch(*map(chosen, self._fields))


def map_nested(function: Callable[..., Any], tree: Nested, *others: Nested) -> Nested:
    """Apply a function leaf by leaf to trees of one structure (dicts and tuples nest; anything else is a leaf)."""
    if isinstance(tree, dict):
        return {key: map_nested(function, value, *(o[key] for o in others)) for key, value in tree.items()}
    if isinstance(tree, tuple):
        mapped = (map_nested(function, *values) for values in zip(tree, *others, strict=True))
        return type(tree)(*mapped) if hasattr(tree, "_fields") else tuple(mapped)
    return function(tree, *others)


def flatten(tree: Nested) -> list[Any]:
    """Return the leaves of a tree, in order."""
    leaves: list[Any] = []
    map_nested(leaves.append, tree)
    return leaves


def restack(frames: torch.Tensor, first: torch.Tensor, stack: int) -> torch.Tensor:
    """Rebuild stacked observations from frames that were stored once.

    Args:
        frames: `[B, 1 + (stack - 1) + (T + 1), ...]`: one blank frame, the history before row 0, one frame for each row.
        first: `[T+1, B]` bool; a stack is blank before a first row.
        stack: number of frames in a stack.

    Returns:
        `[T+1, B, stack, ...]`, newest frame last, equal to what the environment returned.
    """
    rows, batch = first.shape
    device = frames.device
    # Row t's newest frame lies at index stack + t; position k of its stack at 1 + t + k.
    at = 1 + torch.arange(rows, device=device)[:, None] + torch.arange(stack, device=device)  # [T+1, stack]
    row = torch.arange(rows, device=device)[:, None].expand(rows, batch)
    # The frame of the newest first row at or before t; 0 reaches back into the history before row 0.
    opening = torch.where(first, row + stack, 0).cummax(dim=0).values  # [T+1, B]
    index = at[:, None, :]  # [T+1, 1, stack]
    index = torch.where(index >= opening[:, :, None], index, 0)  # frame 0 is the blank one
    index = index + (torch.arange(batch, device=device) * frames.shape[1])[None, :, None]
    flat = frames.reshape(batch * frames.shape[1], -1)
    return flat.index_select(0, index.reshape(-1)).view(rows, batch, stack, *frames.shape[2:])
