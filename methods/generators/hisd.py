"""HiSD, its generator under the names the published checkpoints use ("gen_test" and "gen").

Li et al., "Image-to-image Translation via Hierarchical Style Disentanglement", CVPR 2021, Section 3. A picture is
encoded, the code translated for one *tag* (say, Eyeglasses) towards a style, and decoded. Styles come from a mapper,
one for each *attribute* of the tag (with, without), or are extracted from a reference picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import AntiPureError
from ..pictures import random_stream
from .generator import Generator

SLOPE, EPS, HALF = 0.2, 1e-5, 2**-0.5
# Tags and attributes of the published CelebA-HQ model.
TAGS = (("Bangs", ("with", "without")), ("Eyeglasses", ("with", "without")), ("HairColor", ("black", "blond", "brown")))


class _InstanceNorm(nn.Module):
    """Per-channel normalisation by the *unbiased* deviation plus eps, unlike torch's; own or given scale and shift."""

    def __init__(self, channels: int, affine: bool):
        super().__init__()
        if affine:
            self.weight = nn.Parameter(torch.ones(1, channels, 1))
            self.bias = nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        flat = x.flatten(2)
        normal = (flat - flat.mean(-1, keepdim=True)) / (flat.std(-1, keepdim=True) + EPS)
        return (normal * (self.weight if weight is None else weight) + (self.bias if bias is None else bias)).view_as(x)


class _Down(nn.Module):
    """Residual block that halves the picture."""

    def __init__(self, channels: int, out: int, norm: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, out, 3, padding=1)
        self.in1 = _InstanceNorm(channels, affine=True) if norm else nn.Identity()
        self.in2 = _InstanceNorm(channels, affine=True) if norm else nn.Identity()
        self.sc = nn.Conv2d(channels, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.avg_pool2d(self.conv1(F.leaky_relu(self.in1(x), SLOPE)), 2)
        y = self.conv2(F.leaky_relu(self.in2(y), SLOPE))
        return (y + F.avg_pool2d(self.sc(x), 2)) * HALF


class _Up(nn.Module):
    """Residual block that doubles the picture."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.in1 = _InstanceNorm(channels, affine=True)
        self.in2 = _InstanceNorm(out, affine=True)
        self.sc = nn.Conv2d(channels, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.interpolate(F.leaky_relu(self.in1(x), SLOPE), scale_factor=2))
        y = self.conv2(F.leaky_relu(self.in2(y), SLOPE))
        return (y + F.interpolate(self.sc(x), scale_factor=2)) * HALF


class _Middle(nn.Module):
    """Residual block whose normalisations take scale and shift from the style (AdaIN)."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.adain1 = _InstanceNorm(channels, affine=False)
        self.adain2 = _InstanceNorm(out, affine=False)
        self.sc = nn.Conv2d(channels, out, 1, bias=False)
        self.widths = (channels, channels, out, out)  # shift and scale of the first, then of the second

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        shift1, scale1, shift2, scale2 = (part[..., None] for part in style.split(self.widths, 1))
        y = self.conv1(F.leaky_relu(self.adain1(x, 1 + scale1, shift1), SLOPE))
        y = self.conv2(F.leaky_relu(self.adain2(y, 1 + scale2, shift2), SLOPE))
        return (y + self.sc(x)) * HALF


class _Translator(nn.Module):
    def __init__(self, code: int, channels: tuple[int, ...], style: int):
        super().__init__()
        blocks = [_Middle(c, out) for c, out in zip(channels, channels[1:], strict=False)]
        self.model = nn.Sequential(nn.Conv2d(code, channels[0], 1), *blocks)
        self.widths = [sum(block.widths) for block in blocks]
        self.style_to_params = nn.Linear(style, sum(self.widths))
        self.features = nn.Sequential(nn.Conv2d(channels[-1], code, 1))
        self.masks = nn.Sequential(nn.Conv2d(channels[-1], code, 1), nn.Sigmoid())

    def forward(self, code: Tensor, style: Tensor) -> Tensor:
        first, *blocks = self.model
        y = first(code)
        for block, part in zip(blocks, self.style_to_params(style).split(self.widths, 1), strict=True):
            y = block(y, part)
        return torch.lerp(code, self.features(y), self.masks(y))


class _Extractors(nn.Module):
    """Styles of a picture, B×tags×style."""

    def __init__(self, channels: tuple[int, ...], style: int, tags: int):
        super().__init__()
        self.tags = tags
        blocks = [_Down(c, out, norm=False) for c, out in zip(channels, channels[1:], strict=False)]
        last = nn.Conv2d(channels[-1], style * tags, 1)
        self.model = nn.Sequential(nn.Conv2d(3, channels[0], 1), *blocks, nn.AdaptiveAvgPool2d(1), last)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels).view(len(pixels), self.tags, -1)


class _Linear(nn.Module):
    def __init__(self, channels: int, out: int):
        super().__init__()
        self.linear = nn.Linear(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.relu())


class _Mapper(nn.Module):
    """Noise to a style, for one of the attributes of a tag."""

    def __init__(self, noise: int, pre: tuple[int, ...], post: tuple[int, ...], style: int, attributes: int):
        super().__init__()
        self.pre_model = nn.Sequential(nn.Linear(noise, pre[0]), *_chain(pre))
        self.post_models = nn.ModuleList(
            nn.Sequential(*_chain(post), nn.Linear(post[-1], style)) for _ in range(attributes)
        )

    def forward(self, noise: Tensor, attribute: int) -> Tensor:
        return self.post_models[attribute](self.pre_model(noise))


def _chain(widths: tuple[int, ...]) -> list[nn.Module]:
    return [_Linear(c, out) for c, out in zip(widths, widths[1:], strict=False)]


class HiSDNetwork(nn.Module):
    """G(x, tag, style): pixels B×3×H×W in [-1, 1] and styles B×style to pixels, about [-1, 1] (there is no tanh).

    attributes: how many attributes each tag has. The widths are those of the layers of each part; defaults are the
    published CelebA-HQ model's. H and W: multiples of 2 ** (len(encoder) - 1).
    """

    def __init__(
        self,
        attributes: tuple[int, ...] = (2, 2, 3),
        encoder: tuple[int, ...] = (64, 128, 256),
        translators: tuple[int, ...] = (64,) * 8,
        extractors: tuple[int, ...] = (32, 64, 128, 256, 512, 512, 512),
        pre: tuple[int, ...] = (256, 256, 256),
        post: tuple[int, ...] = (256, 256, 256),
        style: int = 256,
        noise: int = 32,
    ):
        super().__init__()
        self.attributes, self.noise = tuple(attributes), noise
        down = [_Down(c, out, norm=True) for c, out in zip(encoder, encoder[1:], strict=False)]
        self.encoder = nn.Sequential(nn.Conv2d(3, encoder[0], 1), *down)
        mirrored = encoder[::-1]
        up = [_Up(c, out) for c, out in zip(mirrored, mirrored[1:], strict=False)]
        self.decoder = nn.Sequential(*up, nn.Conv2d(mirrored[-1], 3, 1))
        self.extractors = _Extractors(extractors, style, len(attributes))
        self.translators = nn.ModuleList(_Translator(encoder[-1], translators, style) for _ in attributes)
        self.mappers = nn.ModuleList(_Mapper(noise, pre, post, style, count) for count in attributes)

    def forward(self, pixels: Tensor, tag: int, style: Tensor) -> Tensor:
        return self.decoder(self.translators[tag](self.encoder(pixels), style))

    def mapped_style(self, noise: Tensor, tag: int, attribute: int) -> Tensor:
        """The style a B×noise normal sample stands for, B×style."""
        return self.mappers[tag](noise, attribute)

    def extracted_style(self, pixels: Tensor, tag: int) -> Tensor:
        """The style of reference pictures, B×style."""
        return self.extractors(pixels)[:, tag]


class HiSD(Generator):
    """HiSD with its tags and attributes behind named edits, such as "Bangs: with" or "HairColor: blond".

    tags: (name, attributes) per tag; None: the published ones where the numbers fit, else "tag 0: 0" and so on.
    seed: of the noise the mapper turns into a style. The noise is the same for all pictures, so that an edit is a
        function of the picture; it comes from an own stream and leaves torch's alone.
    Outputs are clamped to [-1, 1], as saving them would: HiSD has no tanh.
    """

    name = "HiSD"
    network: HiSDNetwork

    def __init__(
        self,
        network: HiSDNetwork,
        tags: tuple[tuple[str, tuple[str, ...]], ...] | None = None,
        *,
        size: int = 256,
        seed: int = 0,
    ):
        counts = network.attributes
        if tags is None and counts == tuple(len(names) for _, names in TAGS):
            tags = TAGS
        elif tags is None:
            tags = tuple((f"tag {i}", tuple(str(j) for j in range(count))) for i, count in enumerate(counts))
        if counts != tuple(len(names) for _, names in tags):
            raise AntiPureError(f"This HiSD has {counts} attributes per tag; give as many names.")
        self.seed = seed
        self.places = {f"{tag}: {name}": (i, j) for i, (tag, names) in enumerate(tags) for j, name in enumerate(names)}
        multiple = 2 ** (len(network.encoder) - 1)
        super().__init__(network, edits=tuple(self.places), size=size, multiple=multiple)

    def _call(self, pixels: Tensor, edit: str) -> Tensor:
        tag, attribute = self.places[edit]
        noise = torch.randn(1, self.network.noise, generator=random_stream(self.seed)).to(pixels)
        style = self.network.mapped_style(noise, tag, attribute)
        return self.network(pixels, tag, style.expand(len(pixels), -1)).clamp(-1, 1)
