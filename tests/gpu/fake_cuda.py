"""Run learner and policy on fake CUDA tensors: shapes, dtypes and devices without numbers, on a machine without a GPU.

A program of its own (`test_fake_cuda.py` starts it with `no_cuda.cpp` preloaded), because what is changed here for a PyTorch
without CUDA would hold for all tests of a process. Prints JSON: what was launched and waited for, by case; or an error.

A device mismatch raises, and so does a value that the host wants to know (`item`, `nonzero`, a tensor as a bool).
"""

from __future__ import annotations

import collections
import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).parents[2]))

from beast.acting.models import ModelChoice
from beast.acting.policy import Policy
from beast.core.algorithms import algorithm_of, impala
from beast.core.data import ArraySpec, Batch, EnvOutput
from beast.core.distributions import distribution_for
from beast.core.flat import FlatModel
from beast.core.gradients import Gradients
from beast.core.learner import Learner, master_parameters
from beast.core.optimisers import OptimiserConfig

T, B, E, STACK = 20, 32, 8, 4
RESETS = [3, 11]  # rows of the batch that have a first one
CUDA = torch.device("cuda")
ACTIONS = spaces.Discrete(6)
MODELS = ("atari_shallow", "impala_shallow", "impala_resnet", "mlp")
# What launches nothing: views, and questions about a tensor.
FREE = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "device", "expand", "lift_fresh", "permute",
    "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view",
}  # fmt: skip


def main():
    """Run all models; and the smallest one again with mistakes planted, one after the other."""
    pretend()
    figures = {}
    for model in MODELS:
        figures[model] = attempt(model, False)
        figures[f"{model}, LSTM"] = attempt(model, True)
    figures["mlp, PopArt"] = attempt("mlp", False, popart=True)
    clip = impala.REWARD_CLIPPING["abs_one"]
    for mistake, clipped in MISTAKES.items():
        impala.REWARD_CLIPPING["abs_one"] = clipped
        figures[mistake] = attempt("mlp", False)
    impala.REWARD_CLIPPING["abs_one"] = clip
    print(json.dumps(figures))


def attempt(model, use_lstm, **settings):
    try:
        return run(model, use_lstm, **settings)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def run(model, use_lstm, **settings):
    """Figures of one gradient, of one update with it, and of one forward of the policy."""
    image = model != "mlp"
    space = spaces.Box(0, 255, (STACK, 84, 84), np.uint8) if image else spaces.Box(-1, 1, (4,), np.float32)
    dtype = torch.bfloat16 if image else torch.float32
    choice = ModelChoice(model, use_lstm, space, ACTIONS)
    found = {}
    with FakeTensorMode():
        net = choice.build()
        masters = master_parameters(net)
        algorithm = algorithm_of(impala, impala.Config(**settings), distribution_for(ACTIONS))
        spec = ArraySpec(space.shape, space.dtype, stack=STACK if image else 1)
        gradients = Gradients(FlatModel(net, CUDA, dtype), algorithm, spec, CUDA)
        learner = Learner(gradients, OptimiserConfig(), 10**9, masters)
        staged = gradients.to_device(batch_for(net, image))
        with Launches() as found["gradient"]:
            (gradient,) = gradients.of(staged)
        with Launches() as found["apply"]:
            learner.apply(gradient, T * B)
        policy = Policy(choice, dtype, None, E, CUDA)
        with Launches() as found["policy"]:
            policy.forward(*step_of(space), policy.core_state)
    return {part: launches.figures() for part, launches in found.items()}


def batch_for(net, image):
    """As the store gives it, on the CPU."""
    zeros, no = torch.zeros(T + 1, B), torch.zeros(T + 1, B, dtype=torch.bool)
    return Batch(
        observation=torch.zeros(B, STACK + T + 1, 84, 84, dtype=torch.uint8) if image else torch.zeros(T + 1, B, 4),
        reward=zeros, terminated=no, truncated=no, first=no, last_action=zeros.long(), action=zeros[1:].long(),
        behaviour_logits=torch.zeros(T, B, 6), core_state=net.initial_state(B), policy_version=zeros[1:].long(),
    )  # fmt: skip


def step_of(space):
    """What environments say, and noise."""
    zeros, no = np.zeros(E, np.float32), np.zeros(E, bool)
    observation = np.zeros((E, *space.shape), space.dtype)
    row = EnvOutput(observation, zeros, no, no, no, zeros.astype(np.int64), zeros, zeros, np.zeros((E, 0), np.float32))
    return row, distribution_for(ACTIONS).noise(np.random.default_rng(0), E)


class Launches(TorchDispatchMode):
    """Counts what is started on the device, and what the host waits for."""

    def __init__(self):
        super().__init__()
        self.by_name = collections.Counter()
        self.waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        given, made = (
            [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)] for tree in ((args, kwargs), found)
        )
        # Of scalars the CPU's go to the device as arguments, without a copy.
        if any(x.is_cuda for x in given) and any(not x.is_cuda for x in made):
            self.waits += 1
        if name not in FREE and any(x.is_cuda and x.numel() for x in [*given, *made]):
            self.by_name[name] += 1
        return found

    def figures(self):
        return {"launches": self.by_name.total(), "waits": self.waits, "by_name": dict(self.by_name.most_common())}


# -- what a PyTorch without CUDA lacks, and what fake tensors do -------------------------------------------------------


class Event:
    def synchronize(self):
        pass


class Stream:
    def __init__(self, *_):
        self.device = CUDA

    def record_event(self):
        return Event()

    def wait_event(self, event):
        pass


def pretend():
    torch.cuda.Stream = torch.cuda.current_stream = Stream
    torch.cuda.stream = contextlib.nullcontext
    torch.Tensor.pin_memory = lambda tensor: tensor
    torch.Tensor.record_stream = lambda tensor, stream: None
    torch.Tensor.numpy = numbers
    torch.nn.Module._apply, torch.nn.LSTM._apply = apply_to_module, apply_to_lstm


def numbers(tensor):
    """What the host sees of a tensor that is with it: zeros, but resets in a batch."""
    assert tensor.device.type == "cpu"
    found = np.zeros(tensor.shape, bool if tensor.dtype == torch.bool else np.float32)
    if tensor.shape == (T + 1, B):
        found[RESETS, 0] = True
    return found


def apply_to_module(module, function, recurse=True):
    """PyTorch's own exchanges parameters in place, which fake ones do not allow."""
    for child in module.children():
        child._apply(function)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = torch.nn.Parameter(function(parameter.detach()), parameter.requires_grad)
    for name, buffer in module._buffers.items():
        module._buffers[name] = function(buffer)
    return module


def apply_to_lstm(module, function, recurse=True):
    apply_to_module(module, function)
    module._init_flat_weights()
    return module


# Of a loss's clip of rewards.
MISTAKES = {
    "a tensor on the CPU": lambda reward: reward.clamp(-1, 1) * torch.ones(reward.shape),
    "a number that the host asks for": lambda reward: reward.clamp(-1, 1 + 0 * reward.sum().item()),
    "numbers that are copied to the host": lambda reward: reward.cpu().clamp(-1, 1).to(CUDA),
}

if __name__ == "__main__":
    main()
