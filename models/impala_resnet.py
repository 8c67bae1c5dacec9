"""The paper's deep residual network (Espeholt et al. 2018, figure 3 right): 15 convolutions in three sections."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .base import ActorCritic, ImageInput, initialise


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x))))"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv2(F.relu(self.conv1(F.relu(x))))
        return x + y


class Section(nn.Module):
    """conv 3x3, max-pool 3x3/2, two residual blocks: half the size, `out` channels."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, padding=1)
        self.block1 = ResidualBlock(out)
        self.block2 = ResidualBlock(out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(self.conv(x), 3, stride=2, padding=1)
        y: torch.Tensor = self.block2(self.block1(x))
        return y


class Model(ActorCritic):
    """Sections of 16, 32, 32 channels, FC 256: 84x84 pixels give 3872 features to the FC layer.

    With the LSTM, clipped reward and last action go in beside the features, as the paper has it for DMLab.
    """

    supports_bfloat16 = True
    micro_batch_rows = 168  # of 84x84 pixels: eight unrolls of 20 steps; 32 of them would need 0.6 GB more

    def __init__(self, observation_space: Any, action_space: Any, use_lstm: bool = False) -> None:
        super().__init__(observation_space, action_space, use_lstm, width=256, feed_last_step=use_lstm)
        self.image = ImageInput(observation_space)
        channels, height, width = self.image.shape
        self.sections = nn.Sequential(Section(channels, 16), Section(16, 32), Section(32, 32))
        height, width = ((s + 7) // 8 for s in (height, width))  # three halvings, each rounded up
        self.fc = nn.Linear(32 * height * width, 256)
        initialise(self)
        with torch.no_grad():
            for part in self.modules():
                if isinstance(part, ResidualBlock):
                    part.conv2.weight *= (
                        0.1  # near the identity at first, or six blocks in a row would double and double
                    )
                elif isinstance(part, Section):
                    part.conv.weight *= 0.5**0.5  # no ReLU follows it

    def torso(self, observation: torch.Tensor) -> torch.Tensor:
        # Channels last is worth a factor of two on CPUs here (and tensor cores want it); the FC layer sees C, H, W.
        x = self.image(observation, self.dtype).contiguous(memory_format=torch.channels_last)
        x = F.relu(self.sections(x))
        return F.relu(self.fc(x.flatten(1)))
