"""Act with a policy in a loop of your own: `python examples/act.py RUN`, after training on CartPole-v1.

No environment is made to load a policy: the checkpoint holds its spaces.
"""

from __future__ import annotations

import sys

import gymnasium

import beast


def main(run: str) -> None:
    """Play one game and print its return."""
    agent = beast.load(run, deterministic=True)
    env = gymnasium.make("CartPole-v1")
    observation, _ = env.reset(seed=0)
    total, reward, over = 0.0, None, False  # there is no reward before the first row
    while not over:
        observation, reward, terminated, truncated, _ = env.step(agent.act(observation, reward))
        total, over = total + float(reward), terminated or truncated
    print(f"return {total:g}")


if __name__ == "__main__":
    main(sys.argv[1])
