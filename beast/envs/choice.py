"""Which environment a run has, and how it is made from its name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import gymnasium

from beast.core.data import ArraySpec
from beast.core.errors import EnvError
from beast.envs import atari, families, wrappers
from beast.envs.base import VectorEnvs, vector_of
from beast.envs.families import one_line
from beast.envs.wrappers import Standard


@dataclass(frozen=True)
class EnvChoice:
    """A choice of environment with all settings for making it; child processes receive this and make their own."""

    env: str
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    full_action_set: bool = False
    standard: Standard = field(default_factory=Standard)
    """Wrappers that any environment can have."""
    life_loss: bool = True
    """Whether a lost life ends the return (Atari)."""
    fire_on_life_loss: bool = False
    """Whether FIRE is pressed after a lost life (Atari)."""
    columns: dict[str, ArraySpec] = field(default_factory=dict)
    """Keys of `info` that the algorithm needs in addition to those that the environment declares."""
    return_discount: float = 1.0
    """Of the column DISCOUNTED_RETURN, where `columns` has it."""

    @property
    def is_atari(self) -> bool:
        """Whether it is an Atari game played from pixels."""
        return atari.is_atari(self.env)

    @property
    def action_repeat(self) -> int:
        """Frames in one step."""
        repeat = self.standard.action_repeat
        return int(self.env_kwargs.get("frameskip", repeat or atari.ACTION_REPEAT)) if self.is_atari else repeat or 1

    @property
    def preset(self) -> str | None:
        """The preset of a well-known suite; None if the observation space decides."""
        family = families.family_of(self.env)
        return family.preset if family is not None else None

    @property
    def _settings(self) -> dict[str, Any]:
        """Return the settings of Atari's emulator; it renders only in `make_single`."""
        return {name: value for name, value in self.env_kwargs.items() if name != "render_mode"}

    def make_vector(
        self, seeds: list[int], evaluation: bool = False, alive: Callable[[], object] = lambda: None
    ) -> VectorEnvs:
        """Make environments that are stepped together; if one cannot be made, the others are closed.

        Args:
            seeds: one for each environment.
            evaluation: whether lost lives do not end returns.
            alive: called after each environment that is made or reset.

        Raises:
            EnvError: if the name is unknown, or making one fails.
        """
        group = self._make_vector(seeds, evaluation, alive)
        group.return_discount = self.return_discount
        return group

    def _make_vector(self, seeds: list[int], evaluation: bool, alive: Callable[[], object]) -> VectorEnvs:
        if self.is_atari and not self.standard.wrapper:
            return atari.make_vector(
                self.env, seeds, self.columns, evaluation=evaluation, standard=self.standard, life_loss=self.life_loss,
                fire_on_life_loss=self.fire_on_life_loss, full_action_set=self.full_action_set, **self._settings,
            )  # fmt: skip
        if self.is_atari:
            ends = self.life_loss and not evaluation
            return vector_of(
                [self.make_single] * len(seeds), seeds, alive, lives_end_returns=ends, columns=self.columns
            )
        make, of_user = self._maker()
        try:
            first = make()
        except EnvError:
            raise
        except Exception as error:
            if of_user:
                raise  # the user's own function: its traceback says most
            raise EnvError(f"cannot make --env {self.env}: {one_line(error)}") from error
        waiting, made = [first], [first]  # compared by `is`, because an environment with a `__len__` of 0 is false

        def one() -> gymnasium.Env[Any, Any]:
            if not waiting:
                made.append(make())
            alive()
            return wrappers.apply(waiting.pop() if waiting else made[-1], self.standard, self.env)

        try:
            stack = self.standard.frame_stack or 1
            return vector_of([one] * len(seeds), seeds, alive, stack=stack, columns=self.columns)
        except BaseException:
            for env in made:
                with suppress(Exception):
                    env.close()
            raise

    def make_single(self, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
        """Make one environment that renders, with the observations of `make_vector`."""
        if self.is_atari:
            return atari.make_single(
                self.env, standard=self.standard, fire_on_life_loss=self.fire_on_life_loss,
                full_action_set=self.full_action_set, render_mode=render_mode, **self._settings,
            )  # fmt: skip
        make, _ = self._maker()
        if render_mode and (family := families.family_of(self.env)) is not None:
            family.prepare_pictures()
        return wrappers.apply(make(**({"render_mode": render_mode} if render_mode else {})), self.standard, self.env)

    def _maker(self) -> tuple[Callable[..., Any], bool]:
        """Return the function that makes one environment from further arguments, and whether it is the user's own."""
        found = families.find(self.env)
        if callable(found):
            function = found
            return lambda **extra: function(**(self.env_kwargs | extra)), True
        limit = self.standard.max_episode_steps
        # A longer limit must replace the registered one, because the inner, shorter limit would end the episode first.
        limits = {"max_episode_steps": limit * self.action_repeat} if limit else {}
        settings = {"disable_env_checker": True} | limits | self.env_kwargs
        return lambda **extra: gymnasium.make(found, **(settings | extra)), False
