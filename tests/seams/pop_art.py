"""A hook like PopArt's: values are learned normalised, and what they mean does not move when the statistics do."""

import torch

from beast.core import algorithms
from beast.core.algorithms import impala
from beast.core.statistics import RunningStatistics

Config = impala.Config


class Algorithm(algorithms.Algorithm):
    def __init__(self, config, distribution):
        super().__init__(config, distribution)
        self.module.returns = RunningStatistics(1)

    def losses(self, forward, batch):
        seen = self.module.returns
        outputs = forward(batch)
        seen.observe(batch.reward.unsqueeze(-1) * 10 + 50)  # far from where values begin
        value = outputs.value * seen.variance.sqrt() + seen.mean
        yield impala.loss(outputs._replace(value=value), batch, self.distribution, self.config)

    def after_update(self, parameters, before, now):
        old, new = ({part: of[f"algorithm.returns.{part}"] for part in ("mean", "variance")} for of in (before, now))
        ratio = (old["variance"] / new["variance"]).sqrt()
        parameters["baseline.weight"].mul_(ratio)
        shift = (old["mean"] - new["mean"]) / new["variance"].sqrt()
        parameters["baseline.bias"].mul_(ratio).add_(shift)


def meaning(learner, value):
    """What a normalised value stands for."""
    own = dict(learner.own.model.named_buffers())
    return value * torch.sqrt(own["returns.variance"]) + own["returns.mean"]
