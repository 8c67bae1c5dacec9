"""Full games played with an agent."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from beast.acting.agent import Agent
from beast.acting.task import Task
from beast.core.seeds import seed_for

GAMES_AT_ONCE = 16


def play(
    task: Task, agent: Agent, episodes: int, seed: int, alive: Callable[[], bool] = lambda: True
) -> tuple[list[float], list[int]]:
    """Play full games and return their unclipped returns and their lengths in agent steps.

    Several games run at once, and each environment plays a fixed share of them: taking the first games to finish would
    favour short ones.

    Args:
        task: of the run.
        agent: chooses the actions and keeps the recurrent state.
        episodes: number of games.
        seed: of the environments.
        alive: called at each step; False stops early and returns the games so far.
    """
    num_envs = min(episodes, GAMES_AT_ONCE)
    quota = episodes // num_envs + (np.arange(num_envs) < episodes % num_envs)
    group = task.env.make_vector(
        [seed_for(seed, "evaluation", i) for i in range(num_envs)], True, lambda: [alive(), None][1]
    )
    returns: list[float] = []
    lengths: list[int] = []
    try:
        env = group.reset()
        while quota.any() and alive():
            env = group.step(agent.choose(env.observation, env.reward, env.first, env.extra).action)
            for i in np.flatnonzero(~np.isnan(env.episode_steps) & (quota > 0)):
                quota[i] -= 1
                returns.append(float(env.episode_return[i]))
                lengths.append(int(env.episode_steps[i]))
    finally:
        group.close()
    return returns, lengths
