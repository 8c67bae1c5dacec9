"""Train from a script, with a callback that may stop the run: `python examples/train_from_python.py`."""

from __future__ import annotations

from typing import Any

import beast


class EnoughGames:
    """A callback that ends the run after a number of games and keeps their returns."""

    def __init__(self, games: int) -> None:
        self.games = games
        self.returns: list[float] = []

    def after_episode(self, step: int, episode: Any) -> bool:
        """Keep the return; return True, which ends the run, after enough games."""
        self.returns.append(episode.episode_return)
        return len(self.returns) >= self.games


enough = EnoughGames(200)
try:
    run = beast.train(env="CartPole-v1", num_actors=8, total_steps=100_000, callbacks=[enough])
except beast.ConfigError as error:
    raise SystemExit(f"a flag is wrong: {error}") from error
result = beast.evaluate(run, episodes=10)
print(f"{len(enough.returns)} games in training; {run}: mean return {result['mean']:.1f}")
