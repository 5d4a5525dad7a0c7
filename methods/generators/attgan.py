"""AttGAN, its generator under the names the published PyTorch checkpoints use (`weights.N.pth`).

He et al., "AttGAN: Facial Attribute Editing by Only Changing What You Want", IEEE TIP 2019, Table 1. A U-Net with few
connections: attributes join the deepest code ("inject" repeats them at the decoder's first layers), and "shortcuts"
hand the encoder's codes to them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import AntiPureError
from .generator import Generator

ATTRIBUTES = (
    "Bald",
    "Bangs",
    "Black_Hair",
    "Blond_Hair",
    "Brown_Hair",
    "Bushy_Eyebrows",
    "Eyeglasses",
    "Male",
    "Mouth_Slightly_Open",
    "Mustache",
    "No_Beard",
    "Pale_Skin",
    "Young",
)
BASE = frozenset({"No_Beard", "Young"})  # what a picture without labels is taken to have, CelebA's majority
OPPOSITES = {"No_Beard": "Beard", "Young": "Old"}  # names of the edits that take a base attribute away
# Of each group a face has one at most.
EXCLUSIVE = (("Bald", "Bangs"), ("Black_Hair", "Blond_Hair", "Brown_Hair"), ("Mustache", "No_Beard"))
KEPT, EDITED = 0.5, 1.0  # the strengths the authors' test script gives labels: ±0.5, the edited one ±1


class _Block(nn.Module):
    def __init__(self, layer: nn.Module, norm: nn.Module | None, activation: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*(m for m in (layer, norm, activation) if m is not None))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _norm(kind: str, channels: int) -> nn.Module | None:
    """What the authors' code offers: batch normalisation, instance normalisation (never with running means), none."""
    if kind == "none":
        return None
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.InstanceNorm2d(channels, affine=True)


class AttGANNetwork(nn.Module):
    """G(x, a): pixels B×3×H×W in [-1, 1] and attributes B×n_attributes in [-1, 1] to pixels B×3×H×W in [-1, 1].

    encoder: output channels of the encoder's layers. decoder: those of the decoder's, the last (3) left out.
    norms: of the encoder and of the decoder, each "batch", "instance" or "none"; a layer without has a bias instead.
    shortcuts, injections: how many decoder layers hand on an encoder code, and the attributes. H, W: multiples of
    2 ** len(encoder).
    """

    def __init__(
        self,
        encoder: tuple[int, ...] = (64, 128, 256, 512, 1024),
        decoder: tuple[int, ...] = (1024, 512, 256, 128),
        n_attributes: int = 13,
        shortcuts: int = 1,
        injections: int = 0,
        norms: tuple[str, str] = ("batch", "batch"),
    ):
        super().__init__()
        down_norm, up_norm = norms
        self.n_attributes, self.shortcuts, self.injections = n_attributes, shortcuts, injections
        down = [
            _Block(nn.Conv2d(c, out, 4, 2, 1, bias=down_norm == "none"), _norm(down_norm, out), nn.LeakyReLU())
            for c, out in zip((3, *encoder), encoder, strict=False)
        ]
        self.enc_layers = nn.ModuleList(down)
        up, channels = [], encoder[-1] + n_attributes
        for i, out in enumerate(decoder):
            layer = nn.ConvTranspose2d(channels, out, 4, 2, 1, bias=up_norm == "none")
            up.append(_Block(layer, _norm(up_norm, out), nn.ReLU()))
            channels = out + (encoder[-2 - i] if i < shortcuts else 0) + (n_attributes if i < injections else 0)
        up.append(_Block(nn.ConvTranspose2d(channels, 3, 4, 2, 1), None, nn.Tanh()))
        self.dec_layers = nn.ModuleList(up)

    def forward(self, pixels: Tensor, attributes: Tensor) -> Tensor:
        codes = [pixels]
        for layer in self.enc_layers:
            codes.append(layer(codes[-1]))
        z = _join(codes.pop(), attributes)
        for i, layer in enumerate(self.dec_layers):
            z = layer(z)
            if i < self.shortcuts:
                z = torch.cat([z, codes.pop()], 1)
            if i < self.injections:
                z = _join(z, attributes)
        return z


def _join(z: Tensor, attributes: Tensor) -> Tensor:
    return torch.cat([z, attributes[..., None, None].expand(-1, -1, *z.shape[-2:])], 1)


class AttGAN(Generator):
    """AttGAN with its attributes behind named edits.

    AttGAN takes the whole description. `labels` maps each edit to n_attributes numbers, as the authors' test script
    makes them: ±0.5 for what a picture has or lacks, ±1 for the edited attribute. A picture comes without labels here
    and is taken to have what most of CelebA has (`BASE`); every edit flips one attribute of that, so the names are
    those of `ATTRIBUTES` with "Beard" for No_Beard and "Old" for Young. `labelled` is for pictures that are known: each
    edit then flips what they have. Or give other `labels`.
    """

    name = "AttGAN"

    def __init__(
        self, network: AttGANNetwork, labels: dict[str, tuple[float, ...]] | None = None, *, size: int | None = None
    ):
        self.labels = default_labels(network.n_attributes) if labels is None else dict(labels)
        wrong = next((edit for edit, values in self.labels.items() if len(values) != network.n_attributes), None)
        if wrong is not None:
            raise AntiPureError(f"The edit '{wrong}' needs {network.n_attributes} labels.")
        super().__init__(network, edits=tuple(self.labels), size=size or 256, multiple=2 ** len(network.enc_layers))
        if network.n_attributes == len(ATTRIBUTES) and self.labels == default_labels(network.n_attributes):
            self.attributes = ATTRIBUTES

    def _call(self, pixels: Tensor, edit: str) -> Tensor:
        if self.own is not None:
            return self.network(pixels, flipped(self._own_of(pixels), self.edits.index(edit)))
        labels = torch.tensor(self.labels[edit], device=pixels.device, dtype=pixels.dtype)
        return self.network(pixels, labels.expand(len(pixels), -1))


def flipped(own: Tensor, attribute: int) -> Tensor:
    """The label vectors for pictures that have `own` (B×13 in {0, 1}), as the authors' test script makes them.

    The attribute becomes its opposite, what cannot be together with it is taken away, and all are strengths then.
    """
    target = own.clone()
    target[:, attribute] = 1 - target[:, attribute]
    for group in EXCLUSIVE:
        if ATTRIBUTES[attribute] in group:
            others = [ATTRIBUTES.index(name) for name in group if name != ATTRIBUTES[attribute]]
            target[:, others] = target[:, others] * (1 - target[:, attribute : attribute + 1])
    strengths = (2 * target - 1) * KEPT
    strengths[:, attribute] *= EDITED / KEPT
    return strengths


def default_labels(n_attributes: int) -> dict[str, tuple[float, ...]]:
    """The label vectors of the edits: CelebA's thirteen, or "label 0", "label 1", ... switched on one at a time."""
    names = ATTRIBUTES if n_attributes == len(ATTRIBUTES) else tuple(f"label {i}" for i in range(n_attributes))
    edits = {}
    for i, name in enumerate(names):
        values = [KEPT if other in BASE else -KEPT for other in names]
        values[i] = -EDITED if name in BASE else EDITED
        edits[OPPOSITES.get(name, name)] = tuple(values)
    return edits
