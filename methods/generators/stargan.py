"""StarGAN's generator under the names its published checkpoints use (`200000-G.ckpt`).

Choi et al., "StarGAN: Unified Generative Adversarial Networks for Multi-Domain Image-to-Image Translation", CVPR 2018,
Table 4. The target labels enter as constant maps beside the picture; two strided convolutions, residual blocks, and
two transposed convolutions follow, each with instance normalisation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _convolution(channels: int, out: int, kernel: int, stride: int = 1, *, up: bool = False) -> list[nn.Module]:
    layer = nn.ConvTranspose2d if up else nn.Conv2d
    return [
        layer(channels, out, kernel, stride, padding=(kernel - 1) // 2, bias=False),
        # The checkpoints hold running means and variances, but the authors never leave training mode: every picture is
        # normalised with its own. So they are neither kept nor used.
        nn.InstanceNorm2d(out, affine=True),
        nn.ReLU(inplace=True),
    ]


class ResidualBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.main = nn.Sequential(*_convolution(channels, channels, 3), *_convolution(channels, channels, 3)[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x)


class StarGANNetwork(nn.Module):
    """G(x, c): pixels B×3×H×W in [-1, 1] and target labels B×n_labels in {0, 1} to pixels B×3×H×W in [-1, 1].

    conv_dim: channels of the first layer. n_labels: attributes. blocks: residual blocks. H and W: multiples of 4.
    """

    def __init__(self, conv_dim: int = 64, n_labels: int = 5, blocks: int = 6):
        super().__init__()
        layers = _convolution(3 + n_labels, conv_dim, 7)
        layers += _convolution(conv_dim, 2 * conv_dim, 4, 2) + _convolution(2 * conv_dim, 4 * conv_dim, 4, 2)
        layers += [ResidualBlock(4 * conv_dim) for _ in range(blocks)]
        layers += _convolution(4 * conv_dim, 2 * conv_dim, 4, 2, up=True)
        layers += _convolution(2 * conv_dim, conv_dim, 4, 2, up=True)
        layers += [nn.Conv2d(conv_dim, 3, 7, padding=3, bias=False), nn.Tanh()]
        self.main = nn.Sequential(*layers)

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        maps = labels[..., None, None].expand(-1, -1, *pixels.shape[-2:])
        return self.main(torch.cat([pixels, maps.to(pixels)], 1))
