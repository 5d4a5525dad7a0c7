"""Budgets that follow what eyes see: less on flat ground, less colour there, all of it where texture hides it.

A change is noticed against what surrounds it: texture masks it (Legge & Foley, JOSA 1980; as a budget Chou & Li, IEEE
TCSVT 1995), an edge does on itself, flat ground does not, and there eyes see a change of colour first. How much a
change of one level is to an eye depends on the colour it happens to, as CIEDE2000 has it (`metrics.visibility`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import AntiPureError
from ..metrics.visibility import delta_e_2000, lab

FULL = "full"
BT601 = (0.299, 0.587, 0.114)
_PIXELS = 1 << 18  # at a time: float64 takes some 40 numbers for each
SIDE = 5  # pixels: of the squares in which texture is looked for


@dataclass(frozen=True)
class Visibility:
    """What a setting allows on flat ground, and how texture adds to it.

    lightness: CIEDE2000 by which flat ground may become lighter or darker. chroma: CIEDE2000 by which one channel may
    leave the others there. masking, chroma_masking: levels added to the two for each level of `texture`.
    """

    lightness: float
    chroma: float
    masking: float
    chroma_masking: float


# In the order of what eyes see. `full` is the plain ball.
SETTINGS: dict[str, Visibility | None] = {
    FULL: None,
    "balanced": Visibility(lightness=1.5, chroma=0.5, masking=1.0, chroma_masking=0.5),
    "gentle": Visibility(lightness=0.8, chroma=0.0, masking=0.5, chroma_masking=0.25),
}


def check_visibility(visibility: str) -> None:
    """Raise `AntiPureError` for what is none of `SETTINGS`."""
    if visibility not in SETTINGS:
        raise AntiPureError(f"There is no visibility '{visibility}'; choose one of {', '.join(SETTINGS)}.")


def texture(picture: Tensor) -> Tensor:
    """Contrast on every side of a pixel, in 8-bit levels of luma: B×1×H×W for B×3×H×W in 0..1.

    The largest difference to the four neighbours, averaged over the four squares of `SIDE` pixels that have the pixel
    at a corner; the least of the four counts. So a picture's texture is as rough as its pixels differ; beside a lone
    edge, where noise would be seen on the flat side, there is 0, and on an edge of h levels h / SIDE.
    """
    luma = (picture.float() * torch.tensor(BT601, device=picture.device).view(1, 3, 1, 1)).sum(1, keepdim=True) * 255
    down, along = luma.diff(dim=2).abs(), luma.diff(dim=3).abs()
    sides = [F.pad(down, (0, 0, 1, 0)), F.pad(down, (0, 0, 0, 1)), F.pad(along, (1, 0)), F.pad(along, (0, 1))]
    rough = torch.stack(sides).amax(0)
    around = F.pad(rough, (SIDE - 1,) * 4, mode="reflect" if min(rough.shape[-2:]) >= SIDE else "replicate")
    means = F.avg_pool2d(around, SIDE, 1)  # of the squares that begin SIDE - 1 pixels before
    height, width = rough.shape[-2:]
    before, after = slice(0, None), slice(SIDE - 1, None)
    squares = [means[..., y, x][..., :height, :width] for y in (before, after) for x in (before, after)]
    return torch.stack(squares).amin(0)


def seen_per_level(picture: Tensor) -> tuple[Tensor, Tensor]:
    """CIEDE2000 of one level more or less: of all channels together, and the most that one channel alone makes.

    picture: B×3×H×W in 0..1. Returns two of B×1×H×W, float32, above 0; where one level leaves 0..255 the colour
    formula goes on as it does inside.
    """
    steps = torch.cat([torch.ones(1, 3), torch.eye(3)])
    steps = torch.cat([steps, -steps]) / 255
    found = []
    # On the CPU: not every device has float64.
    for colours in picture.float().cpu().permute(0, 2, 3, 1).reshape(-1, 3).split(_PIXELS):
        here = lab(colours)
        moved = (colours + steps[:, None]).clamp(0, 1)
        # At the ends of the range one way is closed: it then counts as the other one does.
        each = delta_e_2000(here.expand(len(steps), -1, -1), lab(moved)).view(2, 4, -1).amax(0)
        found.append(torch.stack([each[0], each[1:].amax(0)]).float())
    batch, _, height, width = picture.shape
    lightness, channel = torch.cat(found, 1).view(2, batch, 1, height, width).to(picture.device)
    return lightness, channel


def visible_budget(picture: Tensor, levels: float, visibility: str) -> tuple[Tensor | None, Tensor | None]:
    """Levels by which a pixel may change, and by which its channels' changes may differ: both B×1×H×W, in 0..levels.

    picture: B×3×H×W in 0..1. (None, None) for `full`: nothing is allowed less than the ball does. The second is at
    most twice the first, where it forbids nothing.
    """
    setting = SETTINGS[visibility]
    if setting is None:
        return None, None
    lightness, channel = seen_per_level(picture)
    contrast = texture(picture)
    allowed = (setting.lightness / lightness + setting.masking * contrast).clamp(max=levels)
    apart = (setting.chroma / channel + setting.chroma_masking * contrast).minimum(2 * allowed)
    return allowed, apart


def drawn_together(offset: Tensor, apart: Tensor, low: Tensor, high: Tensor, *, whole: bool = False) -> Tensor:
    """The offsets B×3×H×W with the channels of a pixel at most `apart` (B×1×H×W) from each other, in low..high.

    low <= 0 <= high, B×3×H×W; offset lies between. Each pixel's channels are clamped to an interval of that length,
    the one that takes the least (in squares) where low and high leave it the choice. whole: the interval begins at a
    whole number, so that whole offsets stay whole under a whole `apart`.
    """
    least, most = offset.amin(1, keepdim=True), offset.amax(1, keepdim=True)
    total = offset.sum(1, keepdim=True)
    middle, start = total - least - most, (least + most - apart) / 2
    # The third channel may be cut off, too: then it has a say.
    start = torch.where(middle < start, (total - apart) / 3, start)
    start = torch.where(middle > start + apart, (total - 2 * apart) / 3, start)
    if whole:
        start = start.round()
    start = start.maximum(low.amax(1, keepdim=True) - apart).minimum(high.amin(1, keepdim=True))
    return offset.maximum(start).minimum(start + apart).maximum(low).minimum(high)
