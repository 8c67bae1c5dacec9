"""The network of Mnih et al. (2015, 2016) with three convolutions, and the clipped reward and the last action as features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .base import ActorCritic, ImageConfig, ImageInput, check_image_size, conv_size, initialise


class Model(ActorCritic):
    """A network of conv 8x8/4 32, conv 4x4/2 64, conv 3x3/1 64, FC 512; 84x84x4 pixels give the FC layer 3136 features."""

    supports_bfloat16 = True

    @dataclass(frozen=True)
    class Config(ImageConfig):
        """Model (atari_shallow)"""

    def __init__(
        self, observation_space: Any, action_space: Any, use_lstm: bool = False, config: Config = Config()
    ) -> None:
        super().__init__(
            observation_space, action_space, use_lstm, width=512, feed_last_step=True, lstm=config.lstm, policy=config
        )
        self.image = ImageInput(observation_space, config.center_pixels)
        channels, height, width = self.image.shape
        check_image_size("atari_shallow", self.image.shape, 36)
        self.conv1 = nn.Conv2d(channels, 32, 8, stride=4)
        self.conv2 = nn.Conv2d(32, 64, 4, stride=2)
        self.conv3 = nn.Conv2d(64, 64, 3, stride=1)
        height, width = (conv_size(conv_size(conv_size(s, 8, 4), 4, 2), 3, 1) for s in (height, width))
        self.fc = nn.Linear(64 * height * width, 512)
        initialise(self, config.initialisation)

    def torso(self, observation: torch.Tensor) -> torch.Tensor:
        """Return features `[N, 512]` of images `[N, C, H, W]` or `[N, H, W, C]`."""
        x = self.image(observation, self.dtype).contiguous(memory_format=torch.channels_last)
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = F.relu(self.conv3(x))
        return F.relu(self.fc(x.flatten(1)))
