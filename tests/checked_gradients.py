"""A run whose every gradient is computed again before it is applied: by another learner, from the same unrolls and weights."""

from __future__ import annotations

import torch

from beast.run.assemble import assemble
from beast.run.gradients import make_gradients
from beast.run.resolve import resolve_config
from beast.store.sources import Work

FLAGS = {
    "env": "Catch-v0", "trainer": "a3c", "num_actors": 4, "num_actor_processes": 2, "total_steps": 2_000,
    "precision": "float32", "report_every": 1000, "max_restarts": 100,
}  # fmt: skip


class Checked:
    """A run, and what was found out about its gradients.

    Args:
        look: called with each Work between the check and its application.
        flags: that differ from FLAGS.
    """

    def __init__(self, look=lambda work: None, folder=None, **flags):
        config, task = resolve_config(FLAGS | flags)
        self.run = assemble(config, task, folder, live=False)
        self.source, self.learner = self.run.learning.source, self.run.learner
        with torch.random.fork_rng(devices=[]):
            self.own = make_gradients(config, task, task.model.build(), torch.device("cpu"))
        self.look, self.works, self.staleness, self.seen = look, [], [], []
        self.published = {0: self.learner.acting.parameters.clone()}
        self._wrap(self.run.learning)

    def _wrap(self, learning):
        ask, publish = self.source.next, learning.publish

        def check_and_hand_on(timeout):
            if (work := ask(timeout)) is not None:
                self.check(work)
                self.look(work)
            return work

        def publish_and_keep():
            publish()
            self.published[self.learner.updates] = self.learner.acting.parameters.clone()

        self.source.next, learning.publish = check_and_hand_on, publish_and_keep

    def check(self, work: Work) -> None:
        """The gradient is the one of these unrolls at the weights that acted in them; of a later pass, at the newest.

        (Of a later pass that holds for one worker alone: then nobody's update comes in between.)
        """
        (worker,) = work.slots
        store = self.source.stores[worker]
        batch, episodes = store.read(list(range(store.num_buffers)))
        (version,) = batch.policy_version.unique().tolist()
        version = version if work.steps else self.learner.updates
        self.own.acting.parameters.copy_(self.published[version])
        expected = next(self.own.of(self.own.to_device(batch)))
        torch.testing.assert_close(work.gradient.vector, expected.vector, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(work.gradient.metrics["total_loss"], expected.metrics["total_loss"])
        assert repr(work.episodes) == repr(episodes if work.steps else [])  # NaN equals nothing
        self.works.append(work)
        self.staleness.append(self.learner.updates - version)
        self.seen.append((worker, version))
        if not work.steps:
            return
        with torch.no_grad():
            logits = self.own.acting.model(batch.model_input(), batch.core_state)[0].policy_logits[:-1]
        torch.testing.assert_close(logits, batch.behaviour_logits, rtol=1e-4, atol=1e-5)  # so importance weights are 1

    def train(self):
        """Run it to its end."""
        assert self.run.run() == 0
        updates = self.learner.updates
        assert len(self.works) - updates in (0, 1)  # what comes when the run is over is left
        assert self.learner.steps == sum(work.steps for work in self.works[:updates])
        assert len(set(self.seen)) == len(self.seen)  # nothing twice: a worker's own update comes before its next
        return self
