"""The paper's shallow network (Espeholt et al. 2018, figure 3 left): two convolutions and a fully connected layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .base import ActorCritic, ImageConfig, ImageInput, check_image_size, conv_size, initialise


class Model(ActorCritic):
    """A network of conv 8x8/4 16, conv 4x4/2 32, FC 256; with the LSTM, clipped reward and last action are features too."""

    supports_bfloat16 = True

    @dataclass(frozen=True)
    class Config(ImageConfig):
        """Model (impala_shallow)"""

    def __init__(
        self, observation_space: Any, action_space: Any, use_lstm: bool = False, config: Config = Config()
    ) -> None:
        super().__init__(
            observation_space, action_space, use_lstm, width=256, lstm=config.lstm, policy=config,
            feed_last_step=use_lstm,
        )  # fmt: skip
        self.image = ImageInput(observation_space, config.center_pixels)
        channels, height, width = self.image.shape
        check_image_size("impala_shallow", self.image.shape, 20)
        self.conv1 = nn.Conv2d(channels, 16, 8, stride=4)
        self.conv2 = nn.Conv2d(16, 32, 4, stride=2)
        height, width = (conv_size(conv_size(s, 8, 4), 4, 2) for s in (height, width))
        self.fc = nn.Linear(32 * height * width, 256)
        initialise(self, config.initialisation)

    def torso(self, observation: torch.Tensor) -> torch.Tensor:
        """Return features `[N, 256]` of images `[N, C, H, W]` or `[N, H, W, C]`."""
        x = self.image(observation, self.dtype)
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        return F.relu(self.fc(x.flatten(1)))
