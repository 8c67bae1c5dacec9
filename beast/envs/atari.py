"""Atari with the paper's preprocessing, by ale-py's own vector environment (C++; no wrapper tower in the hot loop).

84x84 grey, action repeat 4, maximum over the last two frames, stack of 4, up to 30 no-ops, FIRE on reset where the game
has it, at most 108,000 frames a game. Rewards come unclipped: clipping belongs to the loss.

AtariVectorEnv's own `episodic_life` resets the *game* after the first lost life, so nothing beyond it would ever be seen.
Here a lost life only ends the return; the game goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from beast.data import ArraySpec
from beast.envs.base import EnvError, EnvGroup

ACTION_REPEAT = 4
STACK = 4
MAX_FRAMES = 108_000


def is_atari(env_id: str) -> bool:
    """Whether an id names an Atari game played from pixels, in any of its usual forms."""
    spec = find_spec(env_id)
    return spec is not None and spec.kwargs.get("obs_type", "rgb") != "ram"


def find_spec(env_id: str) -> Any:
    """ale-py's registration of an id (`PongNoFrameskip-v4`, `ALE/Pong-v5`, ...), or None."""
    import ale_py

    gymnasium.register_envs(ale_py)
    # `PongDeterministic-v4` meant a fixed action repeat, which all ids have here; newer ale-py no longer registers it.
    spec = gymnasium.registry.get(env_id) or gymnasium.registry.get(env_id.replace("Deterministic-v", "-v"))
    return spec if spec is not None and "ale_py" in str(spec.entry_point) else None


def make_group(
    env_id: str, seeds: list[int], columns: Mapping[str, ArraySpec] | None = None, *, evaluation: bool = False,
    full_action_set: bool = False, noop_max: int = 30, **overrides: Any,
) -> EnvGroup:  # fmt: skip
    """Games in one process, stepped by one thread.

    Args:
        seeds: one a game.
        columns: see `EnvGroup`.
        evaluation: lives do not end returns.
        full_action_set: all 18 actions instead of the game's own.
        noop_max: at most so many no-ops after a reset.
        overrides: further arguments of AtariVectorEnv (`repeat_action_probability`, `img_height`, ...).

    Raises:
        EnvError: if the game's ROM is missing, or an override is unknown.
    """
    from ale_py.vector_env import AtariVectorEnv

    spec = find_spec(env_id)
    arguments: dict[str, Any] = dict(
        num_envs=len(seeds),
        num_threads=1,
        max_num_frames_per_episode=MAX_FRAMES,
        # v4 ids have no sticky actions, v5 ids repeat the last action with probability 0.25.
        repeat_action_probability=spec.kwargs.get("repeat_action_probability", 0.0),
        full_action_space=full_action_set,
        frameskip=ACTION_REPEAT,
        stack_num=STACK,
        noop_max=noop_max + 1,  # AtariVectorEnv draws from 0 .. noop_max - 1
        reward_clipping=False,
        episodic_life=False,
    )
    try:
        vector = AtariVectorEnv(spec.kwargs["game"], **(arguments | overrides))
    except TypeError as error:
        raise EnvError(f"{env_id} does not take these --env_kwargs: {error}") from error
    except (AssertionError, OSError, RuntimeError) as error:
        raise EnvError(f"{env_id}: no ROM for {spec.kwargs['game']} (pip install --force-reinstall ale-py)") from error
    # Its frame stacks are blank before an episode's first frame, as the store's are.
    stack = vector.observation_space.shape[1] if vector.grayscale and vector.observation_space.shape else 1
    return EnvGroup(vector, seeds, stack=stack, lives_end_returns=not evaluation, columns=columns)


def make_single(
    env_id: str, *, full_action_set: bool = False, noop_max: int = 30, render_mode: str | None = None, **overrides: Any
) -> gymnasium.Env[Any, np.ndarray]:
    """One game through Gymnasium's own wrappers, the same preprocessing: for videos, and to test the fast path."""
    from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

    spec = find_spec(env_id)
    env: gymnasium.Env[Any, Any] = gymnasium.make(
        f"ALE/{rom_name(spec.kwargs['game'])}-v5",
        frameskip=1,
        repeat_action_probability=overrides.get(
            "repeat_action_probability", spec.kwargs.get("repeat_action_probability", 0.0)
        ),
        full_action_space=full_action_set,
        render_mode=render_mode,
    )
    if "FIRE" in env.unwrapped.get_action_meanings():  # type: ignore[attr-defined]
        env = FireOnReset(env)
    env = AtariPreprocessing(env, noop_max=noop_max, frame_skip=ACTION_REPEAT, screen_size=84)
    return FrameStackObservation(env, STACK, padding_type="zero")


class FireOnReset(gymnasium.Wrapper[Any, Any, Any, Any]):
    """One FIRE right after the emulator's reset, before any no-op, as AtariVectorEnv has it."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.env.reset(**kwargs)
        observation, _, _, _, info = self.env.step(self.env.unwrapped.get_action_meanings().index("FIRE"))  # type: ignore[attr-defined]
        return observation, info


def rom_name(game: str) -> str:
    """`space_invaders` -> `SpaceInvaders`."""
    return game.title().replace("_", "")
