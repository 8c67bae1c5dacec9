"""The learner: one step from a batch to new weights. It knows no environment, no queue and no process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from beast.data import Batch, Nested, flatten, map_nested, restack
from beast.distributions import Distribution
from beast.finite import all_finite
from beast.weights import flatten_parameters

Loss = Callable[..., tuple[torch.Tensor, dict[str, torch.Tensor]]]


@dataclass(frozen=True)
class OptimiserConfig:
    """Optimiser (RMSProp)"""

    learning_rate: float = 6e-4
    """at the start; falls linearly to 0 over total_steps"""
    alpha: float = 0.99
    """decay of the running mean of squared gradients"""
    momentum: float = 0.0
    """0: none"""
    epsilon: float = 0.01
    """added to the root (torch's form) or under it (TF's form)"""
    grad_norm_clipping: float = 40.0
    """clip of the gradient's global norm; 0: none"""
    rmsprop_form: str = "torch"
    """torch: mean square from 0, epsilon outside the root; tf: from 1, inside it (the paper's code)"""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"--learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.alpha < 1:
            raise ValueError(f"--alpha must lie in [0, 1), got {self.alpha}")
        if self.epsilon <= 0:
            raise ValueError(f"--epsilon must be positive, got {self.epsilon}")
        if self.grad_norm_clipping < 0:
            raise ValueError(f"--grad_norm_clipping must not be negative (0 means none), got {self.grad_norm_clipping}")
        if self.rmsprop_form not in ("torch", "tf"):
            raise ValueError(f"--rmsprop_form must be torch or tf, got {self.rmsprop_form!r}")


class TFRMSprop(torch.optim.Optimizer):
    """RMSProp as TensorFlow 1 has it: the mean square starts at one, epsilon is under the root."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, alpha: float, eps: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {"mean_square": torch.ones_like(p), "momentum_buffer": torch.zeros_like(p)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                mean_square = state["mean_square"]
                mean_square.mul_(group["alpha"]).addcmul_(p.grad, p.grad, value=1 - group["alpha"])
                step = p.grad * (mean_square + group["eps"]).rsqrt_()
                p.sub_(state["momentum_buffer"].mul_(group["momentum"]).add_(step, alpha=group["lr"]))


class Staged(NamedTuple):
    """A batch on the device, and the event after which it is there (None: it is there)."""

    batch: Batch
    ready: torch.cuda.Event | None


class Learner:
    """Weights, optimiser and schedule.

    The model may compute in bfloat16; the optimiser's own ("master") parameters are float32 always. All parameters lie
    in one vector, so clipping, the optimiser and publishing are each one operation.

    Args:
        model: float32, on the CPU; taken over.
        loss: `loss(outputs, batch, distribution, config) -> (scalar, metrics)`.
        loss_config: handed to it.
        observation_spec: tells which fields are stacked.
        total_steps: at which the learning rate reaches zero.
        device, dtype: where and in what the model computes.
        compile_model: by torch.compile, for these shapes alone, at the first update.
    """

    def __init__(
        self, model: nn.Module, distribution: Distribution, loss: Loss, loss_config: Any, optimiser: OptimiserConfig,
        observation_spec: Nested, total_steps: int, device: torch.device, dtype: torch.dtype,
        compile_model: bool = False,
    ) -> None:  # fmt: skip
        self.model = model.to(device)
        self._forward: Callable[..., Any] = torch.compile(self.model, dynamic=False) if compile_model else self.model
        self._distribution, self._loss, self._loss_config = distribution, loss, loss_config
        self._config, self._total_steps = optimiser, total_steps
        self._stacks = map_nested(lambda spec: spec.stack, observation_spec)
        self.device, self.dtype = device, dtype
        self._copy_stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.steps = 0
        """Agent steps taken in: learned from, or skipped."""
        self.updates = 0
        """Batches taken in: the version of the policy. After one that was skipped it is the same policy."""

        size = sum(p.numel() for p in model.parameters())
        self._master = nn.Parameter(flatten_parameters(self.model)[:size].clone())
        self.model.to(dtype)
        self.flat = flatten_parameters(self.model)
        """What actors act with: all parameters, then buffers, in the compute dtype."""
        if dtype == torch.float32:
            self._master.data = self.flat[:size]  # one and the same memory: nothing to copy after a step
        self._grad = torch.zeros_like(self.flat[:size])
        self._master.grad = self._grad if dtype == torch.float32 else torch.zeros_like(self._master)
        offset = 0
        for p in self.model.parameters():
            p.grad = self._grad[offset : offset + p.numel()].view(p.shape)
            offset += p.numel()
        form = TFRMSprop if optimiser.rmsprop_form == "tf" else torch.optim.RMSprop
        self._optimiser = form(
            [self._master], lr=optimiser.learning_rate, alpha=optimiser.alpha, eps=optimiser.epsilon,
            momentum=optimiser.momentum,
        )  # fmt: skip

    @property
    def learning_rate(self) -> float:
        """For the next update: linear from its start to zero at total_steps."""
        return self._config.learning_rate * max(0.0, 1.0 - self.steps / self._total_steps)

    def stage(self, batch: Batch) -> Staged:
        """Bring a batch to the device, on a stream of its own, while another one is being learned from."""
        if self._copy_stream is None:
            return Staged(batch, None)
        with torch.cuda.stream(self._copy_stream):
            moved = Batch(*(map_nested(lambda x: x.pin_memory().to(self.device, non_blocking=True), f) for f in batch))
            return Staged(moved, self._copy_stream.record_event())

    def step(self, staged: Staged) -> dict[str, torch.Tensor]:
        """One update from a batch; returns scalars by name, without waiting for the device.

        With NaN or infinity in a reward, a float observation, the loss or a gradient it is skipped: weights, buffers and
        optimiser stay as they are, while `steps` and `updates`, which the host counts, go on. `finite` among the scalars
        says which it was.
        """
        batch = self._rebuild(staged)
        buffers = self.flat[len(self._master) :]
        buffers_before = buffers.clone()  # running statistics and the like, which a forward may change
        outputs, _ = self._forward(batch.model_input(), batch.core_state)
        total_loss, metrics = self._loss(outputs, batch, self._distribution, self._loss_config)
        self._grad.zero_()
        total_loss.backward()  # type: ignore[no-untyped-call]
        grad = self._master.grad
        assert grad is not None
        if grad is not self._grad:
            grad.copy_(self._grad)
        total_loss, grad_norm = total_loss.detach(), torch.linalg.vector_norm(grad)  # finite if all gradients are
        # The reward is looked at itself: clipping makes an ordinary one of an infinite one.
        finite = all_finite([total_loss, grad_norm, batch.reward, *flatten(staged.batch.observation)])
        self._optimiser.param_groups[0]["lr"] = self.learning_rate
        if self.device.type != "cpu":
            self._descend_where(finite, grad, grad_norm)
        elif finite:
            self._descend(grad, grad_norm)
        if buffers.numel():
            buffers.copy_(torch.where(finite, buffers, buffers_before))
        if self.dtype != torch.float32:
            self.flat[: len(self._master)].copy_(self._master.detach())
        self.steps += batch.action.shape[0] * batch.action.shape[1]
        self.updates += 1
        return {**metrics, "total_loss": total_loss, "grad_norm": grad_norm, "finite": finite}

    def _descend(self, grad: torch.Tensor, grad_norm: torch.Tensor) -> None:
        if self._config.grad_norm_clipping:
            grad.mul_((self._config.grad_norm_clipping / (grad_norm + 1e-6)).clamp(max=1.0))
        self._optimiser.step()

    @torch.no_grad()
    def _descend_where(self, finite: torch.Tensor, grad: torch.Tensor, grad_norm: torch.Tensor) -> None:
        """The same without a branch, for which the device would be waited for: the step is made, and taken back there.

        Moments that the step itself makes (PyTorch's form) are zero after a gradient of zero. Its own count of steps, which
        RMSProp does not use, goes on.
        """
        moments = self._optimiser.state[self._master].values()
        kept = [self._master, *(x for x in moments if isinstance(x, torch.Tensor) and x.shape == self._master.shape)]
        before = [tensor.clone() for tensor in kept]
        grad.copy_(torch.where(finite, grad, 0.0))
        self._descend(grad, torch.where(finite, grad_norm, 0.0))
        for tensor, old in zip(kept, before, strict=True):
            tensor.copy_(torch.where(finite, tensor, old))

    def _rebuild(self, staged: Staged) -> Batch:
        """The batch as models and losses know it: stacks rebuilt from frames."""
        batch = staged.batch
        if staged.ready is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(staged.ready)
            for tensor in flatten(tuple(batch)):
                tensor.record_stream(stream)  # the allocator must not reuse it before this stream is done with it

        def rebuild(stack: int, value: torch.Tensor) -> torch.Tensor:
            return restack(value, batch.first, stack) if stack > 1 else value

        return batch._replace(observation=map_nested(rebuild, self._stacks, batch.observation))

    def _try_moments(self) -> None:
        """A step of nothing with a copy: moments that are not this model's raise here, and not in the middle of a run."""
        copied: Any = copy.deepcopy(self._optimiser)
        for group in copied.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        copied.step()

    # -- saving -------------------------------------------------------------------------------------------------------

    def model_state(self) -> dict[str, torch.Tensor]:
        """The model's state dict, float32, on the CPU."""
        state = {name: value.detach().float().cpu().clone() for name, value in self.model.state_dict().items()}
        offset = 0
        for name, p in self.model.named_parameters():
            state[name] = self._master.detach()[offset : offset + p.numel()].view(p.shape).cpu().clone()
            offset += p.numel()
        return state

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on as if nothing had happened."""
        return {
            "model": self.model_state(),
            "optimiser": copy.deepcopy(self._optimiser.state_dict()),  # PyTorch's own is no copy: steps would change it
            "steps": self.steps,
            "updates": self.updates,
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises RuntimeError if the state is of another model."""
        self.model.load_state_dict(state["model"])  # copies in place: the views stay views
        offset = 0
        for name, p in self.model.named_parameters():
            self._master[offset : offset + p.numel()] = state["model"][name].to(self.device).reshape(-1)
            offset += p.numel()
        own = dict(self._optimiser.param_groups[0])
        self._optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))  # nor does PyTorch copy here
        # The moments are the checkpoint's; epsilon and the like are what this run was asked for.
        self._optimiser.param_groups[0].update({k: v for k, v in own.items() if k != "params"})
        self._try_moments()
        self.steps, self.updates = int(state["steps"]), int(state["updates"])
