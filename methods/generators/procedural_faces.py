"""Procedural portraits with known attributes: hair colour (black, blond, brown) and glasses (off, on).

A face is a seed. The seed fixes everything but the attributes (skin, pose, features, haircut, clothes, background,
light), so the same face can be drawn with other attributes: the ground truth an editing network is trained and judged
with. Shapes are signed distances with soft edges, drawn at twice the side and averaged down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import AntiPureError
from ..pictures import random_stream

HAIR = ("black", "blond", "brown")
EDITS = ("black hair", "blond hair", "brown hair", "glasses", "no glasses")  # what the bundled generator knows
HELD_OUT = 1_000_000  # it was trained on seeds below, and is judged on those from here on
SIDE = 64
SUPERSAMPLING = 2
BATCH = 16  # faces drawn at once: bounds memory, changes nothing in the pictures
DRAWS = 96  # random numbers per face; more than are used, so that a new feature leaves the old ones as they are
FRAME_DRAWS = 6  # of them those that glasses take
GIVEN_FRAME = 7  # the frame that the edit "glasses" puts on: no picture without glasses tells which it would wear

# Anchors in 0..1 RGB; a face mixes two neighbours.
SKIN = torch.tensor(
    [[0.99, 0.86, 0.76], [0.94, 0.76, 0.62], [0.80, 0.58, 0.43], [0.58, 0.39, 0.27], [0.42, 0.27, 0.18]]
)
HAIR_RGB = torch.tensor([[0.08, 0.07, 0.09], [0.90, 0.73, 0.40], [0.43, 0.24, 0.11]])
FRAMES = torch.tensor([[0.05, 0.05, 0.07], [0.40, 0.08, 0.10], [0.08, 0.11, 0.36], [0.25, 0.14, 0.07]])
IRIS = torch.tensor([[0.25, 0.15, 0.08], [0.20, 0.42, 0.62], [0.25, 0.45, 0.25], [0.40, 0.40, 0.42]])


def random_attributes(seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Attributes a face is met with by itself: hair N (indices into `HAIR`, uniform), glasses N (bool, one in two)."""
    draws = torch.stack([torch.rand(2, generator=random_stream(int(seed), 1)) for seed in seeds])
    return (draws[:, 0] * len(HAIR)).long(), draws[:, 1] < 0.5


def edited_attributes(hair: Tensor, glasses: Tensor, edit: Tensor) -> tuple[Tensor, Tensor]:
    """The attributes after each face's edit. edit: N indices into `EDITS`, or len(EDITS) for none."""
    coloured = edit < len(HAIR)
    return torch.where(coloured, edit, hair), torch.where(edit == 3, True, torch.where(edit == 4, False, glasses))


def draw_edited(seeds: Sequence[int], edit: str) -> Tensor:
    """The truth of an edit of `EDITS`: the same faces with the attributes it asks for, as `draw_faces` gives them.

    Glasses that are put on have the frame `GIVEN_FRAME`; who wears glasses keeps the own ones.
    """
    own = random_attributes(seeds)
    hair, glasses = edited_attributes(*own, torch.full((len(seeds),), EDITS.index(edit)))
    truth, put_on = draw_faces(seeds, hair, glasses), glasses & ~own[1]
    if put_on.any():
        chosen = [seed for seed, put in zip(seeds, put_on, strict=True) if put]
        truth[put_on] = draw_faces(chosen, hair[put_on], glasses[put_on], frame=GIVEN_FRAME)
    return truth


def draw_faces(
    seeds: Sequence[int],
    hair: Tensor | Sequence[int] | None = None,
    glasses: Tensor | Sequence[bool] | None = None,
    *,
    side: int = SIDE,
    frame: int | None = None,
) -> Tensor:
    """Portraits, N×3×side×side in 0..1, float32, on the CPU.

    seeds: one integer per face; a face depends on its own seed alone, not on its neighbours.
    hair: N indices into `HAIR`; glasses: N booleans; None: those of `random_attributes`.
    frame: a seed for other glasses than a face's own (colour, size, tint), the same draw for all; None: its own.
    Raises `AntiPureError` for no seeds, an unknown hair colour, or attributes that are not one per face.
    """
    if len(seeds) == 0 or side < 8:
        raise AntiPureError(f"{len(seeds)} faces of side {side} cannot be drawn; ask for at least one of at least 8.")
    own = random_attributes(seeds)
    hair = own[0] if hair is None else torch.as_tensor(hair).long()
    glasses = own[1] if glasses is None else torch.as_tensor(glasses).bool()
    if hair.shape != (len(seeds),) or glasses.shape != (len(seeds),):
        raise AntiPureError(f"{len(seeds)} seeds need as many hair colours and glasses; give one of each per face.")
    if not bool(((hair >= 0) & (hair < len(HAIR))).all()):
        raise AntiPureError(f"Hair colours are indices 0..{len(HAIR) - 1} for {', '.join(HAIR)}; give one of these.")
    draws = torch.stack([torch.rand(DRAWS, generator=random_stream(int(seed))) for seed in seeds])
    parts = zip(draws.split(BATCH), hair.split(BATCH), glasses.split(BATCH), strict=True)
    frames = None if frame is None else torch.rand(FRAME_DRAWS, generator=random_stream(int(frame), 2))
    return torch.cat([_Portrait(d, side * SUPERSAMPLING, frames).draw(h, g) for d, h, g in parts])


class _Portrait:
    """A batch of faces on a canvas: x to the right and y down in -1..1, all lengths in these units.

    Features are drawn back to front; each draw takes the next column of random numbers, so order is part of the format.
    """

    def __init__(self, draws: Tensor, side: int, frames: Tensor | None = None):
        self.draws, self.used, self.soft, self.frames = draws.clone(), 0, 2.6 / side, frames
        axis = (torch.arange(side) + 0.5) * 2 / side - 1
        self.y, self.x = (v[None].expand(len(draws), -1, -1) for v in torch.meshgrid(axis, axis, indexing="ij"))
        self.canvas = torch.zeros(len(draws), 3, side, side)

    def uniform(self, low: float, high: float) -> Tensor:
        """The next random number of every face, in low..high: N×1×1, so that it meets maps."""
        self.used += 1
        return (low + (high - low) * self.draws[:, self.used - 1]).view(-1, 1, 1)

    def chance(self, probability: float) -> Tensor:
        return self.uniform(0, 1) < probability

    def colour(self, low: float = 0.1, high: float = 0.95, saturation: float = 0.6) -> Tensor:
        """A random colour, N×3×1×1, drawn towards its own grey."""
        colour = torch.stack([self.uniform(low, high) for _ in range(3)], 1)
        return torch.lerp(colour.mean(1, keepdim=True), colour, saturation)

    def anchor(self, palette: Tensor) -> Tensor:
        """A mix of two neighbours of a palette, N×3×1×1."""
        place = self.uniform(0, len(palette) - 1).view(-1)
        low = place.long().clamp(max=len(palette) - 2)
        return torch.lerp(palette[low], palette[low + 1], (place - low)[:, None])[..., None, None]

    def paint(self, cover: Tensor, colour: Tensor) -> None:
        """Lay a colour (N×3×1×1 or N×3×H×W) over the canvas where cover (N×H×W in 0..1) says."""
        self.canvas = torch.lerp(self.canvas, colour.expand_as(self.canvas), cover[:, None].expand_as(self.canvas))

    def inside(self, distance: Tensor) -> Tensor:
        """Coverage of the shape where the signed distance is negative."""
        return (0.5 - distance / self.soft).clamp(0, 1)

    def draw(self, hair: Tensor, glasses: Tensor) -> Tensor:
        self._background()
        self._pose()
        tone = self._hair_tone(hair)
        skin = self.anchor(SKIN) * self.uniform(0.94, 1.04)[:, None]
        self._back_hair(tone)
        self._body(skin)
        self._head(skin)
        self._features(skin, tone)
        self._front_hair(tone)
        self._glasses(glasses)
        light = 1 + self.uniform(-0.13, 0.13) * self.x + self.uniform(-0.1, 0.1) * self.y
        picture = (self.canvas * (light * self.uniform(0.9, 1.06))[:, None]).clamp(0, 1)
        return F.avg_pool2d(picture, SUPERSAMPLING)

    def _background(self) -> None:
        angle, power = self.uniform(0, 2 * math.pi), self.uniform(0.6, 1.4)
        ramp = (0.5 + 0.4 * (self.x * angle.cos() + self.y * angle.sin())).clamp(0, 1) ** power
        first, second = self.colour(0.4, 0.9, 0.3), self.colour(0.4, 0.9, 0.3)
        self.canvas = first + (second - first) * ramp[:, None]
        disc = _ellipse(self.x - self.uniform(-1, 1), self.y - self.uniform(-1, 0.4), self.uniform(0.2, 0.6), 0.5)
        self.paint((-disc / 0.5).clamp(0, 1) * self.uniform(0, 0.7), self.colour(0.4, 1, 0.3))

    def _pose(self) -> None:
        """Canvas to face coordinates: moved, tilted and scaled; `turn` shifts the features as a turned head does."""
        x, y = self.x - self.uniform(-0.13, 0.13), self.y - self.uniform(-0.03, 0.17)
        tilt, scale = self.uniform(-0.16, 0.16), self.uniform(0.86, 1.12)
        self.u = (x * tilt.cos() + y * tilt.sin()) / scale
        self.v = (y * tilt.cos() - x * tilt.sin()) / scale
        self.turn = self.uniform(-0.09, 0.09)
        self.width, self.height = self.uniform(0.42, 0.54), self.uniform(0.55, 0.66)
        self.jaw = self.uniform(-0.05, 0.22)

    def _hair_tone(self, hair: Tensor) -> Tensor:
        """The hair's colour with strands and a sheen, N×3×H×W: where it is painted is the haircut's business."""
        shade, warmth = self.uniform(0.7, 1.15), self.uniform(-0.05, 0.05)
        tint = torch.stack([warmth, torch.zeros_like(warmth), -warmth], 1)
        angle = torch.atan2(self.v + 0.35, self.u - self.uniform(-0.25, 0.25))
        strands = torch.sin(angle * self.uniform(14, 30) + self.uniform(1, 5) * self.v + self.uniform(0, 6))
        radius = ((self.u - self.turn) ** 2 + (self.v + 0.1) ** 2).sqrt()
        sheen = torch.exp(-(((radius - self.uniform(0.5, 0.6)) / 0.09) ** 2)) * (self.v < 0)
        relief = 1 + 0.13 * strands + self.uniform(0.05, 0.3) * sheen
        base = HAIR_RGB[hair][..., None, None] + tint
        return (base * (shade * relief)[:, None] + 0.03 * sheen[:, None]).clamp(0, 1)

    def _back_hair(self, tone: Tensor) -> None:
        volume, length = self.uniform(0.05, 0.16), self.uniform(0.1, 1.15)
        self.volume, self.curls = volume, self.chance(0.25)
        curl = 0.035 * torch.sin(14 * torch.atan2(self.v, self.u) + self.uniform(0, 6)) * self.curls
        cap = _ellipse(self.u, self.v + 0.12, self.width + volume, self.height + volume - 0.04) - curl
        long = self.chance(0.6)
        fall = _box(self.u, self.v - length / 2 + 0.05, self.width + 0.7 * volume, length / 2 + 0.08, 0.14) - curl
        both = torch.where(long, torch.minimum(cap, fall), torch.maximum(cap, self.v - 0.22))
        bun = _ellipse(self.u - self.uniform(-0.1, 0.1), self.v + self.height + volume + 0.12, 0.17, 0.15)
        self.paint(self.inside(torch.where(self.chance(0.18), torch.minimum(both, bun), both)), tone * 0.86)

    def _body(self, skin: Tensor) -> None:
        shirt, collar = self.colour(), self.uniform(0.2, 0.34)
        shoulders = _ellipse(self.u, self.v - 1.33, self.uniform(0.68, 0.92), self.uniform(0.5, 0.62))
        neck = _box(self.u, self.v - 0.65, self.uniform(0.17, 0.23), 0.33, 0.08)
        self.paint(self.inside(neck), skin * 0.86)
        stripes = 1 - 0.22 * (torch.sin(self.v * self.uniform(20, 40)) > 0) * self.chance(0.35)
        self.paint(self.inside(shoulders), shirt * stripes[:, None])
        self.paint(self.inside(_ellipse(self.u, self.v - 0.84, collar, collar * 0.75)), skin * 0.9)

    def _head(self, skin: Tensor) -> None:
        for ear in (-1, 1):
            self.paint(self.inside(_ellipse(self.u - ear * self.width, self.v - 0.04, 0.085, 0.12)), skin * 0.9)
        narrowing = 1 - self.jaw * self.v.clamp(min=0) / self.height  # towards the chin
        self.face = _ellipse(self.u / narrowing, self.v, self.width, self.height)
        side = 1 - 0.16 * ((self.u - self.turn) * self.uniform(-1, 1) / self.width).clamp(-1, 1)
        round_off = 1 - 0.14 * (1 + self.face / self.width).clamp(0, 1) ** 3
        self.paint(self.inside(self.face), (skin * (side * round_off)[:, None]).clamp(0, 1))

    def _features(self, skin: Tensor, tone: Tensor) -> None:
        u, v = self.u - self.turn, self.v
        self.gap, self.level = self.uniform(0.185, 0.235), self.uniform(-0.08, 0.02)
        wide, open_ = self.uniform(0.085, 0.115), self.uniform(0.045, 0.085)
        iris, look, slant = self.anchor(IRIS), self.uniform(-0.025, 0.025), self.uniform(-0.12, 0.12)
        brow, arch, thick = self.uniform(0.13, 0.18), self.uniform(0.2, 1.6), self.uniform(0.016, 0.034)
        for eye in (-1, 1):
            x, y = u - eye * self.gap, v - self.level
            self.paint(self.inside(_ellipse(x, y, wide + 0.014, open_ + 0.016)), skin * 0.6)
            white = self.inside(_ellipse(x, y, wide, open_))
            self.paint(white, torch.full((1, 3, 1, 1), 0.96))
            disc = _ellipse(x - look, y, open_ * 0.95, open_ * 0.95)
            self.paint(white * self.inside(disc), iris)
            self.paint(white * self.inside(disc + open_ * 0.45), iris * 0.1)
            glint = _ellipse(x - look - 0.018, y + 0.02, 0.016, 0.016)
            self.paint(white * self.inside(glint), torch.ones(1, 3, 1, 1))
            arc = y + brow + slant * eye * x - arch * (x**2 - 0.006)
            self.paint(self.inside(torch.maximum(arc.abs() - thick, x.abs() - wide * 1.15)), tone * 0.75)
            blush = torch.exp(-((x - eye * 0.06) ** 2 + (y - 0.24) ** 2) / 0.012)
            self.paint(0.35 * blush * self.inside(self.face), skin * torch.tensor([1.0, 0.72, 0.7]).view(1, 3, 1, 1))
        tip, mouth = self.uniform(0.15, 0.2), self.uniform(0.33, 0.4)
        nose = _ellipse(u - 0.4 * self.turn, v - tip, self.uniform(0.05, 0.075), 0.035)
        bridge = torch.exp(-(((u - 0.4 * self.turn - 0.03) / 0.022) ** 2)) * self.inside((v - 0.05).abs() - 0.1)
        self.paint(0.75 * self.inside(nose), skin * 0.8)
        self.paint(0.35 * bridge, skin * 0.75)
        smile, half, gape = self.uniform(-0.5, 2.6), self.uniform(0.1, 0.17), self.uniform(0.012, 0.05)
        line = v - mouth + smile * (u**2 - 0.5 * half**2)
        lips = torch.maximum(line.abs() - gape * (1 - (u / half) ** 2).clamp(min=0), u.abs() - half)
        red = torch.tensor([0.85, 0.5, 0.5]).view(1, 3, 1, 1) * skin * self.uniform(0.85, 1.05)[:, None]
        self.paint(self.inside(lips - 0.008), red.clamp(0, 1))
        self.paint(self.inside(lips + 0.018) * self.chance(0.4), torch.full((1, 3, 1, 1), 0.93))

    def _front_hair(self, tone: Tensor) -> None:
        """The hair on the forehead: what of the scalp lies above a hairline of random height, slope and fringe."""
        scalp = _ellipse(self.u, self.v + 0.1, self.width + 0.45 * self.volume, self.height + 0.5 * self.volume)
        part, high = self.uniform(-0.35, 0.35), self.uniform(-0.44, -0.27)
        curve, slope = self.uniform(0.2, 1.9), self.uniform(-0.35, 0.35)
        fringe = self.uniform(0, 0.03) * torch.sin(self.u * self.uniform(18, 40) + self.uniform(0, 6))
        line = self.v - high - curve * (self.u - part) ** 2 * 0.55 - slope * self.u - fringe
        self.paint(self.inside(torch.maximum(scalp, torch.maximum(line, self.v - 0.12))), tone)

    def _glasses(self, glasses: Tensor) -> None:
        if self.frames is not None:
            self.draws[:, self.used : self.used + FRAME_DRAWS] = self.frames
        u, v, on = self.u - self.turn, self.v - self.level, glasses.view(-1, 1, 1)
        frame, rim = self.anchor(FRAMES), self.uniform(0.016, 0.026)
        wide, tall, round_ = self.uniform(0.135, 0.165), self.uniform(0.105, 0.15), self.uniform(0.03, 0.1)
        tint = self.uniform(0.05, 0.22)
        rims = torch.full_like(u, 9.0)
        for eye in (-1, 1):
            lens = _box(u - eye * self.gap, v - 0.01, wide, tall, round_)
            self.paint(tint * self.inside(lens) * on, torch.tensor([0.75, 0.87, 0.95]).view(1, 3, 1, 1))
            rims = torch.minimum(rims, lens.abs() - rim)
        bridge = torch.maximum((v + 0.03 - 0.8 * u**2).abs() - rim, u.abs() - (self.gap - wide).clamp(min=0.02))
        temples = torch.maximum((v + 0.03).abs() - rim, (self.gap + wide - u.abs()).maximum(self.u.abs() - self.width))
        self.paint(self.inside(torch.minimum(torch.minimum(rims, bridge), temples)) * on, frame)


def _ellipse(x: Tensor, y: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    """Signed distance to an ellipse with half axes a and b, to first order near its border."""
    return (((x / a) ** 2 + (y / b) ** 2).sqrt() - 1) * torch.minimum(torch.as_tensor(a), torch.as_tensor(b))


def _box(x: Tensor, y: Tensor, a: Tensor, b: Tensor | float, radius: Tensor | float) -> Tensor:
    """Signed distance to a rectangle with half sides a and b and rounded corners."""
    dx, dy = x.abs() - a + radius, y.abs() - b + radius
    return (dx.clamp(min=0) ** 2 + dy.clamp(min=0) ** 2).sqrt() + torch.maximum(dx, dy).clamp(max=0) - radius
