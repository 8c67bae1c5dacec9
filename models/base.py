"""The contract of a model, and the parts that the built-in ones share.

The contract, for a model of your own (`--model my_pkg.my_module`): the module defines `Model`, a `torch.nn.Module` with

    __init__(self, observation_space, action_space, use_lstm: bool)    with a `Config`: also config
    initial_state(self, batch_size: int) -> tuple          recurrent state, any nesting of tensors, every leaf [B, ...]
    forward(self, inputs: ModelInput, core_state) -> (ModelOutput, core_state)

`inputs` holds [T, B, ...] tensors; T is 1 when acting. Where `inputs.first[t, b]` is set, the state of b is zeroed
before row t. A model without memory returns `()` from `initial_state` and hands `core_state` back. Set
`supports_bfloat16 = True` on the class if its weights may be bfloat16 (then convert inputs to the weights' dtype); it is
float32 otherwise. Subclassing `ActorCritic` and writing `torso` alone is the short way (`from beast.models.base import
ActorCritic`; see `models/mlp.py`).

The class may also have `Config`, a frozen dataclass whose fields become flags; and `columns`, a dict of ArraySpec by name:
arrays that its `ModelOutput.extra` holds, `[T, B, ...]`, and that are kept with the unroll (`Batch.agent_extra`).
`micro_batch_rows` is how many rows a CPU learns from at a time in float32, for a model whose activations need much memory;
in bfloat16 it is twice as many.
`baseline`, an `nn.Linear` with one output and a bias from which values come unchanged, is what `--popart` asks for.
`beast.core.statistics.RunningStatistics` are running means and variances that all actors and evaluation share.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from beast.core import initialisation
from beast.core.data import ModelInput, ModelOutput, Nested
from beast.core.distributions import UNBOUNDED, distribution_for

LSTM_SIZE = 256


@dataclass(frozen=True)
class PolicyConfig:
    """Model"""

    state_independent_std: bool = False
    """Learn one standard deviation for each number of a continuous action, whatever is observed, instead of letting the
    network say it."""
    initial_std: float | None = 1.0
    """Standard deviation of each number of a continuous action at first, before it is squashed into its bounds; none means
    1 / sqrt(N) for actions of N numbers, so that all of them together stray as far as one does."""

    def __post_init__(self) -> None:
        if self.initial_std is not None and not 0 < self.initial_std < math.inf:
            raise ValueError(f"--initial_std must be a positive number or none, got {self.initial_std}")


class Head(nn.Linear):
    """A linear layer that computes in float32, whatever dtype its weights have: logits rounded to bfloat16 are too coarse."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `[..., out]` float32 for `[..., in]` in any dtype."""
        return F.linear(x.float(), self.weight.float(), self.bias.float())


@dataclass(frozen=True)
class ImageConfig(PolicyConfig):
    """Model (pictures)"""

    center_pixels: bool = True
    """Subtract from each channel of a picture its own mean. Without it the network sees pixels / 255, as in the paper."""
    initialisation: str = "orthogonal"
    """How weights are initialised: orthogonal, with a nearly uniform first policy, or pytorch, as its layers do by default."""
    lstm_size: int = LSTM_SIZE
    """How many units each layer of the LSTM has; 0 means as many as it has inputs."""
    lstm_layers: int = 1
    """How many layers the LSTM has."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_initialisation(self.initialisation)
        for name, least in (("lstm_size", 0), ("lstm_layers", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")

    @property
    def lstm(self) -> tuple[int, int]:
        """The LSTM's size and number of layers, as `ActorCritic` takes them."""
        return self.lstm_size, self.lstm_layers


class Memory(nn.Module):
    """An LSTM whose state (h, c), both `[B, layers * size]`, is zeroed before each first row."""

    def __init__(self, input_size: int, size: int = LSTM_SIZE, layers: int = 1) -> None:
        super().__init__()
        self.size, self.layers = size, layers
        self.lstm = nn.LSTM(input_size, size, layers)

    def initial_state(self, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return zeros: (h, c), both `[batch_size, layers * size]`."""
        zeros = torch.zeros(batch_size, self.layers * self.size)
        return zeros, zeros.clone()

    def forward(
        self, x: torch.Tensor, first: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor],
        resets: tuple[int, ...] | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:  # fmt: skip
        """Return `[T, B, size]` and the new state for inputs `[T, B, F]` and first rows `[T, B]`.

        The LSTM is called once for each stretch of rows without a reset.

        Args:
            x: the inputs.
            first: the rows before which a state is zeroed.
            state: the state before row 0.
            resets: as in `ModelInput`. For a single row, which is what actors have, they make no difference.
        """
        by_layer = (s.to(x.dtype).reshape(-1, self.layers, self.size) for s in state)
        h, c = (s.transpose(0, 1).contiguous() for s in by_layer)  # [layers, B, size]
        if resets is None:
            resets = tuple(first.any(dim=1).nonzero().flatten().tolist()) if len(x) > 1 else ()
        edges = sorted({0, *resets, len(x)})
        outputs = []
        for start, end in itertools.pairwise(edges):
            fresh = first[start].view(1, -1, 1)  # not multiplied, because NaN times zero is NaN
            output, (h, c) = self.lstm(x[start:end], (h.masked_fill(fresh, 0.0), c.masked_fill(fresh, 0.0)))
            outputs.append(output)
        after = (s.transpose(0, 1).flatten(1).float() for s in (h, c))
        return torch.cat(outputs), (next(after), next(after))


class ActorCritic(nn.Module):
    """A network: torso, then clipped reward and one-hot last action as further features, an optional LSTM, and two heads.

    Subclasses call `__init__` with the torso's width and define `torso(observation) -> [N, width]`, where every leaf of
    `observation` is `[N, ...]`, N = T * B. With `policy.state_independent_std` log standard deviations are parameters of their
    own, and the policy head's answers in their places go unread. Either way the logarithm of `policy.initial_std` is added.
    """

    supports_bfloat16 = False
    _is_log_std: torch.Tensor

    def __init__(
        self, observation_space: gymnasium.Space, action_space: gymnasium.Space, use_lstm: bool,  # type: ignore[type-arg]
        *, width: int, feed_last_step: bool | Literal["reward"], lstm: tuple[int, int] = (LSTM_SIZE, 1),
        policy: PolicyConfig = PolicyConfig(),
    ) -> None:  # fmt: skip
        """Make memory and heads.

        Args:
            observation_space: unused here; the torso reads it.
            action_space: the policy's.
            use_lstm: whether there is a memory.
            width: the torso's.
            feed_last_step: whether clipped reward and last action are further features; "reward" stands for the reward alone.
            lstm: the units of a layer, 0 for as many as inputs, and the number of layers.
            policy: how wide continuous actions are.
        """
        super().__init__()
        distribution = distribution_for(action_space)
        self._encode = distribution.encode
        self._feed_reward, self._feed_action = bool(feed_last_step), feed_last_step is True
        width += self._feed_reward + distribution.encoded_size * self._feed_action
        self.memory = Memory(width, lstm[0] or width, lstm[1]) if use_lstm else None
        width = self.memory.size if self.memory is not None else width
        self.policy = Head(width, distribution.num_params)
        self.baseline = Head(width, 1)
        self.log_std = None
        self._log_initial_std: float | None = None
        if numbers := int(distribution.log_stds.sum()):
            self.register_buffer("_is_log_std", torch.from_numpy(distribution.log_stds), persistent=False)
            if policy.state_independent_std:
                self.log_std = nn.Parameter(torch.zeros(distribution.num_params))
            if policy.initial_std != 1.0:
                self._log_initial_std = math.log(policy.initial_std or numbers**-0.5)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, to which inputs are converted."""
        return self.policy.weight.dtype

    def initial_state(self, batch_size: int) -> tuple[torch.Tensor, ...]:
        """Return the LSTM's zero state, or `()` without an LSTM."""
        return self.memory.initial_state(batch_size) if self.memory is not None else ()

    def torso(self, observation: Nested) -> torch.Tensor:
        """Return features `[N, width]` of observations whose leaves are `[N, ...]`, N = T * B."""
        raise NotImplementedError

    def value_features(self, observation: Nested, features: torch.Tensor) -> torch.Tensor:
        """Return what the value is read from, `[N, F]`: the policy's features, unless it has a network of its own.

        Args:
            observation: leaves `[N, ...]`, N = T * B.
            features: `[N, F]`, of torso and memory.
        """
        return features

    def _encode_action(self, action: torch.Tensor) -> torch.Tensor:
        """Return actions `[T, B]` or `[T, B, N]` as `[T * B, F]`."""
        return self._encode(action.flatten(0, 1)).to(self.dtype)

    def forward(self, inputs: ModelInput, core_state: Nested) -> tuple[ModelOutput, Nested]:
        """Return logits `[T, B, P]` and values `[T, B]`, both float32, and the new recurrent state."""
        rows, batch = inputs.reward.shape
        observation = _merge_time(inputs.observation)
        x = self.torso(observation)  # [T * B, width]
        if self._feed_reward:
            reward = inputs.reward.clamp(-1, 1).reshape(-1, 1).to(x.dtype)
            action = [self._encode_action(inputs.last_action)] if self._feed_action else []
            x = torch.cat([x, reward, *action], dim=-1)
        if self.memory is not None:
            x, core_state = self.memory(x.view(rows, batch, -1), inputs.first, core_state, inputs.resets)
            x = x.flatten(0, 1)
        policy_logits = self.policy(x).view(rows, batch, -1)
        if self.log_std is not None:
            policy_logits = torch.where(self._is_log_std, self.log_std.float(), policy_logits)
        if self._log_initial_std is not None:
            policy_logits = policy_logits + self._is_log_std * self._log_initial_std
        value = self.baseline(self.value_features(observation, x)).view(rows, batch)
        return ModelOutput(policy_logits, value), core_state


def _merge_time(observation: Nested) -> Nested:
    """Reshape every leaf from `[T, B, ...]` to `[T * B, ...]`."""
    if isinstance(observation, dict):
        return {key: _merge_time(value) for key, value in observation.items()}
    if isinstance(observation, tuple):
        return tuple(_merge_time(value) for value in observation)
    return observation.flatten(0, 1)


class ImageInput(nn.Module):
    """A layer that brings pixels `[N, C, H, W]` or `[N, H, W, C]` to `[N, C, H, W]` in one dtype.

    Bytes are centred (unless `center` is False) and scaled by 1/255, other numbers are scaled by their bounds. A stack of
    coloured pictures, `[N, S, H, W, C]`, has S * C channels.

    Each channel's own mean is subtracted: on a bright background, which never changes, most units would always or never fire,
    and the few pixels that move would hardly matter (Pong is learned twice as fast with it: docs/log.md).

    C is the smaller of a space's first and last axis, and the last one if they are equal.
    """

    def __init__(self, space: gymnasium.Space, center: bool = True) -> None:  # type: ignore[type-arg]
        super().__init__()
        self._center = center
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) not in (2, 3, 4):
            raise ValueError(
                f"an image model needs a Box observation of rank 2 to 4, got {space}: leave out --model, or try --model mlp"
            )
        self._rank = len(space.shape)
        shape = space.shape[-3:] if self._rank > 2 else (1, *space.shape)
        self._channels_last = shape[2] <= shape[0]
        channels, height, width = (shape[2], shape[0], shape[1]) if self._channels_last else shape
        self.shape = (channels * (space.shape[0] if self._rank == 4 else 1), height, width)  # (C, H, W)
        bound = scale_of(space)
        self._bytes = space.dtype == np.uint8 and bound == 255
        self._bound = bound if bound > 1 else 1.0

    def forward(self, image: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return `[N, C, H, W]` in `dtype`, scaled, each channel with mean zero."""
        if self._rank == 2:
            image = image.unsqueeze(1)
        if self._channels_last and self._rank > 2:
            image = image.movedim(-1, -3)
        if self._rank == 4:
            image = image.flatten(1, 2)
        x = image.to(dtype)
        if not self._bytes:
            return x if self._bound == 1.0 else x / self._bound
        if not self._center:
            return x / 255
        # This takes two passes instead of four; `mean` would also make a float32 copy of a bfloat16 image.
        mean = x.sum((-2, -1), keepdim=True) * (-1 / (255 * x.shape[-2:].numel()))
        return torch.add(mean, x, alpha=1 / 255)


def scale_of(space: gymnasium.spaces.Box) -> float:
    """Return the largest absolute value that a Box allows; infinity if it has no bound, or one so large that it is none."""
    bound = float(np.maximum(np.abs(space.low.astype(np.float64)), np.abs(space.high.astype(np.float64))).max())
    return bound if bound < UNBOUNDED else math.inf


class VectorInput(nn.Module):
    """A layer that brings one part `[N, ...]` to `[N, width]`: choices one-hot, integers scaled by bounds, others unchanged."""

    def __init__(self, space: gymnasium.Space) -> None:  # type: ignore[type-arg]
        super().__init__()
        self._starts, self._sizes = [0], [0]  # of the choices; size 0 means no choice
        self._bound = 1.0
        if isinstance(space, gymnasium.spaces.Discrete):
            self._starts, self._sizes = [int(space.start)], [int(space.n)]
        elif isinstance(space, gymnasium.spaces.MultiDiscrete):
            self._starts, self._sizes = (values.reshape(-1).tolist() for values in (space.start, space.nvec))
        elif isinstance(space, gymnasium.spaces.Box) and space.dtype.kind in "ui" and 1 < scale_of(space) < 2**31 - 1:
            self._bound = scale_of(space)
        assert space.shape is not None
        self.width = sum(self._sizes) or math.prod(space.shape)

    def forward(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return `[N, width]` in `dtype`."""
        flat = x.reshape(len(x), -1)  # reshape, because a scalar has no axis to flatten
        if any(self._sizes):
            choices = zip(flat.unbind(-1), self._starts, self._sizes, strict=True)
            return torch.cat([F.one_hot((part - start).long(), n) for part, start, n in choices], dim=-1).to(dtype)
        return flat.to(dtype) if self._bound == 1.0 else flat.to(dtype) / self._bound


INITIALISATIONS = ("orthogonal", "pytorch")


def check_initialisation(how: str) -> None:
    """Raise ValueError if there is no such way to initialise weights."""
    if how not in INITIALISATIONS:
        raise ValueError(f"--initialisation must be {' or '.join(INITIALISATIONS)}, got {how!r}")


def initialise(model: nn.Module, how: str = "orthogonal") -> None:
    """Initialise orthogonal weights with gain sqrt(2) before each ReLU, zero biases and a nearly uniform first policy.

    With `how` "pytorch" everything stays as PyTorch has made it.

    PyTorch's own initialisation lets the signal of sparse images shrink a thousandfold on its way up; the first updates then
    mainly move biases, and most ReLUs of the convolutions never fire again (seen on Pong: docs/log.md).
    """
    if how == "pytorch" or not initialisation.wanted():
        return
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.orthogonal_(module.weight, math.sqrt(2.0))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if isinstance(model, ActorCritic):
        nn.init.orthogonal_(model.policy.weight, 0.01)
        nn.init.orthogonal_(model.baseline.weight, 1.0)


def conv_size(size: int, kernel: int, stride: int) -> int:
    """Return the output width of a convolution without padding."""
    return (size - kernel) // stride + 1


def check_image_size(name: str, shape: tuple[int, ...], least: int) -> None:
    """Raise ValueError if an image is too small for a network's strides."""
    if min(shape[1:]) < least:
        raise ValueError(
            f"{name} needs images of at least {least}x{least}, got {shape[1]}x{shape[2]}: try --model multi_input or mlp"
        )
