"""Columns of one's own: an environment says which actions are allowed, a model heeds it, keeps its doubt, a loss sees both."""

import gymnasium
import numpy as np
from gymnasium import spaces

from beast.core import algorithms
from beast.core.algorithms import impala
from beast.core.data import ArraySpec
from beast.models import mlp

SEEN = []  # batches that the loss was given


class Masked(gymnasium.Env):
    """At step n action n % 3 is forbidden, and ends the episode with -1."""

    observation_space = spaces.Box(0, 10, (1,), np.float32)
    action_space = spaces.Discrete(3)
    info_columns = {"allowed": spaces.MultiBinary(3)}  # noqa: RUF012

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._say()

    def _say(self):
        return np.array([self.steps], np.float32), {"allowed": (np.arange(3) != self.steps % 3).astype(np.int8)}

    def step(self, action):
        assert action != self.steps % 3, "a forbidden action was drawn"
        self.steps += 1
        observation, info = self._say()
        return observation, float(action), self.steps == 7, False, info | {"lives": self.steps}


class Model(mlp.Model):
    columns = {"doubt": ArraySpec((), np.dtype(np.float32))}  # noqa: RUF012

    def forward(self, inputs, core_state):
        outputs, core_state = super().forward(inputs, core_state)
        logits = outputs.policy_logits.masked_fill(inputs.extra["allowed"] == 0, -1e9)
        return outputs._replace(policy_logits=logits, extra={"doubt": outputs.value * 2}), core_state


Config = impala.Config


class Algorithm(algorithms.Algorithm):
    info_columns = {"lives": ArraySpec((), np.dtype(np.int64))}  # noqa: RUF012

    def losses(self, forward, batch):
        outputs, extra = forward(batch), batch.extra
        SEEN.append(
            (extra["allowed"], batch.action, batch.agent_extra["doubt"], extra["lives"], batch.actor, batch.first)
        )
        yield impala.loss(outputs, batch, self.distribution, self.config)


make_env = Masked
