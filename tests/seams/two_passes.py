"""An algorithm of two passes over each batch: the second one sees the weights that the first has led to."""

from beast.core import algorithms
from beast.core.algorithms import impala

Config = impala.Config


class Algorithm(algorithms.Algorithm):
    def losses(self, forward, batch):
        for _ in range(2):
            yield impala.loss(forward(batch), batch, self.distribution, self.config)
