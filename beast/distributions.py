"""Action spaces as distributions: the policy's parameters, how to draw from them, and what a draw costs.

One stateless object per action space. Parameters come as one tensor `[..., P]`, the "logits" of the rest of the code.
Noise is drawn apart from the parameters, so that each actor keeps a random stream of its own while one forward and one
`sample` serve them all: the same seed gives the same actions however actors are spread over processes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F

from beast.data import Array, ArraySpec


class Distribution(ABC):
    """What the system needs of a policy over one action space."""

    num_params: int
    """P, the policy head's width."""
    noise_size: int
    """Random numbers that one draw needs."""
    action_spec: ArraySpec
    """How one action is stored."""

    @abstractmethod
    def noise(self, generator: np.random.Generator, count: int) -> Array:
        """`[count, noise_size]` float32 for `count` draws."""

    @abstractmethod
    def sample(self, params: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """`[..., P]` and `[..., noise_size]` to actions `[...]` (+ `[N]`)."""

    @abstractmethod
    def mode(self, params: torch.Tensor) -> torch.Tensor:
        """The most likely action (deterministic evaluation)."""

    @abstractmethod
    def log_prob(self, params: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """`[...]`, log pi(action)."""

    @abstractmethod
    def entropy(self, params: torch.Tensor) -> torch.Tensor:
        """`[...]`, in nats."""

    @abstractmethod
    def to_env(self, actions: Array) -> Array:
        """Stored actions `[E]` (+ `[N]`) as the environment takes them."""


class Categorical(Distribution):
    """Discrete spaces: a softmax. A logit of minus infinity masks its action."""

    def __init__(self, space: gymnasium.spaces.Discrete) -> None:
        self.num_params = self.noise_size = int(space.n)
        self.action_spec = ArraySpec((), np.dtype(np.int64))
        self._start = int(space.start)

    def noise(self, generator: np.random.Generator, count: int) -> Array:
        return generator.gumbel(size=(count, self.noise_size)).astype(np.float32)

    def sample(self, params: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return (params + noise).argmax(-1)  # the Gumbel-max trick: exactly a draw from the softmax

    def mode(self, params: torch.Tensor) -> torch.Tensor:
        return params.argmax(-1)

    def log_prob(self, params: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return F.log_softmax(params, dim=-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self, params: torch.Tensor) -> torch.Tensor:
        log_policy = F.log_softmax(params, dim=-1)
        # A masked action has probability 0 and log-probability -inf; its share of the entropy is 0, not NaN.
        return -(log_policy.exp() * log_policy.clamp(min=torch.finfo(log_policy.dtype).min)).sum(-1)

    def to_env(self, actions: Array) -> Array:
        return actions + self._start


class MultiCategorical(Distribution):
    """MultiDiscrete spaces: independent softmaxes side by side in one parameter vector."""

    def __init__(self, space: gymnasium.spaces.MultiDiscrete) -> None:
        self._sizes = [int(n) for n in space.nvec.reshape(-1)]
        self._shape = space.nvec.shape
        self._start = space.start.reshape(-1)
        self._parts = [Categorical(gymnasium.spaces.Discrete(n)) for n in self._sizes]
        self.num_params = self.noise_size = sum(self._sizes)
        self.action_spec = ArraySpec((len(self._sizes),), np.dtype(np.int64))

    def noise(self, generator: np.random.Generator, count: int) -> Array:
        return generator.gumbel(size=(count, self.noise_size)).astype(np.float32)

    def sample(self, params: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.mode(params + noise)

    def mode(self, params: torch.Tensor) -> torch.Tensor:
        return torch.stack([part.argmax(-1) for part in torch.split(params, self._sizes, dim=-1)], dim=-1)

    def log_prob(self, params: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        logits = torch.split(params, self._sizes, dim=-1)
        return torch.stack(
            [part.log_prob(p, a) for part, p, a in zip(self._parts, logits, action.unbind(-1), strict=True)]
        ).sum(0)

    def entropy(self, params: torch.Tensor) -> torch.Tensor:
        logits = torch.split(params, self._sizes, dim=-1)
        return torch.stack([part.entropy(p) for part, p in zip(self._parts, logits, strict=True)]).sum(0)

    def to_env(self, actions: Array) -> Array:
        return (actions + self._start).reshape(-1, *self._shape)


class SquashedGaussian(Distribution):
    """Bounded Box spaces: a diagonal Gaussian, squashed by tanh into the bounds at the environment's door.

    Parameters are means, then log standard deviations (clamped to [-5, 2]). The stored action is the one *before* the
    squashing: its log-probability differs from the squashed one's by a term of the action alone, which cancels in
    pi / mu and has no gradient. The entropy is the unsquashed Gaussian's. NaN parameters draw 0: as the next row's last
    action a NaN would make those NaN again, for ever.
    """

    def __init__(self, space: gymnasium.spaces.Box) -> None:
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise ValueError(f"a Box action space needs finite bounds, this one is {space}: wrap it in RescaleAction")
        self._shape, self._dtype = space.shape, space.dtype
        # In float64: narrow integers would overflow, and rounding must not lead out of the bounds.
        self._low, self._high = (bound.reshape(-1).astype(np.float64) for bound in (space.low, space.high))
        size = int(np.prod(space.shape))
        self.num_params, self.noise_size = 2 * size, size
        self.action_spec = ArraySpec((size,), np.dtype(np.float32))

    def noise(self, generator: np.random.Generator, count: int) -> Array:
        return generator.standard_normal((count, self.noise_size), dtype=np.float32)

    @staticmethod
    def _split(params: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_std = params.chunk(2, dim=-1)
        return mean, log_std.clamp(-5.0, 2.0)

    def sample(self, params: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        mean, log_std = self._split(params)
        return (mean + log_std.exp() * noise).nan_to_num()

    def mode(self, params: torch.Tensor) -> torch.Tensor:
        return self._split(params)[0].nan_to_num()

    def log_prob(self, params: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        mean, log_std = self._split(params)
        z = (action - mean) * (-log_std).exp()
        return (-0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, params: torch.Tensor) -> torch.Tensor:
        _, log_std = self._split(params)
        return (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def to_env(self, actions: Array) -> Array:
        squashed = self._low + (self._high - self._low) * (0.5 + 0.5 * np.tanh(actions))
        return squashed.clip(self._low, self._high).reshape(-1, *self._shape).astype(self._dtype)


def distribution_for(space: gymnasium.Space) -> Distribution:  # type: ignore[type-arg]
    """The distribution of an action space.

    Raises:
        ValueError: for a space that no distribution here covers.
    """
    if isinstance(space, gymnasium.spaces.Discrete):
        return Categorical(space)
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        return MultiCategorical(space)
    if isinstance(space, gymnasium.spaces.Box):
        return SquashedGaussian(space)
    raise ValueError(f"unsupported action space {space}: use Discrete, MultiDiscrete or a bounded Box")
