"""Environments that say which actions are allowed, in `info` or in their observation, and fail if another one is taken."""

import gymnasium
import numpy as np
from gymnasium import spaces


class Picky(gymnasium.Env):
    """At step n choice n % 3 is forbidden; the other two earn 0 and 1. Seven steps an episode."""

    action_space = spaces.Discrete(3)

    def __init__(self, where="info"):
        self.where = where
        vector = spaces.Box(0, 10, (1,), np.float32)
        shown = spaces.Dict(steps=vector, action_mask=spaces.MultiBinary(3))
        self.observation_space = shown if where == "observation" else vector

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._say()

    def _say(self):
        mask = (np.arange(3) != self.steps % 3).astype(np.int8)
        vector = np.array([self.steps], np.float32)
        if self.where == "observation":
            return {"steps": vector, "action_mask": mask}, {}
        return vector, {"action_mask": mask}

    def step(self, action):
        if action == self.steps % 3:
            raise RuntimeError(f"action {action} is forbidden at step {self.steps}")
        self.steps += 1
        observation, info = self._say()
        return observation, float(action == self.steps % 3), self.steps == 7, False, info


class Half(Picky):
    """A joint action: a choice of two, of which one is forbidden in turn, and a number."""

    action_space = spaces.Dict(choice=spaces.Discrete(2), force=spaces.Box(-1, 1, (1,), np.float32))

    def _say(self):
        vector = np.array([self.steps], np.float32)
        return vector, {"action_mask": np.arange(2) != self.steps % 2}

    def step(self, action):
        if action["choice"] == self.steps % 2:
            raise RuntimeError("a forbidden choice")
        self.steps += 1
        observation, info = self._say()
        return observation, float(action["force"][0]), self.steps == 7, False, info
