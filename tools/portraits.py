"""Procedural portraits of people who do not exist: solid heads, lit and turned, drawn in several styles.

    pictures, labels = draw_portraits([12, 12, 40], [0, 1, 2], side=128, device="cuda")

An identity seed fixes the person (skull, jaw, nose, eyes, mouth, brows, skin, haircut and hair colour, beard, glasses,
hat, age, taste in clothes), a picture seed everything else (pose, framing, light, background, expression, style,
clothes' shade). Same seeds, same picture, whatever else is in the batch; devices differ by rounding only.

A head is a blend of ellipsoids, found along parallel rays by sphere tracing (J. C. Hart, The Visual Computer 12, 1996),
what lies on its skin is painted in the head's own coordinates. Axes: x to the right, y down, z to the viewer; the eyes
lie at y = 0, the chin near y = 0.95, the crown near y = -1.1. Fields are N×H×W, parameters N×1×1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tools.portrait_solids import distances
from tools.portrait_styles import STYLES, background, finish, value_noise

SIDE, SUPERSAMPLING = 128, 2
# Label slots and their values; row 0 of every slot means "any" and is never a portrait's own label.
SLOTS = {
    "style": ("any", *STYLES),
    "hair colour": ("any", "black", "brown", "blond", "red", "grey", "white", "dyed"),
    "haircut": ("any", "bald", "cropped", "parted", "bob", "long", "curly", "bun"),
    "beard": ("any", "none", "stubble", "moustache", "beard"),
    "glasses": ("any", "no", "yes"),
    "hat": ("any", "no", "beret", "cap"),
    "age": ("any", "young", "middle", "old"),
    "skin": ("any", "pale", "light", "tan", "brown", "dark"),
    "expression": ("any", "calm", "smile", "stern", "surprised"),
}
SKIN = ((0.97, 0.82, 0.73), (0.92, 0.72, 0.58), (0.80, 0.57, 0.42), (0.58, 0.38, 0.26), (0.38, 0.24, 0.17))
HAIR = (
    (0.07, 0.06, 0.07),
    (0.30, 0.17, 0.09),
    (0.80, 0.62, 0.32),
    (0.60, 0.22, 0.08),
    (0.48, 0.47, 0.47),
    (0.88, 0.87, 0.84),
    (0.25, 0.35, 0.62),
)
IRIS = ((0.22, 0.12, 0.06), (0.40, 0.26, 0.10), (0.22, 0.42, 0.62), (0.28, 0.45, 0.26), (0.42, 0.46, 0.50))


def uniforms(seeds: Tensor, count: int, stream: int) -> Tensor:
    """N×count numbers in 0..1, a hash of (seed, stream, column) alone: int64 arithmetic, equal on every device."""
    columns = torch.arange(count, device=seeds.device, dtype=torch.int64)
    z = (seeds.long()[:, None] * 1_000_003 + stream) * 2_654_435_761 + columns * 40_503 + 12_345
    for shift, factor in ((30, 0x3F58476D1CE4E5B9), (27, 0x14D049BB133111EB), (31, 0x2545F4914F6CDD1D)):
        z = (z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return ((z >> 20) & 0xFFFFFF).double().div(1 << 24).float()


class Draws:
    """Named random numbers of a batch, N×1×1 each; order is part of the format."""

    def __init__(self, seeds: Tensor, stream: int, count: int = 256):
        self.values, self.used = uniforms(seeds, count, stream), 0

    def __call__(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        self.used += 1
        return (low + (high - low) * self.values[:, self.used - 1]).view(-1, 1, 1)

    def bell(self, middle: float, spread: float) -> Tensor:
        """Near a middle, never further than 2 spreads (sum of three uniform numbers)."""
        return middle + spread * 4 / 3 * (self() + self() + self() - 1.5)

    def choice(self, weights: Tensor) -> Tensor:
        """N indices, weights K or N×K."""
        total = torch.broadcast_to(weights.to(self.values.device), (len(self.values), weights.shape[-1])).cumsum(1)
        return (self().view(-1, 1) * total[:, -1:] >= total).sum(1).clamp(max=weights.shape[-1] - 1)


@dataclass
class Portraits:
    """pictures N×3×side×side in 0..1; labels N×len(SLOTS), indices into the values of each slot (never 0)."""

    pictures: Tensor
    labels: Tensor

    def __iter__(self):  # noqa: ANN204
        return iter((self.pictures, self.labels))


def colour(rows: Sequence[Sequence[float]], index: Tensor) -> Tensor:
    """Row per face of a palette, N×3×1×1."""
    return torch.tensor(rows, device=index.device)[index][..., None, None]


def person(seeds: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What identity seeds fix: shape parameters N×1×1 (colours N×3×1×1) and labels N by slot."""
    d = Draws(seeds, 1)
    p: dict[str, Tensor] = {}
    soft = d()  # from broad to fine features
    p["soft"] = soft
    age = d.choice(torch.tensor([0.45, 0.33, 0.22]))
    p["age"] = torch.tensor([0.0, 0.45, 1.0], device=seeds.device)[age].view(-1, 1, 1) + 0.12 * d(-1, 1)
    skin = d.choice(torch.tensor([0.24, 0.26, 0.2, 0.16, 0.14]))
    p["skin"] = colour(SKIN, skin) * d(0.94, 1.05)[:, None]
    p["skin"] = p["skin"] * torch.stack([d(0.98, 1.03), d(0.97, 1.02), d(0.95, 1.04)], 1)
    dark = (skin > 2).float()[:, None]
    young = torch.tensor([[0.26, 0.27, 0.18, 0.11, 0.03, 0.03, 0.12]], device=seeds.device)
    old = torch.tensor([[0.08, 0.08, 0.05, 0.03, 0.4, 0.36, 0.0]], device=seeds.device)
    deep = torch.tensor([[0.62, 0.2, 0.02, 0.02, 0.04, 0.04, 0.06]], device=seeds.device)
    weights = torch.where(age[:, None] == 2, old, torch.where(dark > 0, deep, young))
    hair = d.choice(weights)
    dyed = torch.stack([d(0.1, 0.8), d(0.05, 0.5), d(0.2, 0.8)], 1)
    tone = torch.where((hair == 6).view(-1, 1, 1, 1), dyed, colour(HAIR, hair) * d(0.75, 1.25)[:, None])
    p["hair"] = tone.clamp(0.02, 0.95)
    fine = soft.view(-1, 1)
    cuts = [
        0.16 * (1 - fine),
        0.3 - 0.22 * fine,
        0.24 + 0 * fine,
        0.22 * fine,
        0.36 * fine,
        0.16 + 0 * fine,
        0.2 * fine,
    ]
    cut = d.choice(torch.cat(cuts, 1))
    p["cut"] = cut.view(-1, 1, 1)
    beard = d.choice(
        torch.where(
            fine > 0.5, torch.tensor([[1.0, 0, 0, 0]]).to(fine), torch.tensor([[0.45, 0.2, 0.13, 0.22]]).to(fine)
        )
    )
    p["beard"] = beard.view(-1, 1, 1)
    glasses = d.choice(torch.tensor([0.78, 0.22]))
    p["glasses"] = glasses.view(-1, 1, 1).float()
    hat = d.choice(torch.tensor([0.84, 0.08, 0.08]))
    hat = torch.where((cut == 6) | (cut == 5), 0, hat)
    p["hat"] = hat.view(-1, 1, 1)
    p["hat rgb"] = torch.stack([d(0.08, 0.7), d(0.08, 0.55), d(0.08, 0.6)], 1)
    p["wide"] = d.bell(0.98, 0.07) - 0.04 * soft
    p["jaw"] = d.bell(1.0, 0.11) - 0.14 * soft
    p["long"] = d.bell(1.0, 0.05)
    p["chin"] = d.bell(0.0, 0.05)
    p["chin size"] = d.bell(0.2, 0.04) - 0.03 * soft
    p["cheek"] = d.bell(0.0, 0.035)
    p["nose long"] = d.bell(0.34, 0.035)
    p["nose out"] = d.bell(0.0, 0.045) - 0.03 * soft
    p["nose wide"] = d.bell(0.1, 0.018) + 0.02 * dark[..., None]
    p["nose tip"] = d.bell(0.105, 0.018)
    p["bridge"] = d.bell(0.05, 0.012)
    p["brow ridge"] = d.bell(0.0, 0.03) - 0.03 * soft
    p["eye gap"] = d.bell(0.285, 0.022)
    p["eye wide"] = d.bell(0.148, 0.014)
    p["eye open"] = d.bell(0.078, 0.013) + 0.012 * soft
    p["eye slant"] = d.bell(0.05, 0.09)
    p["iris"] = colour(
        IRIS,
        d.choice(
            torch.where(
                dark > 0,
                torch.tensor([[0.8, 0.2, 0, 0, 0]]).to(dark),
                torch.tensor([[0.28, 0.2, 0.25, 0.15, 0.12]]).to(dark),
            )
        ),
    )
    p["brow high"] = d.bell(0.185, 0.022)
    p["brow thick"] = d.bell(0.034, 0.01) - 0.008 * soft
    p["brow arch"] = d.bell(0.55, 0.4) + 0.4 * soft
    p["brow tilt"] = d.bell(0.0, 0.14)
    p["mouth wide"] = d.bell(0.215, 0.026)
    p["mouth y"] = d.bell(0.575, 0.022)
    p["lips"] = d.bell(0.052, 0.012) + 0.012 * soft + 0.01 * dark[..., None]
    p["rouge"] = (d() < 0.55) * (soft > 0.5) * d(0.3, 1.0)
    p["rouge rgb"] = torch.stack([d(0.6, 0.8), d(0.08, 0.25), d(0.15, 0.35)], 1)
    p["freckles"] = (d() < 0.14).float() * (1 - dark[..., None])
    p["volume"] = d(0.0, 1.0)
    p["hairline"] = d.bell(-0.6, 0.07)
    p["part"] = d(-0.34, 0.34)
    p["fringe"] = (d() < 0.35) * d(0.1, 0.3)
    p["length"] = d(0.9, 1.9)
    p["wave"] = d(0, 1) ** 2
    p["ear"] = d.bell(0.19, 0.025)
    p["frame wide"], p["frame tall"], p["frame round"] = d(0.19, 0.23), d(0.13, 0.19), d(0.03, 0.13)
    p["frame rgb"] = torch.stack([d(0.02, 0.4), d(0.02, 0.22), d(0.02, 0.25)], 1)
    p["collar"] = d.choice(torch.tensor([0.3, 0.25, 0.25, 0.2])).view(-1, 1, 1)
    p["cloth rgb"] = torch.stack([d(0.06, 0.85), d(0.06, 0.8), d(0.06, 0.8)], 1)
    p["earring"] = (d() < 0.4) * (soft > 0.55) * 1.0
    labels = {
        "hair colour": hair,
        "haircut": cut,
        "beard": beard,
        "glasses": glasses,
        "hat": hat,
        "age": age,
        "skin": skin,
    }
    return p, {k: v + 1 for k, v in labels.items()}


def occasion(seeds: Tensor, style: Tensor | None) -> tuple[dict[str, Tensor], dict[str, Tensor], Draws]:
    """What picture seeds fix: pose, light, expression, style; parameters, labels and the stream for the rest."""
    d = Draws(seeds, 2)
    q: dict[str, Tensor] = {}
    q["yaw"], q["pitch"], q["roll"] = d.bell(0, 0.27), d.bell(0.0, 0.1), d.bell(0, 0.09)
    q["x"], q["y"], q["zoom"] = d.bell(0, 0.07), d.bell(0.09, 0.05), d.bell(1.4, 0.11)
    feeling = d.choice(torch.tensor([0.36, 0.34, 0.17, 0.13]))
    table = torch.tensor(
        [[0.05, 0, 0, 0, 1.0], [0.62, 0.25, 0.02, 0, 0.82], [-0.4, 0, -0.045, 0.3, 0.85], [0.0, 0.85, 0.07, 0, 1.3]]
    )
    chosen = table.to(seeds.device)[feeling] * (0.75 + 0.5 * d().view(-1, 1))
    for i, name in enumerate(("smile", "gape", "brows", "frown")):
        q[name] = chosen[:, i].view(-1, 1, 1)
    q["lids"] = table.to(seeds.device)[feeling, 4].view(-1, 1, 1) * d(0.92, 1.08)
    q["look x"], q["look y"] = q["yaw"] * -0.05 + d.bell(0, 0.014), d.bell(0, 0.008)
    side, high = d(-1.15, 1.15), d(0.1, 0.9)
    light = torch.stack([side.sin() * high.cos(), -high.sin() + 0 * side, side.cos() * high.cos()], 1)
    q["light"] = light
    warm = d(-0.12, 0.14)
    q["key rgb"] = torch.stack([1 + warm, 1 + 0.1 * warm, 1 - warm], 1) * d(0.7, 1.0)[:, None]
    q["fill rgb"] = torch.stack([d(0.26, 0.48), d(0.27, 0.46), d(0.3, 0.52)], 1)
    q["rim"] = d(0, 0.5) * (d() < 0.6)
    q["shade"] = d(0.8, 1.15)
    drawn = d.choice(torch.ones(len(STYLES) - 1))
    drawn = drawn if style is None else torch.where(style > 0, style - 1, drawn)
    return q, {"style": drawn + 1, "expression": feeling + 1}, d


def draw_portraits(
    identities: Sequence[int] | Tensor,
    seeds: Sequence[int] | Tensor,
    *,
    style: Sequence[int] | Tensor | None = None,
    side: int = SIDE,
    supersampling: int = SUPERSAMPLING,
    device: torch.device | str = "cpu",
    trace=None,  # noqa: ANN001
) -> Portraits:
    """Portraits of `identities` (N integers) in the circumstances of `seeds` (N integers).

    style: N values of SLOTS["style"] (0: as the seed says; "painted" is no style of this renderer).
    trace: a compiled `portrait_solids.distances`, or None for the plain one.
    """
    ids = torch.as_tensor(identities, device=device).long()
    shots = torch.as_tensor(seeds, device=device).long() * 7_919 + ids
    style = None if style is None else torch.as_tensor(style, device=device).long()
    (p, labels), (q, more, d) = person(ids), occasion(shots, style)
    big = side * supersampling
    axis = (torch.arange(big, device=device) + 0.5) * 2 / big - 1
    y, x = (v[None].expand(len(ids), -1, -1) for v in torch.meshgrid(axis, axis, indexing="ij"))
    noise = value_noise(shots, big, uniforms)
    from tools.portrait_paint import shaded

    layers = shaded(p, q, d, x, y, noise, trace or distances)
    scene = background(d, x, y, noise)
    pictures = finish(more["style"] - 1, layers, scene, d, x, y, noise, supersampling)
    labels = labels | more
    return Portraits(pictures, torch.stack([labels[name] for name in SLOTS], 1))
