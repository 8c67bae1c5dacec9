"""From a batch to gradients: a model, its algorithm and their vectors. No optimiser, no queue, no process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from beast.core.algorithms import Algorithm
from beast.core.data import ACTION_MASK, Batch, ModelOutput, Nested, flatten, map_nested, restack
from beast.core.finite import spoil
from beast.core.flat import FlatModel

Losses = Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]


class Gradient(NamedTuple):
    """The result of one pass over a batch. Gradients may be summed over ranks and micro-batches; each lasts until the next."""

    vector: torch.Tensor
    """`[P]` float32: the model's parameters, then the algorithm's. Not finite if any input of it was not."""
    sums: torch.Tensor
    """float32 sums of what the forward saw, for the running statistics (`FlatModel.merge`)."""
    metrics: dict[str, torch.Tensor]
    """Scalars by name, among them `total_loss`."""


class Staged(NamedTuple):
    """A batch on the device, and the event after which it is complete (None if it is already)."""

    batch: Batch
    ready: torch.cuda.Event | None
    resets: tuple[int, ...] | None = None
    """See `ModelInput`."""


class Gradients:
    """The learner's model and algorithm: batches in, gradients out.

    Args:
        acting: the model, in the dtype that it computes in.
        algorithm: its losses and its own parameters.
        observation_spec: says which fields are stacked.
        device: where the model is.
        compile_model: whether torch.compile compiles it at the first batch, for that batch's shapes.

    Raises:
        ModelError: if the algorithm cannot learn this model.
    """

    def __init__(
        self, acting: FlatModel, algorithm: Algorithm, observation_spec: Nested, device: torch.device,
        compile_model: bool = False,
    ) -> None:  # fmt: skip
        self.acting, self.algorithm, self.device = acting, algorithm, device
        algorithm.bind(acting.model)
        self.own = FlatModel(algorithm.module, device)
        """The algorithm's own parameters and statistics."""
        model = acting.model
        self._model: Callable[..., Any] = torch.compile(model, dynamic=False) if compile_model else model
        self._compiled = compile_model
        rows = getattr(model, "micro_batch_rows", None) if algorithm.additive and device.type == "cpu" else None
        self._most_rows = None if rows is None else rows * 4 // acting.parameters.element_size()
        self._stacks = map_nested(lambda spec: spec.stack, observation_spec)
        self._copy_stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        size = acting.parameters.numel()
        self._vector = torch.zeros(size + self.own.parameters.numel(), device=device)
        # A model's gradients have its own dtype; a float32 model can write them directly into the vector.
        self._narrow = acting.parameters.dtype != torch.float32
        self._grad = torch.zeros_like(acting.parameters) if self._narrow else self._vector[:size]
        for part, vector in ((acting, self._grad), (self.own, self._vector[size:])):
            views = part.parameter_views(vector)
            for name, p in part.model.named_parameters():
                p.grad = views[name]

    def to_device(self, batch: Batch) -> Staged:
        """Copy the batch to the device, on a separate stream, while another batch is being learned from."""
        if self._copy_stream is None:
            return Staged(batch, None)
        # A compiled model would be compiled again for each pattern of resets.
        resets = None if self._compiled else tuple(np.flatnonzero(batch.first.numpy().any(axis=1)).tolist())
        with torch.cuda.stream(self._copy_stream):
            moved = Batch(*(map_nested(lambda x: x.pin_memory().to(self.device, non_blocking=True), f) for f in batch))
            return Staged(moved, self._copy_stream.record_event(), resets)

    def of(self, staged: Staged) -> Iterator[Gradient]:
        """Yield one gradient for each pass of the algorithm, computed with the weights at the moment it is requested.

        It never waits for the device. Whether rewards, float observations and the loss are finite is checked there: if not, the
        gradient is not finite either. (Rewards are checked directly, because clipping makes an infinite one ordinary.)
        """
        batch = self._rebuild(staged)
        inputs, number = [batch.reward, *flatten(staged.batch.observation)], 0
        forward = partial(self._forward, batch.first, staged.resets)
        passes = [self.algorithm.losses(forward, part) for part in self._micro_batches(batch)]
        while (found := self._add_up(passes, count=number == 0)) is not None:
            spoil(self._vector[:1], [found.metrics["total_loss"], *inputs])
            yield found
            number, inputs = number + 1, []

    def _add_up(self, passes: list[Losses], count: bool) -> Gradient | None:
        """Sum one pass's gradients over all micro-batches, in float32. Return None if there is no further pass."""
        found: list[Gradient] = []
        for losses in passes:
            before = [part.statistics.clone() for part in self.parts]  # because a forward may change them
            if (one := next(losses, None)) is None:
                return None
            loss, metrics = one
            if not found:
                self._vector.zero_()
            if self._narrow:
                self._grad.zero_()
            loss.backward()  # type: ignore[no-untyped-call]
            if self._narrow:
                self._vector[: self._grad.numel()].add_(self._grad)
            found.append(Gradient(self._vector, self._sums(before, count), {**metrics, "total_loss": loss.detach()}))
        return found[0] if len(found) == 1 else self._together(found)

    def _together(self, parts: list[Gradient]) -> Gradient:
        """Combine micro-batches: their vector is summed already, their statistics' sums and their terms are not."""
        terms = {name: torch.stack([part.metrics[name] for part in parts]) for name in parts[0].metrics}
        metrics = {name: x.mean() if name in self.algorithm.means else x.sum() for name, x in terms.items()}
        return Gradient(self._vector, torch.stack([part.sums for part in parts]).sum(0), metrics)

    def nothing(self) -> Gradient:
        """Return zeros, for a rank that has no gradient."""
        sums = sum(part.num_sums for part in self.parts)
        return Gradient(torch.zeros_like(self._vector), self._vector.new_zeros(sums), {})

    @property
    def parts(self) -> tuple[FlatModel, FlatModel]:
        """The model and the algorithm's module, in the order of all vectors."""
        return self.acting, self.own

    @torch.no_grad()
    def _sums(self, before: list[torch.Tensor], count: bool) -> torch.Tensor:
        """Return what the forward saw, if it is to count, and restore the statistics, which `Learner` keeps."""
        sums = torch.cat([part.sums() for part in self.parts])
        for part, statistics in zip(self.parts, before, strict=True):
            part.statistics.copy_(statistics)
        return sums if count else torch.zeros_like(sums)

    def _forward(self, known: torch.Tensor, resets: tuple[int, ...] | None, batch: Batch) -> ModelOutput:
        """Return the model's outputs on all rows of a batch. The resets are known for one `first` alone."""
        outputs: ModelOutput
        inputs = batch.model_input()
        if batch.first is known:
            inputs = inputs._replace(resets=resets)
        outputs, _ = self._model(inputs, batch.core_state)
        if ACTION_MASK in batch.extra:
            masked = self.algorithm.distribution.masked(outputs.policy_logits, batch.extra[ACTION_MASK])
            outputs = outputs._replace(policy_logits=masked)
        return outputs

    def _micro_batches(self, batch: Batch) -> list[Batch]:
        """Split a batch into as few equal parts as possible, none with more rows than a CPU should learn from at once."""
        rows, size = batch.first.shape
        number = 1 if self._most_rows is None else min(size, -(-rows * size // self._most_rows))
        if number == 1:
            return [batch]
        edges = [size * i // number for i in range(number + 1)]
        return [batch.unrolls(slice(*edge)) for edge in itertools.pairwise(edges)]

    def _rebuild(self, staged: Staged) -> Batch:
        """Return the batch for models and losses: stacks are rebuilt from frames."""
        batch = staged.batch
        if staged.ready is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(staged.ready)
            for tensor in flatten(tuple(batch)):
                tensor.record_stream(stream)  # the allocator must not reuse it while this stream needs it

        def rebuild(stack: int, value: torch.Tensor) -> torch.Tensor:
            return restack(value, batch.first, stack) if stack > 1 else value

        return batch._replace(observation=map_nested(rebuild, self._stacks, batch.observation))
