"""Action spaces as distributions: parameters, sampling, log-probabilities, entropy.

There is one stateless object for each action space. Parameters are one tensor `[..., P]`, the "logits" of the rest of the
code. Noise is drawn apart from the parameters, so that each actor keeps its own random stream while one forward and one
`sample` serve all: the same seed gives the same actions however actors are spread over processes.

A mask `[..., M]` (bool) says which choices are allowed. `masked` parameters give the others probability zero, in samples,
importance weights and entropy alike, and no gradient. Where a mask allows no choice at all, as at an episode's end, all
choices count as allowed.
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
from beast.core.squashing import bounded, mean_log_slopes

UNBOUNDED = 1e30
"""Bounds of at least this size count as infinite: some environments give the largest float instead of infinity."""


class Distribution(ABC):
    """What the system needs of a policy over one action space."""

    num_params: int
    """P, the width of the policy head."""
    noise_size: int
    """Number of random numbers that one sample needs."""
    mask_size: int
    """M, the number of choices that a mask covers; 0 if actions are not choices."""
    encoded_size: int
    """Width of the result of `encode`."""
    log_stds: Array
    """`[P]` bool: which parameters are log standard deviations."""
    action_spec: ArraySpec
    """Spec of one stored action."""

    @abstractmethod
    def noise(self, generator: np.random.Generator, count: int) -> Array:
        """Draw `[count, noise_size]` float32 for `count` samples."""

    @abstractmethod
    def sample(self, params: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return actions `[...]` (+ `[N]`) for parameters `[..., P]` and noise `[..., noise_size]`."""

    @abstractmethod
    def mode(self, params: torch.Tensor) -> torch.Tensor:
        """Return the most probable actions `[...]` (+ `[N]`), for deterministic evaluation."""

    @abstractmethod
    def log_prob(self, params: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Return log pi(action): `[...]`."""

    @abstractmethod
    def entropy(self, params: torch.Tensor) -> torch.Tensor:
        """Return the entropy in nats: `[...]`."""

    def squashed_entropy(self, params: torch.Tensor) -> torch.Tensor:
        """Return `[...]`, in nats, of actions after squashing into their bounds: (-1, 1) where there are two."""
        return self.entropy(params)

    def masked(self, params: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return `[..., P]` for a mask `[..., M]` bool: minus infinity where a choice is not allowed."""
        return params

    @abstractmethod
    def encode(self, actions: torch.Tensor) -> torch.Tensor:
        """Return stored actions `[K]` (+ `[N]`) as numbers that a model can read: `[K, encoded_size]`."""

    @abstractmethod
    def to_env(self, actions: Array) -> Nested:
        """Return stored actions `[E]` (+ `[N]`) in the environment's form, nested like its action space."""

    def flat_mask(self, mask: Nested) -> Array:
        """Flatten one environment's mask, an array or arrays nested in the space's order, to `[M]` bool.

        Raises:
            ValueError: if it does not cover M choices.
        """
        leaves = [np.asarray(leaf).astype(bool).reshape(-1) for leaf in flatten(mask)]
        flat = np.concatenate([*leaves, np.zeros(0, bool)])
        if flat.size != self.mask_size:
            raise ValueError(f"an action mask of {flat.size} entries for {self.mask_size} choices")
        return flat


class Categorical(Distribution):
    """A softmax over a Discrete space. A logit of minus infinity masks its action."""

    def __init__(self, space: gymnasium.spaces.Discrete) -> None:
        self.num_params = self.noise_size = self.mask_size = self.encoded_size = int(space.n)
        self.log_stds = np.zeros(self.num_params, bool)
        self.action_spec = ArraySpec((), np.dtype(np.int64))
        self._start = int(space.start)

    def noise(self, generator: np.random.Generator, count: int) -> Array:
        """Draw standard Gumbel noise: `[count, A]` float32."""
        return generator.gumbel(size=(count, self.noise_size)).astype(np.float32)

    def sample(self, params: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the actions whose logit plus noise is largest: `[...]` int64."""
        return (params + noise).argmax(-1)  # the Gumbel-max trick: exactly a sample of the softmax

    def mode(self, params: torch.Tensor) -> torch.Tensor:
        """Return the actions with the largest logit: `[...]` int64."""
        return params.argmax(-1)

    def log_prob(self, params: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Return the actions' log-softmax: `[...]`."""
        return F.log_softmax(params, dim=-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self, params: torch.Tensor) -> torch.Tensor:
        """Return the entropy of the softmax: `[...]`; masked actions contribute 0."""
        log_policy = F.log_softmax(params, dim=-1)
        # A masked action has probability 0 and log-probability -inf; its share of the entropy is 0, not NaN.
        return -(log_policy.exp() * log_policy.clamp(min=torch.finfo(log_policy.dtype).min)).sum(-1)

    def masked(self, params: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Set the logits of masked actions to minus infinity."""
        return torch.where(mask | ~mask.any(-1, keepdim=True), params, -torch.inf)

    def encode(self, actions: torch.Tensor) -> torch.Tensor:
        """Return actions as one-hot vectors: `[K, A]`."""
        return F.one_hot(actions, self.encoded_size)

    def to_env(self, actions: Array) -> Array:
        """Add the space's start: `[E]`."""
        return actions + self._start


class MultiCategorical(Distribution):
    """Independent softmaxes for MultiDiscrete and MultiBinary spaces, side by side in one parameter vector.

    A mask concatenates the choices of all parts; for MultiBinary these are "0 is allowed" and "1 is allowed" of each bit.
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
        """Return the logits of each part."""
        return torch.split(params, self._sizes, dim=-1)

    def masked(self, params: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Mask the logits of each part."""
        parts = zip(self._parts, self._split(params), self._split(mask), strict=True)
        return torch.cat([part.masked(p, m) for part, p, m in parts], dim=-1)

    def noise(self, generator: np.random.Generator, count: int) -> Array:
        """Draw standard Gumbel noise for all parts: `[count, P]` float32."""
        return generator.gumbel(size=(count, self.noise_size)).astype(np.float32)

    def sample(self, params: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the choices whose logit plus noise is largest, one for each part: `[..., N]` int64."""
        return self.mode(params + noise)

    def mode(self, params: torch.Tensor) -> torch.Tensor:
        """Return the choices with the largest logit, one for each part: `[..., N]` int64."""
        return torch.stack([part.argmax(-1) for part in self._split(params)], dim=-1)

    def log_prob(self, params: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Return the sum of the parts' log-probabilities: `[...]`."""
        logits = self._split(params)
        return torch.stack(
            [part.log_prob(p, a) for part, p, a in zip(self._parts, logits, action.unbind(-1), strict=True)]
        ).sum(0)

    def entropy(self, params: torch.Tensor) -> torch.Tensor:
        """Return the sum of the parts' entropies: `[...]`."""
        logits = self._split(params)
        return torch.stack([part.entropy(p) for part, p in zip(self._parts, logits, strict=True)]).sum(0)

    def encode(self, actions: torch.Tensor) -> torch.Tensor:
        """Return the choices as one-hot vectors side by side: `[K, P]`."""
        parts = actions.unbind(-1)
        return torch.cat([F.one_hot(part, size) for part, size in zip(parts, self._sizes, strict=True)], dim=-1)

    def to_env(self, actions: Array) -> Array:
        """Return the choices in the space's shape and dtype: `[E, ...]`."""
        return (actions + self._start).reshape(-1, *self._shape).astype(self._dtype)


class SquashedGaussian(Distribution):
    """A diagonal Gaussian for Box spaces, squashed into the bounds by `to_env`.

    Parameters are means, then log standard deviations (`bounded`: between -6 and 3). The stored action is the one *before*
    squashing: its log-probability differs from the squashed one's by a term of the action alone, which cancels in pi / mu and
    has no gradient. NaN parameters give the sample 0: stored as the next row's last action, a NaN would make the parameters
    NaN forever.

    `entropy` is the unsquashed Gaussian's, which grows with the deviation without bound; `squashed_entropy` falls again where
    most actions lie at the bounds: H(u) + E[log(du'/du)] for u' = tanh(u) or softplus(u).

    A number with two bounds is squashed by tanh; integers are equal bins between the bounds. A number with one bound is
    squashed by softplus, one without bounds is not squashed.
    """

    def __init__(self, space: gymnasium.spaces.Box) -> None:
        self._shape, self._dtype = space.shape, space.dtype
        # In float64, because narrow integers would overflow and rounding must not exceed the bounds.
        low, high = (bound.reshape(-1).astype(np.float64) for bound in (space.low, space.high))
        self._whole = space.dtype.kind in "biu"
        below, above = np.abs(low) < UNBOUNDED, np.abs(high) < UNBOUNDED
        self._below, self._above, self._low, self._high = below, above, low, high
        self._squashings = torch.from_numpy(below & above), torch.from_numpy(below ^ above)  # by tanh; by softplus
        if self._whole and (high - low > 2**52).any():
            raise ValueError(f"{space} holds more integers than a Gaussian can tell apart: use MultiDiscrete")
        size = int(np.prod(space.shape))
        self.num_params, self.noise_size, self.mask_size, self.encoded_size = 2 * size, size, 0, size
        self.log_stds = np.arange(2 * size) >= size
        self.action_spec = ArraySpec((size,), np.dtype(np.float32))

    def noise(self, generator: np.random.Generator, count: int) -> Array:
        """Draw standard normal noise: `[count, N]` float32."""
        return generator.standard_normal((count, self.noise_size), dtype=np.float32)

    @staticmethod
    def _split(params: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_std = params.chunk(2, dim=-1)
        return mean, bounded(log_std)

    def sample(self, params: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return mean plus standard deviation times noise, before squashing: `[..., N]` float32; 0 where that is NaN."""
        mean, log_std = self._split(params)
        return (mean + log_std.exp() * noise).nan_to_num()

    def mode(self, params: torch.Tensor) -> torch.Tensor:
        """Return the means, before squashing: `[..., N]` float32; 0 where they are NaN."""
        return self._split(params)[0].nan_to_num()

    def log_prob(self, params: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Return the log-density of the actions before squashing: `[...]`."""
        mean, log_std = self._split(params)
        z = (action - mean) * (-log_std).exp()
        return (-0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, params: torch.Tensor) -> torch.Tensor:
        """Return the entropy of the Gaussian before squashing: `[...]`."""
        _, log_std = self._split(params)
        return (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def squashed_entropy(self, params: torch.Tensor) -> torch.Tensor:
        """Return `[...]`, in nats, of the actions after squashing."""
        mean, log_std = self._split(params)
        return self.entropy(params) + mean_log_slopes(mean, log_std.exp(), *self._squashings).sum(-1)

    def encode(self, actions: torch.Tensor) -> torch.Tensor:
        """Return actions squashed by tanh: `[K, N]`."""
        return actions.tanh()

    def to_env(self, actions: Array) -> Array:
        """Squash actions into the space's bounds: `[E, ...]` in its shape and dtype."""
        both, low, high = self._below & self._above, self._low, self._high
        share = 0.5 + 0.5 * np.tanh(actions)
        if both.all():
            # floor, because rounding would give the lowest and the highest integer only half a bin.
            values = np.floor(low + (high - low + 1) * share) if self._whole else low + (high - low) * share
        else:
            positive = np.logaddexp(0.0, actions)  # softplus
            one_bound = np.where(self._below, low + positive, np.where(self._above, high - positive, actions))
            with np.errstate(invalid="ignore", over="ignore"):
                values = np.where(both, low + (high - low) * share, one_bound)
        return values.clip(low, high).reshape(-1, *self._shape).astype(self._dtype)


class Joint(Distribution):
    """Independent distributions for Dict and Tuple spaces, concatenated in one parameter vector and one action array.

    Actions are int64 if those of all parts are, otherwise float32 (which holds a choice's number exactly).

    Args:
        space: the Dict or Tuple.
        where: the keys that lead to it, for errors.
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
        """Mask the parameters of each part that has choices."""
        masks = torch.split(mask, [part.mask_size for part in self._parts], dim=-1)
        parts = zip(self._parts, self._params(params), masks, strict=True)
        return torch.cat([part.masked(p, m) for part, p, m in parts], dim=-1)

    def _actions(self, action: torch.Tensor) -> list[torch.Tensor]:
        """Return the actions of each part, as that part stores them."""
        parts = zip(self._parts, torch.split(action, self._sizes, dim=-1), strict=True)
        return [(a if part.action_spec.shape else a.squeeze(-1)).to(_torch_dtype(part)) for part, a in parts]

    def _stored(self, actions: list[torch.Tensor]) -> torch.Tensor:
        parts = zip(self._parts, actions, strict=True)
        return torch.cat([(a if part.action_spec.shape else a.unsqueeze(-1)).to(self._dtype) for part, a in parts], -1)

    def noise(self, generator: np.random.Generator, count: int) -> Array:
        """Draw the noise of all parts, side by side: `[count, noise_size]` float32."""
        # Row by row, so that drawing many at once gives the same numbers as one at a time.
        rows = [[part.noise(generator, 1) for part in self._parts] for _ in range(count)]
        return np.concatenate([np.concatenate(row, axis=-1) for row in rows])

    def sample(self, params: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Sample each part: `[..., N]`, concatenated."""
        noises = torch.split(noise, [part.noise_size for part in self._parts], dim=-1)
        parts = zip(self._parts, self._params(params), noises, strict=True)
        return self._stored([part.sample(p, n) for part, p, n in parts])

    def mode(self, params: torch.Tensor) -> torch.Tensor:
        """Return the most probable action of each part: `[..., N]`, concatenated."""
        parts = zip(self._parts, self._params(params), strict=True)
        return self._stored([part.mode(p) for part, p in parts])

    def log_prob(self, params: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Return the sum of the parts' log-probabilities: `[...]`."""
        parts = zip(self._parts, self._params(params), self._actions(action), strict=True)
        return torch.stack([part.log_prob(p, a) for part, p, a in parts]).sum(0)

    def entropy(self, params: torch.Tensor) -> torch.Tensor:
        """Return the sum of the parts' entropies: `[...]`."""
        parts = zip(self._parts, self._params(params), strict=True)
        return torch.stack([part.entropy(p) for part, p in parts]).sum(0)

    def squashed_entropy(self, params: torch.Tensor) -> torch.Tensor:
        """Return `[...]`, in nats, of the actions after squashing."""
        parts = zip(self._parts, self._params(params), strict=True)
        return torch.stack([part.squashed_entropy(p) for part, p in parts]).sum(0)

    def encode(self, actions: torch.Tensor) -> torch.Tensor:
        """Return the parts' encodings side by side: `[K, encoded_size]`."""
        parts = zip(self._parts, self._actions(actions), strict=True)
        return torch.cat([part.encode(a) for part, a in parts], dim=-1)

    def to_env(self, actions: Array) -> Nested:
        """Return each part's actions in its own form, as a dict or tuple like the space."""
        edges = list(itertools.accumulate(self._sizes, initial=0))
        values = []
        for part, (start, end) in zip(self._parts, itertools.pairwise(edges), strict=True):
            own = actions[:, start:end].astype(part.action_spec.dtype)
            values.append(part.to_env(own if part.action_spec.shape else own[:, 0]))
        return tuple(values) if self._keys is None else dict(zip(self._keys, values, strict=True))


def _torch_dtype(distribution: Distribution) -> torch.dtype:
    return torch.int64 if distribution.action_spec.dtype.kind == "i" else torch.float32


def distribution_for(space: gymnasium.Space, where: str = "") -> Distribution:  # type: ignore[type-arg]
    """Return the distribution of an action space.

    Args:
        space: of the actions.
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
