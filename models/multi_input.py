"""One network for any mixture of pictures, grids, vectors and text; its layers follow from the observation space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from beast.core.data import Nested, flatten
from beast.envs.spaces import BUCKETS, Codes, Words, leaves

from .base import ActorCritic, ImageInput, PolicyConfig, VectorInput, conv_size, initialise

LARGEST = 128 * 128
"""Most pixels of a picture; for larger ones the FC layer would have more weights than all other layers."""


class Model(ActorCritic):
    """A network with separate layers for each part of the observation, concatenated into FC 256.

    - Pictures and planes: convolutions for their size, see `Convolutions`.
    - Grids of codes (MiniGrid): an embedding of 8 for each number, then the same convolutions.
    - Text: the paper's language channel: an embedding of 20 for each word, an LSTM of 64, its last output.
    - All others, concatenated (Discrete, MultiDiscrete and MultiBinary one-hot, integers scaled by their bounds): FC 128.

    With the LSTM, clipped reward and last action are features too. It supports only float32: vectors rounded to bfloat16 are
    too coarse.

    Raises:
        ValueError: for a part that is too large; the message names its key.
    """

    @dataclass(frozen=True)
    class Config(PolicyConfig):
        """Model (multi_input)"""

    def __init__(
        self, observation_space: Any, action_space: Any, use_lstm: bool = False, config: Config = Config()
    ) -> None:
        super().__init__(observation_space, action_space, use_lstm, width=256, feed_last_step=use_lstm, policy=config)
        self.parts = nn.ModuleList([_part(where, space) for where, space in leaves(observation_space)])
        self._is_vector = [isinstance(part, VectorInput) for part in self.parts]
        widths = [int(part.width) for part in self.parts]  # type: ignore[arg-type]
        numbers = sum(width for width, is_vector in zip(widths, self._is_vector, strict=True) if is_vector)
        self.vectors = nn.Linear(numbers, 128) if numbers else None
        self.fc = nn.Linear(sum(widths) - numbers + (128 if numbers else 0), 256)
        initialise(self)

    def torso(self, observation: Nested) -> torch.Tensor:
        """Return features `[N, 256]` of observations whose leaves are `[N, ...]`."""
        read = [part(leaf, self.dtype) for part, leaf in zip(self.parts, flatten(observation), strict=True)]
        features = [x for x, is_vector in zip(read, self._is_vector, strict=True) if not is_vector]
        if self.vectors is not None:
            numbers = [x for x, is_vector in zip(read, self._is_vector, strict=True) if is_vector]
            features.append(F.relu(self.vectors(torch.cat(numbers, dim=-1))))
        return F.relu(self.fc(torch.cat(features, dim=-1)))


def _part(where: str, space: gymnasium.Space[Any]) -> nn.Module:
    """Return the layers of one part."""
    if isinstance(space, Words):
        return Language()
    if isinstance(space, Codes):
        return Grid(where, space)
    if is_image(space):
        return Picture(where, space)
    part = VectorInput(space)
    if part.width > LARGEST:
        raise ValueError(
            f"observation_space{where} would be {part.width:,} numbers and no picture: leave it out or make less of it "
            "(--wrapper my_package.my_module:wrap)"
        )
    return part


def is_image(space: gymnasium.Space[Any]) -> bool:
    """Return whether neighbours belong together: `[H, W, C]`, `[C, H, W]`, a stack of these, or `[H, W]` of bytes or bits."""
    if not isinstance(space, gymnasium.spaces.Box) or isinstance(space, Words) or len(space.shape) not in (2, 3, 4):
        return False
    if len(space.shape) == 2:
        least = 5 if space.dtype in (np.uint8, np.bool_) else 36  # a small matrix of other numbers may be anything
        return min(space.shape) >= least
    return min(ImageInput(space).shape[1:]) >= 5


class Convolutions(nn.Module):
    """Convolutions from `[N, C, H, W]` to `[N, width]`, chosen by the shorter side.

    - below 16 (MinAtar, MiniGrid): conv 3x3/1 32, conv 3x3/1 64;
    - below 36: conv 4x4/2 32, conv 3x3/1 64;
    - from 36 on: conv 8x8/4 32, conv 4x4/2 64, conv 3x3/1 64 (Mnih et al. 2015).
    """

    def __init__(self, where: str, channels: int, height: int, width: int) -> None:
        super().__init__()
        if height * width > LARGEST:
            raise ValueError(
                f"observation_space{where} is a picture of {height}x{width}: make it smaller with --resize 84 "
                "(or HEIGHTxWIDTH)"
            )
        shorter = min(height, width)
        if shorter < 16:
            layers = [(32, 3, 1), (64, 3, 1)]
        elif shorter < 36:
            layers = [(32, 4, 2), (64, 3, 1)]
        else:
            layers = [(32, 8, 4), (64, 4, 2), (64, 3, 1)]
        convolutions = []
        for out, kernel, stride in layers:
            convolutions.append(nn.Conv2d(channels, out, kernel, stride))
            height, width = (conv_size(size, kernel, stride) for size in (height, width))
            channels = out
        self.convolutions = nn.ModuleList(convolutions)
        self.width = channels * height * width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `[N, width]` for `[N, C, H, W]`."""
        x = x.contiguous(memory_format=torch.channels_last)
        for convolution in self.convolutions:
            x = F.relu(convolution(x))
        return x.flatten(1)


class Picture(nn.Module):
    """The layers of pixels or planes `[N, ...]`, read by `ImageInput`."""

    def __init__(self, where: str, space: gymnasium.Space[Any]) -> None:
        super().__init__()
        self.image = ImageInput(space)
        self.layers = Convolutions(where, *self.image.shape)
        self.width = self.layers.width

    def forward(self, image: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return `[N, width]` in `dtype`."""
        features: torch.Tensor = self.layers(self.image(image, dtype))
        return features


class Grid(nn.Module):
    """The layers of codes `[N, H, W, C]`: each channel has its own embedding."""

    SIZE = 8

    def __init__(self, where: str, space: Codes) -> None:
        super().__init__()
        height, width, channels = space.shape
        if min(height, width) < 5:
            raise ValueError(f"observation_space{where} is a grid of {height}x{width}: 5x5 at least")
        self.offsets: torch.Tensor
        self.register_buffer("offsets", torch.arange(channels) * space.count, persistent=False)
        self.embedding = nn.Embedding(channels * space.count, self.SIZE)
        self.layers = Convolutions(where, channels * self.SIZE, height, width)
        self.width = self.layers.width

    def forward(self, codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return `[N, width]` in `dtype`."""
        embedded = self.embedding(codes.long() + self.offsets).flatten(-2)  # [N, H, W, C * SIZE]
        features: torch.Tensor = self.layers(embedded.permute(0, 3, 1, 2))
        return features


class Language(nn.Module):
    """The layers of words `[N, L]`, numbered by `beast/envs/spaces.py`: an LSTM's last output `[N, 64]`, zero without words."""

    width = 64

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BUCKETS + 1, 20, padding_idx=0)
        self.lstm = nn.LSTM(20, self.width, batch_first=True)

    def forward(self, words: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return `[N, 64]` in `dtype`."""
        # Texts rarely change: each different text is read once, up to the length of the longest one.
        texts, which = torch.unique(words.long(), dim=0, return_inverse=True)
        lengths = (texts > 0).sum(dim=1)
        texts = texts[:, : max(1, int(lengths.max()))]
        outputs, _ = self.lstm(self.embedding(texts))
        last = outputs[torch.arange(len(texts), device=texts.device), (lengths - 1).clamp(min=0)]
        read: torch.Tensor = last * (lengths > 0).unsqueeze(-1)
        return read[which]
