"""Running statistics: every step counts once, whichever statistics a forward saw."""

import torch
from torch import nn

from beast.core.flat import FlatModel
from beast.core.statistics import RunningStatistics


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.running = RunningStatistics(3)

    def forward(self, x):
        return self.scale * self.running(x)


def test_sums_of_forwards_that_saw_older_statistics_merge_exactly():
    generator = torch.Generator().manual_seed(1)
    learner, parts = FlatModel(Model()), [torch.randn(n, 3, generator=generator) * 3 + n for n in (40, 25, 60, 10)]
    older = learner.statistics.clone()
    for number, part in enumerate(parts):
        worker = FlatModel(Model())
        worker.statistics.copy_(older)
        worker.model(part)
        if number % 2 == 0:
            older = learner.statistics.clone()  # behind by one or two merges
        learner.merge(worker.sums())
    seen = torch.cat(parts)
    running = learner.model.running
    assert running.count.item() == len(seen)
    torch.testing.assert_close(running.mean, seen.mean(0))
    torch.testing.assert_close(running.variance, seen.var(0, unbiased=False))
