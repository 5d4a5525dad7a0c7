"""A plain strided residual U-Net over pixels: the family of the held-out judge.

What it does not share with diffusers' `UNet2DModel` over 2×2-folded pixels: it sees every pixel at full resolution,
has no normalisation layers and no attention, ReLU instead of SiLU, additive skips, and is told the noise level instead
of the timestep. In the manner of DRUNet (arXiv 2008.13751), with feature-wise scales and
shifts (FiLM, arXiv 1709.07871).
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Prediction(NamedTuple):
    """What the network is called for. sample: the noise, B×3×H×W."""

    sample: Tensor


class Block(nn.Module):
    """x + conv(FiLM(relu(conv(x)))): channels as they are; told an embedding of `embedding` numbers."""

    def __init__(self, channels: int, embedding: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        for parameter in self.second.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, 1)
        return x + self.second(F.relu(self.first(x)) * (1 + scale) + shift)


class Level(nn.ModuleList):
    """Blocks that run one after another."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for block in self:
            x = block(x, embedding)
        return x


class StridedUNet(nn.Module):
    """Predicts the noise in x_t; called as unet(x, t).sample like diffusers' networks.

    block_out_channels: channels of every level, each at half the side of the one above, reached by a strided 3×3
        convolution. encoder, decoder: blocks at every level; the decoder has none of its own at the lowest.
    embedding: width of the noise-level embedding. gain: the factor on the pixels, whose noise is small.
    log_snr: T values, log(abar / (1 - abar)), of the schedule it is trained for.
    x: B×3×H×W in [-1, 1], sides multiples of 2^(levels - 1). t: B 0-based timesteps. sample: B×3×H×W.
    """

    log_snr: Tensor
    frequencies: Tensor

    def __init__(
        self,
        block_out_channels: list[int],
        encoder: list[int],
        decoder: list[int],
        embedding: int,
        log_snr: Tensor,
        gain: float = 4.0,
    ):
        super().__init__()
        widths = list(block_out_channels)
        if not len(widths) == len(encoder) == len(decoder) + 1:
            raise ValueError("give blocks for every level, and for all but the lowest in the decoder")
        self.config = SimpleNamespace(block_out_channels=widths, in_channels=3)
        self.gain = gain
        self.register_buffer("log_snr", log_snr.float(), persistent=False)
        frequencies = torch.exp(torch.linspace(math.log(0.1), math.log(3.0), 16))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.level = nn.Sequential(nn.Linear(33, embedding), nn.ReLU(), nn.Linear(embedding, embedding), nn.ReLU())
        self.head = nn.Conv2d(3, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(
            Level(Block(width, embedding) for _ in range(n)) for width, n in zip(widths, encoder, strict=True)
        )
        pairs = list(zip(widths, widths[1:], strict=False))
        self.down = nn.ModuleList(nn.Conv2d(above, below, 3, stride=2, padding=1) for above, below in pairs)
        self.up = nn.ModuleList(nn.Conv2d(below, above, 1) for above, below in pairs)
        self.decoder = nn.ModuleList(
            Level(Block(width, embedding) for _ in range(n)) for width, n in zip(widths, decoder, strict=False)
        )
        self.tail = nn.Conv2d(widths[0], 3, 3, padding=1)
        for parameter in self.tail.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, t: Tensor) -> Prediction:
        log_snr = self.log_snr[t.expand(len(x))][:, None]  # B×1, about -10..9
        waves = log_snr * self.frequencies
        embedding = self.level(torch.cat([log_snr / 8, waves.sin(), waves.cos()], 1))
        h, skips = self.head(self.gain * x), []
        for number, level in enumerate(self.encoder):
            if number:
                skips.append(h)
                h = self.down[number - 1](h)
            h = level(h, embedding)
        for up, level in zip(reversed(self.up), reversed(self.decoder), strict=True):
            h = F.interpolate(up(h), scale_factor=2.0, mode="nearest") + skips.pop()
            h = level(h, embedding)
        return Prediction(self.tail(h))
