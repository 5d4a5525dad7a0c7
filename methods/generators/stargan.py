"""StarGAN, its generator under the names its published checkpoints use (`200000-G.ckpt`).

Choi et al., "StarGAN: Unified Generative Adversarial Networks for Multi-Domain Image-to-Image Translation", CVPR 2018,
Table 4. The target labels enter as constant maps beside the picture; two strided convolutions, residual blocks, and
two transposed convolutions follow, each with instance normalisation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import AntiPureError
from .generator import Generator

# The order of the labels in the published CelebA model. Hair colours exclude one another.
ATTRIBUTES = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young")
HAIR = ATTRIBUTES[:3]
# What a picture without labels is taken to be: a young woman, CelebA's most frequent combination, no hair colour set.
BASE = (0.0, 0.0, 0.0, 0.0, 1.0)


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
        self.n_labels = n_labels
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


class StarGAN(Generator):
    """StarGAN with its labels behind named edits.

    StarGAN takes the *whole* target description, so an edit also asserts everything it does not name. `labels` maps
    each edit to that description, a tuple of n_labels numbers. For the published model, whose pictures come without
    labels here, the edits are "Black_Hair", "Blond_Hair", "Brown_Hair", "Male" and "Old": the named attribute is set
    (or flipped) on `BASE`, or on what a picture is known to have (`labelled`). Or give other `labels`: for a man's
    hair, (1, 0, 0, 1, 1).
    """

    name = "StarGAN"

    def __init__(self, network: StarGANNetwork, labels: dict[str, tuple[float, ...]], *, size: int = 256):
        self.labels = dict(labels)
        wrong = next((edit for edit, values in labels.items() if len(values) != network.n_labels), None)
        if wrong is not None:
            raise AntiPureError(f"The edit '{wrong}' needs {network.n_labels} labels, not {len(labels[wrong])}.")
        super().__init__(network, edits=tuple(labels), size=size, multiple=4)
        if network.n_labels == len(ATTRIBUTES) and self.labels == default_labels(network.n_labels):
            self.attributes = ATTRIBUTES

    def _call(self, pixels: Tensor, edit: str) -> Tensor:
        if self.own is not None:
            return self.network(pixels, flipped(self._own_of(pixels), self.edits.index(edit)))
        labels = torch.tensor(self.labels[edit], device=pixels.device, dtype=pixels.dtype)
        return self.network(pixels, labels.expand(len(pixels), -1))


def flipped(own: Tensor, attribute: int) -> Tensor:
    """The target for pictures that have `own` (B×5 in {0, 1}), as the authors' test makes it.

    A hair colour is set and the others taken away; any other attribute becomes its opposite.
    """
    target = own.clone()
    if ATTRIBUTES[attribute] in HAIR:
        target[:, [ATTRIBUTES.index(colour) for colour in HAIR]] = 0
        target[:, attribute] = 1
    else:
        target[:, attribute] = 1 - target[:, attribute]
    return target


def default_labels(n_labels: int) -> dict[str, tuple[float, ...]]:
    """Edits of a model that came without a list: CelebA's five, or "label 0", "label 1", ... set one at a time."""
    if n_labels != len(ATTRIBUTES):
        return {f"label {i}": tuple(float(i == j) for j in range(n_labels)) for i in range(n_labels)}
    edits = {}
    for i, attribute in enumerate(ATTRIBUTES):
        values = list(BASE)
        values[i] = 1 - values[i]
        edits["Old" if attribute == "Young" else attribute] = tuple(values)
    return edits
