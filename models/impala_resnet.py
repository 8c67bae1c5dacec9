"""The paper's deep residual network (Espeholt et al. 2018, figure 3 right): 15 convolutions in three sections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .base import ActorCritic, ImageConfig, ImageInput, initialise


class ResidualBlock(nn.Module):
    """A residual block: x + conv(relu(conv(relu(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `[N, C, H, W]` for `[N, C, H, W]`."""
        # In place where no gradient needs what is overwritten: tensors are large here, and a new one is more memory to write.
        y: torch.Tensor = self.conv2(F.relu(self.conv1(F.relu(x)), inplace=True))
        return y.add_(x)


class Section(nn.Module):
    """A section of conv 3x3, max-pool 3x3/2 and two residual blocks, with `out` channels and half the size."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, padding=1)
        self.block1 = ResidualBlock(out)
        self.block2 = ResidualBlock(out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `[N, out, H / 2, W / 2]`, sizes rounded up, for `[N, C, H, W]`."""
        x = F.max_pool2d(self.conv(x), 3, stride=2, padding=1)
        y: torch.Tensor = self.block2(self.block1(x))
        return y


class Model(ActorCritic):
    """A network of sections with 16, 32, 32 channels and FC 256; 84x84 pixels give the FC layer 3872 features.

    With the LSTM, the clipped reward and the last action are features too, as in the paper for DMLab.
    """

    supports_bfloat16 = True
    micro_batch_rows = 168  # eight unrolls of 20 steps; 32 of them, with 84x84 pixels, would need over a GB more

    @dataclass(frozen=True)
    class Config(ImageConfig):
        """Model (impala_resnet)"""

        last_step_input: str = "with_lstm"
        """What of the last step stands beside the picture's features: with_lstm means the clipped reward and the last
        action, but only where there is an LSTM; reward means the clipped reward alone, always, as in TorchBeast."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.last_step_input not in ("with_lstm", "reward"):
                raise ValueError(f"--last_step_input must be with_lstm or reward, got {self.last_step_input!r}")

    def __init__(
        self, observation_space: Any, action_space: Any, use_lstm: bool = False, config: Config = Config()
    ) -> None:
        super().__init__(
            observation_space, action_space, use_lstm, width=256, lstm=config.lstm, policy=config,
            feed_last_step="reward" if config.last_step_input == "reward" else use_lstm,
        )  # fmt: skip
        self.image = ImageInput(observation_space, config.center_pixels)
        channels, height, width = self.image.shape
        self.sections = nn.Sequential(Section(channels, 16), Section(16, 32), Section(32, 32))
        height, width = ((s + 7) // 8 for s in (height, width))  # three halvings, each rounded up
        self.fc = nn.Linear(32 * height * width, 256)
        initialise(self, config.initialisation)
        if config.initialisation != "orthogonal":
            return
        with torch.no_grad():
            for part in self.modules():
                if isinstance(part, ResidualBlock):
                    # Near the identity at first: otherwise each of six blocks would double the signal.
                    part.conv2.weight *= 0.1
                elif isinstance(part, Section):
                    part.conv.weight *= 0.5**0.5  # no ReLU follows

    def torso(self, observation: torch.Tensor) -> torch.Tensor:
        """Return features `[N, 256]` of images `[N, C, H, W]` or `[N, H, W, C]`."""
        # Channels last is twice as fast on CPUs here (and suits tensor cores); the FC layer reads C, H, W.
        x = self.image(observation, self.dtype).contiguous(memory_format=torch.channels_last)
        x = F.relu(self.sections(x))
        return F.relu(self.fc(x.flatten(1)))
