"""What each rank of `test_torchrun.py` does: learn from its part of batches that were kept, and say what came of it.

`torchrun rank.py FOLDER`: `FOLDER/given.pt` has flags and batches; `FOLDER/rank_N.pt` will have what rank N ended with.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from beast.core.data import Batch
from beast.run import torchrun
from beast.run.assemble import make_learner
from beast.run.resolve import resolve_config
from beast.run.torchrun import joined

STEPS = (100, 101)  # that each rank's part counts


def learner_of(flags):
    """Gradients and learner, always with the same weights."""
    config, task = resolve_config(flags)
    torch.manual_seed(3)
    return make_learner(config, task)


def part(batch, number, size):
    """The unrolls of a batch that are one rank's."""
    each = batch.action.shape[1] // size
    mine = slice(each * number, each * (number + 1))
    return batch._replace(
        **{name: value[:, mine] for name, value in batch._asdict().items() if torch.is_tensor(value) and value.ndim > 1}
    )


def learn(ranks, gradients, learner, batch):
    """One update; None if a rank has left."""
    (gradient,) = gradients.of(gradients.to_device(part(batch, ranks.number, ranks.size)))
    total = ranks.sum(gradient, STEPS[ranks.number] if ranks.size > 1 else sum(STEPS))
    return None if total is None else learner.apply(*total)


def main(folder):
    """Three updates with a NaN in the second, then rank 1 leaves as if it had been sent SIGHUP."""
    flags, batches = torch.load(folder / "given.pt", weights_only=False)
    torchrun.GATHER_EVERY = 0.0
    with joined() as ranks:
        gradients, learner = learner_of(flags)
        finite, gathered = [], []
        for number, batch in enumerate(batches):
            finite.append(bool(learn(ranks, gradients, learner, Batch(*batch)).metrics["finite"]))
            gathered += ranks.gather([(ranks.number, number)])
        if ranks.number == 1:
            ranks.leave(gradients.nothing(), 1, failed=False)
        else:
            assert learn(ranks, gradients, learner, Batch(*batches[0])) is None
        said = ranks.of_first(lambda: f"rank {ranks.number} of {ranks.size}")
        torch.save(
            {
                "state": learner.state_dict(), "finite": finite, "gathered": gathered, "ending": tuple(ranks.ending),
                "said": said,
            },
            folder / f"rank_{ranks.number}.pt",
        )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
