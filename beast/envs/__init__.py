"""Environments by name: Atari ids, any Gymnasium id, or a function of the user's own (`my_pkg.my_module:make_env`)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from beast.envs import atari
from beast.envs.base import EnvError, EnvGroup, group_of
from beast.names import NoSuchModule, import_named

__all__ = ["EnvChoice", "EnvError", "EnvGroup"]

for _name in ("Catch", "Synthetic"):
    if f"{_name}-v0" not in gymnasium.registry:
        gymnasium.register(f"{_name}-v0", f"beast.envs.{_name.lower()}:{_name}", disable_env_checker=True)


@dataclass(frozen=True)
class EnvChoice:
    """Which environment, as far as making it goes. Only this travels to child processes."""

    env: str
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    full_action_set: bool = False

    @property
    def is_atari(self) -> bool:
        return atari.is_atari(self.env)

    @property
    def action_repeat(self) -> int:
        """Frames a step."""
        return int(self.env_kwargs.get("frameskip", atari.ACTION_REPEAT)) if self.is_atari else 1

    def make_group(
        self, seeds: list[int], evaluation: bool = False, alive: Callable[[], object] = lambda: None
    ) -> EnvGroup:
        """Environments stepped together, one a seed. If one cannot be made, those before it are closed.

        Args:
            alive: called whenever one was made or reset.

        Raises:
            EnvError: if the name is unknown, or making one fails.
        """
        if self.is_atari:
            return atari.make_group(
                self.env, seeds, evaluation=evaluation, full_action_set=self.full_action_set, **self.env_kwargs
            )
        make = self._maker()
        try:
            first = make()
        except EnvError:
            raise
        except Exception as error:
            if ":" in self.env:
                raise  # the user's own function: its traceback says more than we can
            raise EnvError(f"cannot make --env {self.env}: {_one_line(error)}") from error
        if not isinstance(first, gymnasium.Env):
            what = "a VectorEnv" if isinstance(first, VectorEnv) else f"{first!r:.80}"
            raise EnvError(f"{self.env} returned {what}: return one gymnasium.Env, actors make as many as they need")
        waiting, made = [first], [first]

        def one() -> Any:
            if not waiting:
                made.append(make())
            alive()
            return waiting.pop() if waiting else made[-1]

        try:
            return group_of([one] * len(seeds), seeds, alive)
        except BaseException:
            for env in made:
                with suppress(Exception):
                    env.close()
            raise

    def make_single(self, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
        """One environment that renders, with the observations of `make_group`."""
        if self.is_atari:
            return atari.make_single(
                self.env, full_action_set=self.full_action_set, render_mode=render_mode, **self.env_kwargs
            )
        env: gymnasium.Env[Any, Any] = self._maker()(render_mode=render_mode)
        return env

    def _maker(self) -> Callable[..., Any]:
        if ":" in self.env:
            module_name, function_name = self.env.split(":", 1)
            if not module_name or module_name.startswith("."):
                raise EnvError(f"--env {self.env}: write it my_package.my_module:make_env")
            try:
                module = import_named(module_name)
            except NoSuchModule as error:
                raise EnvError(
                    f"--env {self.env}: no module {error.name!r}; run where it can be imported from, or set PYTHONPATH"
                ) from error
            function = getattr(module, function_name, None)
            if function is None:
                raise EnvError(f"--env {self.env}: {module_name} has no {function_name!r}")
            return lambda **extra: function(**self.env_kwargs, **extra)
        name = self.env if self.env in gymnasium.registry else _newest_version(self.env)
        if name is None:
            raise EnvError(f"unknown --env {self.env}{_did_you_mean(self.env)}")
        return lambda **extra: gymnasium.make(name, disable_env_checker=True, **self.env_kwargs, **extra)


def _newest_version(name: str) -> str | None:
    """`CartPole` -> `CartPole-v1`."""
    versions = [key for key in gymnasium.registry if re.fullmatch(re.escape(name) + r"-v\d+", key)]
    return max(versions, key=lambda key: int(key.rpartition("-v")[2]), default=None)


def _did_you_mean(name: str) -> str:
    known = list(gymnasium.registry)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return (
        f"{hint} Use a Gymnasium id, or my_package.my_module:make_env"
        if hint
        else (": use a Gymnasium id (PongNoFrameskip-v4, CartPole-v1, Catch-v0), or my_package.my_module:make_env")
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
