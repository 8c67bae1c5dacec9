"""Play full games with an agent."""

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
    """Unclipped returns and lengths (agent steps) of `episodes` full games, with the recurrent state carried along.

    Several games run at once, each environment plays a fixed share of the episodes: taking the first to finish would
    favour short ones. `alive` is asked at each step; False ends it early with what is there.
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
