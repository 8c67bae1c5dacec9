"""The actors of all trainers: environments, a random stream for each, and the rows of the unrolls that they write.

Who chooses the actions is left open: MonoBeast asks a policy in the same process, PolyBeast one that serves many.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from beast.acting.models import ModelChoice
from beast.core.data import Array, Chosen, EnvOutput, Nested
from beast.core.seeds import seed_for
from beast.envs import EnvChoice
from beast.processes.status import Status
from beast.store.unrolls import UnrollWriter


@dataclass(frozen=True)
class ActorArguments:
    """Which actors to run, on which task, and how their random streams are seeded."""

    env: EnvChoice
    model: ModelChoice
    actors: tuple[int, ...]
    """Actor numbers, out of `0 .. num_actors - 1` over the whole run."""
    seed: int
    life: int
    """Number that differs for each restart of the process and each resume of the run, so that seeds differ too."""
    unroll_length: int


class ActorGroup:
    """E actors stepped together, each one environment with one unroll of T steps at a time.

    For each unroll call `begin`, then `remember` with the recurrent state before row 0, then `step` T times.

    Args:
        arguments: which actors, on which task.
        writer: writes rows into the store's slots.
        status: what the actors report to.
    """

    def __init__(self, arguments: ActorArguments, writer: UnrollWriter, status: Status) -> None:
        a = arguments
        self._writer, self._status, self._unroll_length, self._actors = writer, status, a.unroll_length, a.actors
        self._distribution = a.model.distribution()
        seeds = [seed_for(a.seed, "env", actor, a.life) for actor in a.actors]
        self._envs = a.env.make_vector(seeds, alive=status.beat)
        # One stream for each actor, so that draws do not depend on how actors are spread over processes.
        self._generators = [np.random.default_rng(seed_for(a.seed, "actions", actor, a.life)) for actor in a.actors]
        self.env = self._first_row()
        """The row for which the policy chooses the next action."""
        self.row = self._unroll_length
        """Index of that row in the unroll; T means that the unroll is complete and this is row 0 of the next one."""
        status.beat()

    def _first_row(self) -> EnvOutput:
        try:
            return self._envs.reset()
        except BaseException:
            self.close()
            raise

    def begin(self, slots: Array) -> None:
        """Start one unroll for each actor, in these slots: `[E]`."""
        self._slots = slots
        self._draw()
        self.row = 0

    def _draw(self) -> None:
        self._noise = np.stack([self._distribution.noise(g, self._unroll_length) for g in self._generators], axis=1)

    @property
    def noise(self) -> Array:
        """Return `[E, noise_size]`: the noise with which this row's actions are sampled."""
        noise: Array = self._noise[self.row]
        return noise

    def remember(self, core_state: Nested) -> None:
        """Store the recurrent state before row 0: `[E, ...]`."""
        self._writer.begin(self._slots, core_state, self._actors)

    def step(self, chosen: Chosen, policy_version: int) -> bool:
        """Write this row with the chosen actions and step to the next row; return True when the unroll is complete."""
        with self._status.time("store"):
            self._writer.write_env(self._slots, self.row, self.env)
            self._writer.write_agent(self._slots, self.row, chosen, policy_version)
        with self._status.time("environment"):
            self.env = self._envs.step(chosen.action)
        self._status.beat(len(self._slots))
        self.row += 1
        if self.row < self._unroll_length:
            return False
        self._writer.write_env(self._slots, self.row, self.env)
        return True

    @property
    def num_params(self) -> int:
        """Number of the distribution's parameters, P; discrete actions are smaller numbers."""
        return self._distribution.num_params

    def fast_forward(self, actions: Array) -> None:
        """Repeat what an unroll did to environments and random streams.

        Args:
            actions: of the unroll, `[E, T]` (+ `[N]`).

        Raises:
            ValueError: if an action is out of range: emulators do not check and would hang.
        """
        space = self._envs.action_space
        most = getattr(space, "n", getattr(space, "nvec", np.inf))
        if len(actions) != len(self._generators) or not np.isfinite(actions).all():
            raise ValueError("not the actions of these actors")
        if actions.dtype.kind in "iu" and ((actions < 0).any() or (actions >= most).any()):
            raise ValueError("not actions of these environments")
        self._draw()
        for action in actions.swapaxes(0, 1).astype(self._distribution.action_spec.dtype):
            self.env = self._envs.step(action)

    def close(self) -> None:
        """Close the environments."""
        self._envs.close()


def spread(num_actors: int, num_processes: int) -> list[tuple[int, ...]]:
    """Divide the actor numbers as evenly as possible among the processes."""
    return [tuple(int(i) for i in part) for part in np.array_split(np.arange(num_actors), num_processes)]
