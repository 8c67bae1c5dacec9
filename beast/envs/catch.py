"""Catch (after bsuite): a ball falls through a grid, and a paddle in the bottom row must meet it. Learned in seconds."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class Catch(gymnasium.Env[np.ndarray, np.int64]):
    """The game Catch: three actions (left, stay, right) and a reward of 1 or -1 at the end of an episode.

    Observations are `[rows, columns]` uint8, 255 at ball and paddle. An episode takes `rows - 1` steps. `metric_names` adds
    the share of caught balls to the logs.

    Args:
        rows: height of the grid.
        columns: width of the grid.
        render_mode: "rgb_array" or None.
    """

    metadata = {  # noqa: RUF012, Gymnasium declares it on the instance
        "render_modes": ["rgb_array"],
        "render_fps": 10,
    }
    metric_names = ("caught",)

    def __init__(self, rows: int = 10, columns: int = 5, render_mode: str | None = None) -> None:
        if type(rows) is not int or type(columns) is not int or rows < 2 or columns < 1:
            raise ValueError(f"Catch needs 2 rows and 1 column at least, got {rows!r:.20} and {columns!r:.20}")
        self.rows, self.columns, self.render_mode = rows, columns, render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, (rows, columns), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(3)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Put the ball at a random column of the top row and the paddle in the middle."""
        super().reset(seed=seed)
        self._ball = [0, int(self.np_random.integers(self.columns))]
        self._paddle = self.columns // 2
        return self._board(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move the paddle by `action - 1` columns and the ball by one row."""
        self._paddle = min(max(self._paddle + int(action) - 1, 0), self.columns - 1)
        self._ball[0] += 1
        over = self._ball[0] == self.rows - 1
        if not over:
            return self._board(), 0.0, False, False, {}
        caught = self._ball[1] == self._paddle
        return self._board(), 1.0 if caught else -1.0, True, False, {"caught": float(caught)}

    def _board(self) -> np.ndarray:
        board = np.zeros((self.rows, self.columns), np.uint8)
        board[tuple(self._ball)] = 255
        board[-1, self._paddle] = 255
        return board

    def render(self) -> np.ndarray:
        """Return the picture: `[rows * 16, columns * 16, 3]` uint8."""
        return np.repeat(np.kron(self._board(), np.ones((16, 16), np.uint8))[..., None], 3, axis=-1)
