"""A policy to act with, wherever its observations come from: notebooks, evaluation, videos, the user's own loop."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np

from beast.acting.policy import Policy
from beast.core.data import Array, ArraySpec, Chosen, Nested, flatten, map_nested
from beast.envs.spaces import spec_of


class _Row(NamedTuple):
    """What the policy reads of one row: `[E, ...]`."""

    observation: Nested
    reward: Array
    last_action: Array
    first: Array
    extra: dict[str, Array]


class Agent:
    """A policy with its recurrent state: give it observations step by step, and it returns actions.

    Args:
        policy: acts with the weights that it holds.
        deterministic: take the most probable action instead of sampling.
        seed: of the sampling; None takes a different one each time.
    """

    def __init__(self, policy: Policy, deterministic: bool = False, seed: int | None = None) -> None:
        self.policy = policy
        self._deterministic, self._generator = deterministic, np.random.default_rng(seed)
        self._specs = spec_of(policy.choice.observation_space)
        self._warned = False
        self.reset()

    def reset(self) -> None:
        """Forget the recurrent state: the next observation starts an episode, for any number of environments."""
        self._last_action: Array | None = None
        self.logits: Array = np.zeros((0, self.policy.distribution.num_params), np.float32)
        """`[E, P]` float32: parameters of the distributions that the last actions were sampled from."""

    def act(
        self, observation: Nested, reward: Any = None, first: Any = None, extra: dict[str, Array] | None = None
    ) -> Any:
        """Choose actions in the environment's own form.

        Args:
            observation: one observation of the space, or several with a leading axis `[E]`; E stays the same until `reset`.
            reward: `[E]` or a number, unclipped: the reward of the last action; None means 0 (some models read it).
            first: `[E]` or a bool: whether this observation starts an episode, so that the recurrent state is cleared; None
                means only right after `reset`.
            extra: columns from the environment that the model reads, `[E, ...]` by name.

        Returns:
            An action, or `[E]` of them.

        Raises:
            ValueError: if the observation does not fit the space, or the number of environments has changed.
        """
        observation, one = self._batched(observation)
        chosen = self.choose(observation, reward, first, extra)
        actions = self.policy.distribution.to_env(chosen.action)
        return map_nested(lambda array: array[0], actions) if one else actions

    def choose(
        self, observation: Nested, reward: Any = None, first: Any = None, extra: dict[str, Array] | None = None,
        last_action: Array | None = None,
    ) -> Chosen:  # fmt: skip
        """Choose actions for `[E]` observations, in the form that an unroll stores, with logits and the model's own columns.

        Args:
            observation: as in `act`, with the axis `[E]`.
            reward: as in `act`.
            first: as in `act`.
            extra: as in `act`.
            last_action: `[E]` (+ `[N]`), as stored: the actions taken, if they differ from those of the last call.
        """
        num_envs = len(flatten(observation)[0])
        policy, action = self.policy, self.policy.distribution.action_spec
        opening = self._last_action is None
        if self._last_action is None:
            self._last_action = np.zeros((num_envs, *action.shape), action.dtype)
            policy.core_state = policy.initial_state(num_envs)
        elif len(self._last_action) != num_envs:
            raise ValueError(f"{num_envs} observations after {len(self._last_action)}: call reset() in between")
        firsts = np.broadcast_to(np.asarray(opening if first is None else first, bool), num_envs).copy()
        rewards = np.broadcast_to(np.asarray(0.0 if reward is None else reward, np.float32), num_envs).copy()
        if last_action is not None:
            self._last_action = np.array(last_action, action.dtype)
        self._last_action[firsts] = 0
        row = _Row(observation, rewards, self._last_action, firsts, extra or {})
        if reward is None and not firsts.all() and not self._warned:
            self._warn_of_no_reward(row)
        noise = None if self._deterministic else policy.distribution.noise(self._generator, num_envs)
        chosen = policy.act(row, noise)
        self._last_action, self.logits = chosen.action.copy(), chosen.logits
        return chosen

    def _warn_of_no_reward(self, row: _Row) -> None:
        """Warn once, if the policy's logits would differ with another reward."""
        self._warned = True
        with_one, _ = self.policy.forward(row._replace(reward=row.reward + 1), None, self.policy.core_state)
        without, _ = self.policy.forward(row, None, self.policy.core_state)
        if not np.array_equal(with_one.logits, without.logits):
            warnings.warn(
                "this policy reads the last reward, and none was given: act(observation, reward)", stacklevel=4
            )

    def _batched(self, observation: Nested) -> tuple[Nested, bool]:
        """Return `[E, ...]` in the space's dtypes, and whether the observation came without that axis, from one environment."""
        pairs: list[tuple[ArraySpec, Array]] = []
        try:
            map_nested(lambda spec, x: pairs.append((spec, np.asarray(x))), self._specs, observation)
            one = all(x.shape == spec.shape for spec, x in pairs)
            if not one and (len({len(x) for _, x in pairs}) > 1 or any(x.shape[1:] != s.shape for s, x in pairs)):
                raise ValueError(f"shapes {[x.shape for _, x in pairs]}")
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise ValueError(f"this observation is not of {self.policy.choice.observation_space} ({error})") from error

        def batch(spec: ArraySpec, x: Any) -> Array:
            return np.asarray(x, spec.dtype)[None] if one else np.asarray(x, spec.dtype)

        return map_nested(batch, self._specs, observation), one
