"""Action spaces as distributions: the policy's parameters, how to draw from them, and what a draw costs.

One stateless object per action space. Parameters come as one tensor `[..., P]`, the "logits" of the rest of the code.
Noise is drawn apart from the parameters, so that each actor keeps a random stream of its own while one forward and one
`sample` serve them all: the same seed gives the same actions however actors are spread over processes.

A mask `[..., M]` (bool) says which choices are allowed. `masked` parameters give the others probability zero, in draws,
importance weights and entropy alike, and no gradient. Where a mask allows no choice at all, as at an episode's end, every
choice counts as allowed.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from typing import Any

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F

from beast.core.data import Array, ArraySpec, Nested, flatten

UNBOUNDED = 1e30
"""Bounds from here on are none: some environments write the largest float instead of infinity."""


class Distribution(ABC):
    """What the system needs of a policy over one action space."""

    num_params: int
    """P, the policy head's width."""
    noise_size: int
    """Random numbers that one draw needs."""
    mask_size: int
    """M, the choices that a mask allows or not; 0 where there are none."""
    encoded_size: int
    """Width of `encode`."""
    log_stds: Array
    """`[P]` bool: which parameters are log standard deviations."""
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

    def squashed_entropy(self, params: torch.Tensor) -> torch.Tensor:
        """`entropy`, but of actions as the environment's bounds leave them: between -1 and 1 where there are two."""
        return self.entropy(params)

    @property
    def largest_entropy(self) -> float | None:
        """Of a policy that takes all choices alike, in nats; None if actions have numbers, whose entropy knows no zero."""
        return None if self.log_stds.any() else float(self.entropy(torch.zeros(self.num_params)))

    def masked(self, params: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`[..., P]` and `[..., M]` bool to `[..., P]`: minus infinity where a choice is not allowed."""
        return params

    @abstractmethod
    def encode(self, actions: torch.Tensor) -> torch.Tensor:
        """Stored actions `[K]` (+ `[N]`) as numbers that a model can read, `[K, encoded_size]`."""

    @abstractmethod
    def to_env(self, actions: Array) -> Nested:
        """Stored actions `[E]` (+ `[N]`) as the environment takes them, nested as its action space is."""

    def flat_mask(self, mask: Nested) -> Array:
        """One environment's mask, an array or any nesting of arrays in the space's order, as `[M]` bool.

        Raises:
            ValueError: if it is not for M choices.
        """
        leaves = [np.asarray(leaf).astype(bool).reshape(-1) for leaf in flatten(mask)]
        flat = np.concatenate([*leaves, np.zeros(0, bool)])
        if flat.size != self.mask_size:
            raise ValueError(f"an action mask of {flat.size} entries for {self.mask_size} choices")
        return flat


class Categorical(Distribution):
    """Discrete spaces: a softmax. A logit of minus infinity masks its action."""

    def __init__(self, space: gymnasium.spaces.Discrete) -> None:
        self.num_params = self.noise_size = self.mask_size = self.encoded_size = int(space.n)
        self.log_stds = np.zeros(self.num_params, bool)
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

    def masked(self, params: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.where(mask | ~mask.any(-1, keepdim=True), params, -torch.inf)

    def encode(self, actions: torch.Tensor) -> torch.Tensor:
        return F.one_hot(actions, self.encoded_size)

    def to_env(self, actions: Array) -> Array:
        return actions + self._start


class MultiCategorical(Distribution):
    """MultiDiscrete and MultiBinary spaces: independent softmaxes side by side in one parameter vector.

    A mask has the choices of all parts end to end: for MultiBinary, "0 is allowed" and "1 is allowed" of each bit.
    """

    def __init__(self, space: gymnasium.spaces.MultiDiscrete | gymnasium.spaces.MultiBinary) -> None:
        binary = isinstance(space, gymnasium.spaces.MultiBinary)
        nvec = np.full(space.shape, 2) if isinstance(space, gymnasium.spaces.MultiBinary) else space.nvec
        self._sizes = [int(n) for n in nvec.reshape(-1)]
        self._shape, self._dtype = nvec.shape, np.dtype(space.dtype)
        self._start = 0 if binary else space.start.reshape(-1)  # type: ignore[union-attr]
        self._parts = [Categorical(gymnasium.spaces.Discrete(n)) for n in self._sizes]
        self.num_params = self.noise_size = self.mask_size = self.encoded_size = sum(self._sizes)
        self.log_stds = np.zeros(self.num_params, bool)
        self.action_spec = ArraySpec((len(self._sizes),), np.dtype(np.int64))

    def _split(self, params: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The logits of each part."""
        return torch.split(params, self._sizes, dim=-1)

    def masked(self, params: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        parts = zip(self._parts, self._split(params), self._split(mask), strict=True)
        return torch.cat([part.masked(p, m) for part, p, m in parts], dim=-1)

    def noise(self, generator: np.random.Generator, count: int) -> Array:
        return generator.gumbel(size=(count, self.noise_size)).astype(np.float32)

    def sample(self, params: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.mode(params + noise)

    def mode(self, params: torch.Tensor) -> torch.Tensor:
        return torch.stack([part.argmax(-1) for part in self._split(params)], dim=-1)

    def log_prob(self, params: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        logits = self._split(params)
        return torch.stack(
            [part.log_prob(p, a) for part, p, a in zip(self._parts, logits, action.unbind(-1), strict=True)]
        ).sum(0)

    def entropy(self, params: torch.Tensor) -> torch.Tensor:
        logits = self._split(params)
        return torch.stack([part.entropy(p) for part, p in zip(self._parts, logits, strict=True)]).sum(0)

    def encode(self, actions: torch.Tensor) -> torch.Tensor:
        parts = actions.unbind(-1)
        return torch.cat([F.one_hot(part, size) for part, size in zip(parts, self._sizes, strict=True)], dim=-1)

    def to_env(self, actions: Array) -> Array:
        return (actions + self._start).reshape(-1, *self._shape).astype(self._dtype)


def bounded(log_std: torch.Tensor) -> torch.Tensor:
    """Keep log standard deviations between -6 and 3: as they are in [-5, 2], and outside ever slower, with a gradient.

    Where a plain clamp has no gradient, a policy could never come back.
    """
    inside = log_std.clamp(-5.0, 2.0)
    return inside + F.softsign(log_std - inside)


def _gauss_hermite(count: int) -> tuple[Array, Array]:
    """Nodes and weights of a mean over a standard normal variable."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return nodes, weights / weights.sum()


_QUADRATURE = _gauss_hermite(24)


class SquashedGaussian(Distribution):
    """Box spaces: a diagonal Gaussian, brought into the bounds at the environment's door.

    Parameters are means, then log standard deviations (`bounded`: between -6 and 3). The stored action is the one *before*
    the squashing: its log-probability differs from the squashed one's by a term of the action alone, which cancels in
    pi / mu and has no gradient. NaN parameters draw 0: as the next row's last action a NaN would make those NaN again, for
    ever.

    `entropy` is the unsquashed Gaussian's, which grows with the width for ever. `squashed_entropy` falls again where most
    actions lie at the bounds: H(u) + E[log(du'/du)] for u' = tanh(u) or softplus(u), the mean by Gauss-Hermite quadrature.

    What has two bounds is squashed by tanh; integers are then the equal bins between them. What has one bound begins there
    (softplus), what has none is left as it is.
    """

    def __init__(self, space: gymnasium.spaces.Box) -> None:
        self._shape, self._dtype = space.shape, space.dtype
        # In float64: narrow integers would overflow, and rounding must not lead out of the bounds.
        low, high = (bound.reshape(-1).astype(np.float64) for bound in (space.low, space.high))
        self._whole = space.dtype.kind in "biu"
        below, above = np.abs(low) < UNBOUNDED, np.abs(high) < UNBOUNDED
        self._below, self._above, self._low, self._high = below, above, low, high
        self._squashings = below & above, below ^ above  # by tanh; by softplus
        if self._whole and (high - low > 2**52).any():
            raise ValueError(f"{space} holds more integers than a Gaussian can tell apart: use MultiDiscrete")
        size = int(np.prod(space.shape))
        self.num_params, self.noise_size, self.mask_size, self.encoded_size = 2 * size, size, 0, size
        self.log_stds = np.arange(2 * size) >= size
        self.action_spec = ArraySpec((size,), np.dtype(np.float32))

    def noise(self, generator: np.random.Generator, count: int) -> Array:
        return generator.standard_normal((count, self.noise_size), dtype=np.float32)

    @staticmethod
    def _split(params: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_std = params.chunk(2, dim=-1)
        return mean, bounded(log_std)

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

    def squashed_entropy(self, params: torch.Tensor) -> torch.Tensor:
        mean, log_std = self._split(params)
        nodes, weights = (torch.from_numpy(x).to(mean) for x in _QUADRATURE)
        u = mean.unsqueeze(-1) + log_std.exp().unsqueeze(-1) * nodes  # [..., N, nodes]
        both, one = (torch.from_numpy(x).to(mean).unsqueeze(-1) for x in self._squashings)
        # log(1 - tanh(u)^2), written so that it stays finite; the derivative of softplus is the sigmoid.
        log_slopes = both * 2 * (math.log(2) - u - F.softplus(-2 * u)) + one * F.logsigmoid(u)
        return self.entropy(params) + (log_slopes * weights).sum((-1, -2))

    def encode(self, actions: torch.Tensor) -> torch.Tensor:
        return actions.tanh()

    def to_env(self, actions: Array) -> Array:
        both, low, high = self._below & self._above, self._low, self._high
        share = 0.5 + 0.5 * np.tanh(actions)
        if both.all():
            # Rounding would give the lowest and the highest integer half a bin each.
            values = np.floor(low + (high - low + 1) * share) if self._whole else low + (high - low) * share
        else:
            positive = np.logaddexp(0.0, actions)  # softplus
            one_bound = np.where(self._below, low + positive, np.where(self._above, high - positive, actions))
            with np.errstate(invalid="ignore", over="ignore"):
                values = np.where(both, low + (high - low) * share, one_bound)
        return values.clip(low, high).reshape(-1, *self._shape).astype(self._dtype)


class Joint(Distribution):
    """Dict and Tuple spaces: independent distributions, end to end in one parameter vector and one action array.

    Actions are int64 if all parts' are, else float32 (which holds a choice's number exactly).
    """

    def __init__(self, space: gymnasium.spaces.Dict | gymnasium.spaces.Tuple, where: str = "") -> None:  # type: ignore[type-arg]
        named = isinstance(space, gymnasium.spaces.Dict)
        parts: list[tuple[Any, Any]] = list(space.spaces.items() if named else enumerate(space.spaces))  # type: ignore[union-attr]
        self._keys = [key for key, _ in parts] if named else None
        self._parts = [distribution_for(part, f"{where}[{key!r}]") for key, part in parts]
        for name in ("num_params", "noise_size", "mask_size", "encoded_size"):
            setattr(self, name, sum(getattr(part, name) for part in self._parts))
        self.log_stds = np.concatenate([part.log_stds for part in self._parts])
        self._sizes = [part.action_spec.shape[0] if part.action_spec.shape else 1 for part in self._parts]
        dtypes = {part.action_spec.dtype for part in self._parts}
        dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
        self.action_spec = ArraySpec((sum(self._sizes),), dtype)
        self._dtype = torch.from_numpy(np.zeros(0, dtype)).dtype

    def _params(self, params: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.split(params, [part.num_params for part in self._parts], dim=-1)

    def masked(self, params: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        masks = torch.split(mask, [part.mask_size for part in self._parts], dim=-1)
        parts = zip(self._parts, self._params(params), masks, strict=True)
        return torch.cat([part.masked(p, m) for part, p, m in parts], dim=-1)

    def _actions(self, action: torch.Tensor) -> list[torch.Tensor]:
        """Each part's actions, as that part stores them."""
        parts = zip(self._parts, torch.split(action, self._sizes, dim=-1), strict=True)
        return [(a if part.action_spec.shape else a.squeeze(-1)).to(_torch_dtype(part)) for part, a in parts]

    def _stored(self, actions: list[torch.Tensor]) -> torch.Tensor:
        parts = zip(self._parts, actions, strict=True)
        return torch.cat([(a if part.action_spec.shape else a.unsqueeze(-1)).to(self._dtype) for part, a in parts], -1)

    def noise(self, generator: np.random.Generator, count: int) -> Array:
        # Row by row, so that many draws at a time are those of one at a time.
        rows = [[part.noise(generator, 1) for part in self._parts] for _ in range(count)]
        return np.concatenate([np.concatenate(row, axis=-1) for row in rows])

    def sample(self, params: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        noises = torch.split(noise, [part.noise_size for part in self._parts], dim=-1)
        parts = zip(self._parts, self._params(params), noises, strict=True)
        return self._stored([part.sample(p, n) for part, p, n in parts])

    def mode(self, params: torch.Tensor) -> torch.Tensor:
        parts = zip(self._parts, self._params(params), strict=True)
        return self._stored([part.mode(p) for part, p in parts])

    def log_prob(self, params: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        parts = zip(self._parts, self._params(params), self._actions(action), strict=True)
        return torch.stack([part.log_prob(p, a) for part, p, a in parts]).sum(0)

    def entropy(self, params: torch.Tensor) -> torch.Tensor:
        parts = zip(self._parts, self._params(params), strict=True)
        return torch.stack([part.entropy(p) for part, p in parts]).sum(0)

    def squashed_entropy(self, params: torch.Tensor) -> torch.Tensor:
        parts = zip(self._parts, self._params(params), strict=True)
        return torch.stack([part.squashed_entropy(p) for part, p in parts]).sum(0)

    def encode(self, actions: torch.Tensor) -> torch.Tensor:
        parts = zip(self._parts, self._actions(actions), strict=True)
        return torch.cat([part.encode(a) for part, a in parts], dim=-1)

    def to_env(self, actions: Array) -> Nested:
        edges = list(itertools.accumulate(self._sizes, initial=0))
        values = []
        for part, (start, end) in zip(self._parts, itertools.pairwise(edges), strict=True):
            own = actions[:, start:end].astype(part.action_spec.dtype)
            values.append(part.to_env(own if part.action_spec.shape else own[:, 0]))
        return tuple(values) if self._keys is None else dict(zip(self._keys, values, strict=True))


def _torch_dtype(distribution: Distribution) -> torch.dtype:
    return torch.int64 if distribution.action_spec.dtype.kind == "i" else torch.float32


def distribution_for(space: gymnasium.Space, where: str = "") -> Distribution:  # type: ignore[type-arg]
    """The distribution of an action space.

    Args:
        where: the keys that lead to it, for the error.

    Raises:
        ValueError: for a space that no distribution here covers.
    """
    spaces = gymnasium.spaces
    if isinstance(space, spaces.Discrete):
        return Categorical(space)
    if isinstance(space, spaces.Dict | spaces.Tuple) and space.spaces:
        return Joint(space, where)
    if space.shape is not None and 0 not in space.shape:
        if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
            return MultiCategorical(space)
        if isinstance(space, spaces.Box):
            return SquashedGaussian(space)
    at = f" at action_space{where}" if where else ""
    raise ValueError(
        f"unsupported action space {space}{at}: use Discrete, MultiDiscrete, MultiBinary, Box, or a Dict or Tuple of them "
        "(--wrapper my_package.my_module:wrap can change it)"
    )
