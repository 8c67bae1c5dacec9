"""With flags, our networks are TorchBeast's: its weights, loaded into ours, give its answers.

The two networks are written down here from the shapes of their layers: MonoBeast's AtariNet, and the ResNet of PolyBeast's
learner (facebookresearch/torchbeast: monobeast.py, polybeast_learner.py).
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import nn
from torch.testing import assert_close

from beast.core.data import ModelInput
from models import atari_shallow, impala_resnet, impala_shallow

ACTIONS = 6
ATARI = spaces.Box(0, 255, (4, 84, 84), np.uint8)
PAPER = {"center_pixels": False, "initialisation": "pytorch"}
EXACT = {"rtol": 0, "atol": 1e-6}


class Theirs(nn.Module):
    """What both have in common: a core that is stepped row by row, its state zeroed before each first row, and two heads."""

    def __init__(self, width, core):
        super().__init__()
        self.core = core
        width = core.hidden_size if core else width
        self.policy, self.baseline = nn.Linear(width, ACTIONS), nn.Linear(width, 1)

    def forward(self, inputs, state):
        rows, batch = inputs.reward.shape
        x = self.features(inputs.observation.flatten(0, 1).float() / 255.0)
        x = torch.cat([x, inputs.reward.clamp(-1, 1).reshape(-1, 1), *self.beside(inputs)], dim=-1)
        if self.core:
            outputs = []
            for row, first in zip(x.view(rows, batch, -1), inputs.first, strict=True):
                state = tuple(s * (~first).float().view(1, -1, 1) for s in state)
                output, state = self.core(row[None], state)
                outputs.append(output)
            x = torch.cat(outputs).flatten(0, 1)
        return self.policy(x).view(rows, batch, -1), self.baseline(x).view(rows, batch), state

    def beside(self, inputs):
        return []


class AtariNet(Theirs):
    """Three convolutions, FC 512, reward and one-hot action; an LSTM of two layers, each as wide as its input."""

    OURS = (atari_shallow.Model, atari_shallow.Model.Config(**PAPER, lstm_size=0, lstm_layers=2))

    def __init__(self, use_lstm):
        width = 512 + 1 + ACTIONS
        super().__init__(width, nn.LSTM(width, width, 2) if use_lstm else None)
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(4, 32, 8, 4), nn.Conv2d(32, 64, 4, 2), nn.Conv2d(64, 64, 3, 1)
        self.fc = nn.Linear(64 * 7 * 7, 512)

    def features(self, x):
        for convolution in (self.conv1, self.conv2, self.conv3):
            x = convolution(x).relu()
        return self.fc(x.flatten(1)).relu()

    def beside(self, inputs):
        return [F.one_hot(inputs.last_action.flatten(), ACTIONS).float()]

    @staticmethod
    def our_name(name):
        return re.sub("^core", "memory.lstm", name)


class ResNet(Theirs):
    """Three times convolution, max-pool, two residual blocks; FC 256 and the reward alone, with an LSTM of 256 or without."""

    OURS = (impala_resnet.Model, impala_resnet.Model.Config(**PAPER, last_step_input="reward"))

    def __init__(self, use_lstm):
        super().__init__(256 + 1, nn.LSTM(256 + 1, 256) if use_lstm else None)
        steps = [(4, 16), (16, 32), (32, 32)]
        self.feat_convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 1, 1), nn.MaxPool2d(3, 2, 1)) for a, b in steps
        )
        self.resnet1, self.resnet2 = (nn.ModuleList(self.block(b) for _, b in steps) for _ in range(2))
        self.fc = nn.Linear(32 * 11 * 11, 256)

    @staticmethod
    def block(channels):
        return nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, channels, 3, 1, 1), nn.ReLU(), nn.Conv2d(channels, channels, 3, 1, 1)
        )

    def features(self, x):
        for convolution, first, second in zip(self.feat_convs, self.resnet1, self.resnet2, strict=True):
            x = convolution(x)
            x = x + first(x)
            x = x + second(x)
        return self.fc(x.relu().flatten(1)).relu()

    @staticmethod
    def our_name(name):
        name = re.sub(r"^feat_convs\.(\d)\.0", r"sections.\1.conv", re.sub("^core", "memory.lstm", name))
        place = {"1": "conv1", "3": "conv2"}  # of a block's convolutions in its Sequential
        return re.sub(r"^resnet(\d)\.(\d)\.(\d)", lambda m: f"sections.{m[2]}.block{m[1]}.{place[m[3]]}", name)


def inputs(rows=5, batch=3):
    rng = np.random.default_rng(0)
    first = torch.zeros(rows, batch, dtype=torch.bool)
    first[0, 0] = first[2, 1] = first[3, 1] = first[3, 2] = True
    return ModelInput(
        observation=torch.from_numpy(rng.integers(0, 256, (rows, batch, 4, 84, 84), np.uint8)),
        reward=torch.from_numpy(3 * rng.standard_normal((rows, batch), np.float32)),
        last_action=torch.from_numpy(rng.integers(0, ACTIONS, (rows, batch))),
        first=first,
    )


def both(network, use_lstm, **other):
    """Their network with random weights, ours with the same ones."""
    torch.manual_seed(0)
    theirs = network(use_lstm)
    model, config = network.OURS
    ours = model(ATARI, spaces.Discrete(ACTIONS), use_lstm, type(config)(**{**vars(config), **other}))
    ours.load_state_dict({network.our_name(name): weight for name, weight in theirs.state_dict().items()})
    return theirs, ours


@pytest.mark.parametrize("use_lstm", [False, True], ids=["ff", "lstm"])
@pytest.mark.parametrize("network", [AtariNet, ResNet])
def test_torchbeasts_weights_give_torchbeasts_answers(network, use_lstm):
    theirs, ours = both(network, use_lstm)
    state = tuple(torch.randn(s.shape) for s in ours.initial_state(3))
    layered = tuple(s.view(3, theirs.core.num_layers, -1).transpose(0, 1).contiguous() for s in state)
    with torch.no_grad():
        logits, value, after = theirs(inputs(), layered)
        outputs, our_after = ours(inputs(), state)
    assert_close(outputs.policy_logits, logits, **EXACT)
    assert_close(outputs.value, value, **EXACT)
    assert len(our_after) == len(after) == 2 * use_lstm
    for our, their in zip(our_after, after, strict=True):
        assert_close(our, their.transpose(0, 1).flatten(1), **EXACT)


@pytest.mark.parametrize("network", [AtariNet, ResNet])
def test_the_mean_that_we_take_off_by_default_makes_another_network_of_it(network):
    theirs, ours = both(network, use_lstm=False, center_pixels=True)
    with torch.no_grad():
        assert (ours(inputs(), ())[0].policy_logits - theirs(inputs(), ())[0]).abs().max() > 1e-3


def test_pytorchs_initialisation_is_what_its_layers_are_made_with():
    """Uniform within one over the root of the inputs, biases too; ours has no biases, and small second convolutions."""
    torch.manual_seed(0)
    model, config = ResNet.OURS
    theirs = model(ATARI, spaces.Discrete(ACTIONS), config=config)
    bound = (32 * 11 * 11) ** -0.5
    assert 0.9 * bound < theirs.fc.weight.abs().max() <= bound
    assert 0.9 * bound < theirs.fc.bias.abs().max() <= bound
    assert theirs.sections[0].block1.conv2.weight.std() > 0.9 * theirs.sections[0].block1.conv1.weight.std()
    own = model(ATARI, spaces.Discrete(ACTIONS))
    assert not own.fc.bias.any()
    assert own.sections[0].block1.conv2.weight.std() < 0.2 * own.sections[0].block1.conv1.weight.std()


@pytest.mark.parametrize("model", [atari_shallow, impala_shallow, impala_resnet])
@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("initialisation", "xavier", "orthogonal or pytorch"),
        ("lstm_size", -1, "at least 0"),
        ("lstm_layers", 0, "at least 1"),
    ],
)
def test_wrong_values_are_refused_in_one_line(call, model, flag, value, said):
    name = model.__name__.rpartition(".")[2]
    refused = call("--model", name, f"--{flag}", value, "--env", "PongNoFrameskip-v4")
    assert refused.code == 2
    assert f"--{flag} must be {said}, got" in refused.err
    assert len(refused.err.splitlines()) == 1


def test_a_run_learns_with_torchbeasts_network(call, tmp_path):
    """Two layers of an LSTM go through store, learner and checkpoint, serial actors resume with their state."""
    serial = [
        "--num_actor_processes",
        0,
        "--num_actors",
        2,
        "--batch_size",
        2,
        "--unroll_length",
        4,
        "--savedir",
        tmp_path,
    ]
    flags = ["--model", "impala_shallow", "--use_lstm", "--lstm_size", 8, "--lstm_layers", 2, "--no_center_pixels"]
    pong = ["--env", "PongNoFrameskip-v4", "--xpid", "x", "--initialisation", "pytorch"]
    begun = call(*pong, *flags, *serial, "--total_steps", 8)
    assert begun.code == 0, begun.err
    resumed = call("--resume", tmp_path / "x", "--total_steps", 16)
    assert resumed.code == 0, resumed.err
    assert "finished at step 16" in resumed.out
    refused = call("--resume", tmp_path / "x", "--total_steps", 24, "--model", "impala_shallow", "--center_pixels")
    assert refused.code != 0
    assert "--center_pixels True cannot go on" in refused.err
