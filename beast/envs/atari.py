"""Atari with the paper's preprocessing, by ale-py's own vector environment (C++; no Python wrappers in the hot loop).

Observations are 84x84 grey, with an action repeat of 4, the maximum over the last two frames, a stack of 4, up to 30
no-ops, FIRE on reset where the game has it, and at most 108,000 frames in a game. Rewards are unclipped; the loss clips.

AtariVectorEnv's own `episodic_life` resets the *game* after the first lost life, so that no later part of a game would
ever be seen. Here a lost life only ends the return; the game continues.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from beast.core.data import ArraySpec
from beast.core.errors import EnvError
from beast.envs import wrappers
from beast.envs.adapter import Adapter
from beast.envs.base import VectorEnvs
from beast.envs.wrappers import Standard

ACTION_REPEAT = 4
STACK = 4
MAX_FRAMES = 108_000


def is_atari(env_id: str) -> bool:
    """Return whether an id names an Atari game played from pixels, in any of its usual forms."""
    spec = find_spec(env_id)
    return spec is not None and spec.kwargs.get("obs_type", "rgb") != "ram"


def find_spec(env_id: str) -> Any:
    """Return ale-py's registration of an id (`PongNoFrameskip-v4`, `ALE/Pong-v5`, ...), or None."""
    import ale_py

    gymnasium.register_envs(ale_py)
    env_id = env_id.removeprefix("ale_py:")
    # `PongDeterministic-v4` stood for a fixed action repeat, which all ids have here; newer ale-py does not register it.
    spec = gymnasium.registry.get(env_id) or gymnasium.registry.get(env_id.replace("Deterministic-v", "-v"))
    return spec if spec is not None and "ale_py" in str(spec.entry_point) else None


def make_vector(  # noqa: PLR0913
    env_id: str, seeds: list[int], columns: Mapping[str, ArraySpec] | None = None, *, evaluation: bool = False,
    standard: Standard | None = None, life_loss: bool = True, fire_on_life_loss: bool = False,
    full_action_set: bool = False, noop_max: int = 30, **overrides: Any,
) -> VectorEnvs:  # fmt: skip
    """Make games that one thread of this process steps together.

    Args:
        env_id: the game's id.
        seeds: one for each game.
        columns: see `VectorEnvs`.
        evaluation: whether lost lives do not end returns.
        standard: wrappers by flag; here they become settings of the emulator.
        life_loss: whether lost lives end returns in training.
        fire_on_life_loss: whether FIRE follows a lost life, in games that have it.
        full_action_set: whether to offer all 18 actions instead of the game's own.
        noop_max: most no-ops after a reset.
        overrides: further arguments of AtariVectorEnv (`maxpool`, `use_fire_reset`, ...).

    Raises:
        EnvError: if the game's ROM is missing, or an override is unknown or also given by a flag.
    """
    from ale_py.vector_env import AtariVectorEnv

    spec = find_spec(env_id)
    arguments: dict[str, Any] = dict(
        num_envs=len(seeds),
        num_threads=1,
        max_num_frames_per_episode=MAX_FRAMES,
        # v4 ids have no sticky actions; v5 ids repeat the last action with probability 0.25.
        repeat_action_probability=spec.kwargs.get("repeat_action_probability", 0.0),
        full_action_space=full_action_set,
        frameskip=ACTION_REPEAT,
        stack_num=STACK,
        noop_max=noop_max + 1,  # AtariVectorEnv draws from 0 to noop_max - 1
        reward_clipping=False,
        episodic_life=False,
    )
    flags = _settings(standard or Standard(), overrides)
    try:
        vector = AtariVectorEnv(spec.kwargs["game"], **(arguments | flags | overrides))
    except TypeError as error:
        raise EnvError(f"{env_id} does not take these --env_kwargs: {error}") from error
    except (AssertionError, OSError, RuntimeError) as error:
        raise EnvError(f"{env_id}: no ROM for {spec.kwargs['game']} (pip install --force-reinstall ale-py)") from error
    # Its frame stacks are blank before an episode's first frame, like the store's.
    stack = vector.observation_space.shape[1] if vector.grayscale and vector.observation_space.shape else 1
    fire = None
    if fire_on_life_loss:
        fire = next((i for i, action in enumerate(vector.ale.get_action_set()) if action.name == "FIRE"), None)
    lives = life_loss and not evaluation
    return VectorEnvs(vector, seeds, stack=stack, lives_end_returns=lives, fire=fire, columns=columns)


def _settings(standard: Standard, overrides: dict[str, Any]) -> dict[str, Any]:
    """Return the standard wrappers as arguments of AtariVectorEnv.

    Raises:
        EnvError: if `--env_kwargs` sets one of them too.
    """
    repeat = standard.action_repeat or overrides.get("frameskip", ACTION_REPEAT)
    height, width = standard.size or (None, None)
    limit = standard.max_episode_steps * repeat if standard.max_episode_steps else None
    settings = {
        "frameskip": ("--action_repeat", standard.action_repeat),
        "stack_num": ("--frame_stack", standard.frame_stack),
        "img_height": ("--resize", height),
        "img_width": ("--resize", width),
        "max_num_frames_per_episode": ("--max_episode_steps", limit),
        "repeat_action_probability": ("--repeat_action_probability", standard.repeat_action_probability),
        "grayscale": ("--grayscale", standard.grayscale or None),
    }
    for name, (flag, value) in settings.items():
        if value is not None and name in overrides:
            raise EnvError(f"{flag} and {name} in --env_kwargs are the same setting: give one of them")
    return {name: value for name, (_, value) in settings.items() if value is not None}


def make_single(
    env_id: str, *, standard: Standard | None = None, fire_on_life_loss: bool = False, full_action_set: bool = False,
    noop_max: int = 30, render_mode: str | None = None, **overrides: Any,
) -> gymnasium.Env[Any, np.ndarray]:  # fmt: skip
    """Make one game through Gymnasium's own wrappers, with the same preprocessing.

    It serves videos, the user's own wrappers (which are put around it), and tests of the fast path.

    Args:
        env_id: the game's id.
        standard: wrappers by flag.
        fire_on_life_loss: whether FIRE follows a lost life, in games that have it.
        full_action_set: whether to offer all 18 actions instead of the game's own.
        noop_max: most no-ops after a reset.
        render_mode: of Gymnasium; None does not render.
        overrides: further arguments of the emulator or of AtariPreprocessing.

    Raises:
        EnvError: for an override that Gymnasium's wrappers do not know.
    """
    from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

    spec, standard = find_spec(env_id), standard or Standard()
    settings = _settings(standard, overrides) | overrides
    repeat, sticky = settings.get("frameskip", ACTION_REPEAT), spec.kwargs.get("repeat_action_probability", 0.0)
    known = {
        "frameskip", "stack_num", "img_height", "img_width", "max_num_frames_per_episode", "repeat_action_probability",
        "grayscale", "use_fire_reset",
    }  # fmt: skip
    if unknown := sorted(settings.keys() - known):
        raise EnvError(f"{env_id}: with --wrapper or --video there is no {', '.join(unknown)} in --env_kwargs")
    env: gymnasium.Env[Any, Any] = gymnasium.make(
        f"ALE/{rom_name(spec.kwargs['game'])}-v5",
        frameskip=1,
        repeat_action_probability=settings.get("repeat_action_probability", sticky),
        full_action_space=full_action_set,
        max_num_frames_per_episode=settings.get("max_num_frames_per_episode", MAX_FRAMES),
        render_mode=render_mode,
    )
    has_fire = "FIRE" in env.unwrapped.get_action_meanings()  # type: ignore[attr-defined]
    if has_fire and settings.get("use_fire_reset", True):
        env = FireOnReset(env)
    size = settings.get("img_width", 84), settings.get("img_height", 84)
    env = AtariPreprocessing(
        env, noop_max=noop_max, frame_skip=repeat, screen_size=size, grayscale_obs=settings.get("grayscale", True)
    )
    if has_fire and fire_on_life_loss:
        env = FireOnLifeLoss(env)
    env = FrameStackObservation(env, settings.get("stack_num", STACK), padding_type="zero")
    return Adapter(wrappers.own(env, standard.wrapper), keep=("lives",)) if standard.wrapper else env


class FireOnReset(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A wrapper that presses FIRE right after the emulator's reset, before any no-op, as AtariVectorEnv does."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset the emulator and press FIRE once."""
        self.env.reset(**kwargs)
        observation, _, _, _, info = self.env.step(_fire(self.env))
        return observation, info


class FireOnLifeLoss(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A wrapper that replaces the action after a lost life by FIRE.

    Args:
        env: a game with the action FIRE.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self._lives, self._lost = 0, False

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset the game; no life counts as lost."""
        observation, info = self.env.reset(**kwargs)
        self._lives, self._lost = info["lives"], False
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take the action, or FIRE if the last step lost a life."""
        observation, reward, terminated, truncated, info = self.env.step(_fire(self.env) if self._lost else action)
        self._lost = info["lives"] < self._lives
        self._lives = info["lives"]
        return observation, reward, terminated, truncated, info


def _fire(env: gymnasium.Env[Any, Any]) -> int:
    meanings: list[str] = env.unwrapped.get_action_meanings()  # type: ignore[attr-defined]
    return meanings.index("FIRE")


def rom_name(game: str) -> str:
    """Return the name of a game's ROM in ale-py's registry: `space_invaders` is `SpaceInvaders`."""
    return game.title().replace("_", "")
