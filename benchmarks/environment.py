"""Stepping Pong alone on one core: ours, the public engines, and the bare emulator that all of them run, in turns.

Every engine steps as many games, four frames a step, with the same random actions. Core time is counted, not wall time.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ale_py
import gymnasium
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from beast.core.data import Array
from beast.envs import EnvChoice
from benchmarks.plots import bars, panels, save

GAMES = 24  # as many as an actor process has by default on two cores
REPEAT = 4
ACTIONS = 6
ROUNDS = 5
BARE = "emulator, no screen"

Step = Callable[[Array], Any]


def _emulators(with_screens: bool) -> Step:
    """4 x act, and the last two grey screens into a buffer."""
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    games = []
    for seed in range(GAMES):
        game = ale_py.ALEInterface()
        game.setInt("random_seed", seed)
        game.setFloat("repeat_action_probability", 0.0)
        game.loadROM(str(ale_py.roms.get_rom_path("pong")))
        games.append(game)
    actions = games[0].getMinimalActionSet()
    screens = np.empty((2, *games[0].getScreenDims()), np.uint8)

    def step(choice: Array) -> None:
        for game, number in zip(games, choice.tolist(), strict=True):
            if game.game_over():
                game.reset_game()
            for repeat in range(REPEAT):
                game.act(actions[number])
                if with_screens and repeat >= REPEAT - 2:
                    game.getScreenGrayscale(screens[repeat - REPEAT])

    return step


def _wrappers() -> Step:
    gymnasium.register_envs(ale_py)

    def make() -> Any:
        env = gymnasium.make("ALE/Pong-v5", frameskip=1, repeat_action_probability=0.0)
        return FrameStackObservation(AtariPreprocessing(env, frame_skip=REPEAT), 4)

    envs = [make() for _ in range(GAMES)]
    for seed, env in enumerate(envs):
        env.reset(seed=seed)

    def step(choice: Array) -> None:
        for env, number in zip(envs, choice.tolist(), strict=True):
            _, _, terminated, truncated, _ = env.step(number)
            if terminated or truncated:
                env.reset()

    return step


def _vector_env() -> Step:
    vector = AtariVectorEnv("pong", GAMES, num_threads=1)
    vector.reset(seed=np.arange(GAMES))
    return vector.step


def _group() -> Step:
    group = EnvChoice("PongNoFrameskip-v4").make_vector(list(range(GAMES)))
    group.reset()
    return group.step


def _envpool() -> Step:
    import envpool

    pool = envpool.make("Pong-v5", env_type="gymnasium", num_envs=GAMES, num_threads=1, seed=0)
    pool.reset()
    return lambda choice: pool.step(choice.astype(np.int32))


def engines() -> dict[str, Callable[[], Step]]:
    """Return the engines that are installed, and the bare emulator."""
    found: dict[str, Callable[[], Step]] = {
        "VectorEnvs (ours)": _group,
        "AtariVectorEnv": _vector_env,
        "Gymnasium's wrappers": _wrappers,
        BARE: partial(_emulators, False),
        "emulator, 2 grey screens": partial(_emulators, True),
    }
    return found | ({"envpool": _envpool} if find_spec("envpool") else {})


def measure(seconds: float) -> dict[str, Any]:
    """Measure steps per second of core time for every engine: the median of rounds, and its share of the bare emulator's."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # threads of the engines inherit it
    try:
        steps = {name: make() for name, make in engines().items()}
        choices = np.random.default_rng(0).integers(0, ACTIONS, (1000, GAMES))
        rounds = [{name: _rate(step, choices, seconds / ROUNDS) for name, step in steps.items()} for _ in range(ROUNDS)]
    finally:
        os.sched_setaffinity(0, cores)
    sps = {name: statistics.median(found[name] for found in rounds) for name in steps}
    return {
        "sps_per_core": sps,
        "share_of_bare_emulator": {name: value / sps[BARE] for name, value in sps.items()},
        "rounds": rounds,
        "not_installed": [] if "envpool" in sps else ["envpool"],
    }


def _rate(step: Step, choices: Array, seconds: float) -> float:
    step(choices[0])
    count, start, end = 0, time.process_time(), time.perf_counter() + seconds
    while not count or time.perf_counter() < end:
        step(choices[count % len(choices)])
        count += 1
    return count * GAMES / (time.process_time() - start)


def points(seconds: float) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what to measure, by name."""
    return {"Pong, 24 games": partial(measure, seconds)}


def draw(figures: dict[str, dict[str, Any]], file: Path) -> None:
    """Draw a bar for each engine."""
    (found,) = figures.values()
    figure, (panel,) = panels(1, "Stepping 24 games of Pong, one core")
    sps = found["sps_per_core"]
    labels = {name.replace(" ", "\n"): value for name, value in sps.items()}
    bars(panel, list(labels), {"": labels}, "agent steps a second of core time")
    panel.axhline(sps[BARE], linewidth=0.8, linestyle="--", color="grey")
    panel.tick_params(axis="x", labelsize=6)
    save(figure, file)
