"""What the identity judge sees while it is trained: portraits in other conditions, and pictures without a portrait.

All functions take and give N×3×H×W in 0..1 and draw from torch's global generator.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

# Photographs of things that scikit-image carries. Of the second ones nothing is seen in training.
PHOTOS = ("coffee.png", "motorcycle_left.png", "rocket.jpg", "hubble_deep_field.jpg", "ihc.png", "retina.jpg",
          "brick.png", "gravel.png", "coins.png", "cell.png", "moon.png", "page.png")  # fmt: skip
HELD_OUT_PHOTOS = ("chelsea.png", "grass.png", "text.png", "color.png")
KINDS = ("empty", "noise", "shuffled", "warped", "blurred", "part", "photo", "plain", "texture")
_SMALLEST, _BROADEST = 0.35, 1.0  # shares of a photo's shorter side


def between(low: float, high: float, count: int, columns: int = 1) -> Tensor:
    return low + (high - low) * torch.rand(count, columns, 1, 1)


def resampled(pictures: Tensor, sides: tuple[int, ...]) -> Tensor:
    """Each picture reduced to one of the sides and enlarged again; sides of its own and above leave it."""
    own, out = pictures.shape[-1], pictures.clone()
    chosen = torch.randint(len(sides), (len(pictures),))
    for i, side in enumerate(sides):
        rows = (chosen == i).nonzero()[:, 0]
        if side < own and len(rows):
            small = F.interpolate(pictures[rows], (side, side), mode="bilinear", antialias=True)
            out[rows] = F.interpolate(small, (own, own), mode="bicubic")
    return out.clamp(0, 1)


def moved(pictures: Tensor, zoom: float, shift: float, degrees: float) -> Tensor:
    """Zoomed by up to 1 ± zoom, shifted by up to a share of the side, turned, one in two mirrored."""
    n = len(pictures)
    angle = between(-degrees, degrees, n).flatten() * math.pi / 180
    scale = 1 / between(1 - zoom, 1 + zoom, n).flatten()
    flip = scale * (torch.randint(2, (n,)) * 2 - 1)
    right, down = (between(-2 * shift, 2 * shift, n).flatten() for _ in range(2))
    rows = [torch.stack([flip * angle.cos(), -scale * angle.sin(), right], 1)]
    rows += [torch.stack([flip * angle.sin(), scale * angle.cos(), down], 1)]
    places = F.affine_grid(torch.stack(rows, 1), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, places, padding_mode="reflection", align_corners=False)


def jpeg(picture: Tensor, quality: int) -> Tensor:
    """One picture 3×H×W through JPEG."""
    buffer = io.BytesIO()
    Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1).float() / 255


def conditions(pictures: Tensor) -> Tensor:
    """The same pictures in other conditions: framing, light and colour, sharpness, noise, JPEG."""
    n, side = len(pictures), pictures.shape[-1]
    pictures = moved(pictures, 0.14, 0.05, 7)
    grey = pictures.mean(1, keepdim=True)
    pictures = torch.lerp(grey, pictures, between(0.65, 1.25, n)) * between(0.82, 1.15, n) * between(0.92, 1.08, n, 3)
    pictures = (pictures + between(-0.06, 0.08, n)).clamp(1e-4, 1) ** between(0.8, 1.25, n)
    pictures = resampled(pictures, (side, side, side * 2 // 3, side // 2, side * 3 // 8))
    spread = between(0, 0.09, n) * (torch.rand(n, 1, 1, 1) < 0.5)
    pictures = (pictures + spread * torch.randn_like(pictures)).clamp(0, 1)
    for i in (torch.rand(n) < 0.12).nonzero()[:, 0].tolist():
        pictures[i] = jpeg(pictures[i], int(torch.randint(30, 90, ())))
    return pictures


def photographs(names: tuple[str, ...]) -> list[Tensor]:
    """3×H×W in 0..1 each, of those that the installed scikit-image carries."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    found = [np.asarray(Image.open(folder / name).convert("RGB")) for name in names if (folder / name).is_file()]
    return [torch.from_numpy(one.copy()).permute(2, 0, 1).float() / 255 for one in found]


def windows(photos: list[Tensor], count: int, side: int) -> Tensor:
    """Square windows of photographs, side×side, in other colours."""
    made = []
    for i in torch.randint(len(photos), (count,)).tolist():
        photo = photos[i]
        size = int(min(photo.shape[1:]) * float(between(_SMALLEST, _BROADEST, 1)))
        top, left = (int(torch.randint(n - size + 1, ())) for n in photo.shape[1:])
        window = photo[None, :, top : top + size, left : left + size]
        made.append(F.interpolate(window, (side, side), mode="bilinear", antialias=True))
    return torch.cat(made)


def shuffled(pictures: Tensor, cells: int) -> Tensor:
    """Each picture's cells×cells parts in an order of its own."""
    n, _, side, _ = pictures.shape
    size = side // cells
    parts = F.unfold(pictures[..., : size * cells, : size * cells], size, stride=size)
    order = torch.rand(n, 1, cells * cells).argsort(-1)
    parts = parts.gather(2, order.expand_as(parts))
    return F.interpolate(F.fold(parts, (size * cells,) * 2, size, stride=size), (side, side))


def warped(pictures: Tensor, amount: float, cells: int) -> Tensor:
    """Each pixel fetched from elsewhere, up to `amount` of the side away, smoothly over cells×cells."""
    n, _, side, _ = pictures.shape
    places = F.affine_grid(torch.eye(2, 3).expand(n, -1, -1), list(pictures.shape), align_corners=False)
    field = F.interpolate(torch.rand(n, 2, cells, cells) * 2 - 1, (side, side), mode="bicubic")
    places = places + 2 * amount * field.permute(0, 2, 3, 1)
    return F.grid_sample(pictures, places, padding_mode="reflection", align_corners=False)


def noise(count: int, side: int) -> Tensor:
    """Noise of every grain, from a pixel to an eighth of the side, grey or coloured."""
    made = []
    for _ in range(count):
        cells = side // int(2 ** torch.randint(0, 5, ()))
        grain = torch.randn(1, 3 if torch.rand(()) < 0.7 else 1, cells, cells).expand(-1, 3, -1, -1)
        made.append(F.interpolate(grain, (side, side), mode="bicubic"))
    return (between(0.2, 0.8, count, 3) + between(0.05, 0.4, count) * torch.cat(made)).clamp(0, 1)


def plain(count: int, side: int) -> Tensor:
    """One colour, or colours that run into each other."""
    corners = torch.rand(count, 3, 2, 2)
    corners = torch.where(torch.rand(count, 1, 1, 1) < 0.4, corners[..., :1, :1], corners)
    return F.interpolate(corners, (side, side), mode="bilinear", align_corners=True)


def no_portraits(
    kind: str, count: int, portraits: Tensor, empty: Tensor, texture: Tensor, photos: list[Tensor], side: int
) -> Tensor:
    """`count` pictures of a kind of `KINDS` that show no portrait, side×side.

    portraits, empty, texture: uint8 of that side to choose from: portraits to spoil, backgrounds, and what the
    autoencoder of the demo model makes of noise.
    """

    def some(of: Tensor) -> Tensor:
        return of[torch.randint(len(of), (count,))].float() / 255

    if kind in ("empty", "texture"):
        return moved(some(empty if kind == "empty" else texture), 0.3, 0.1, 20)
    if kind == "noise":
        return noise(count, side)
    if kind == "plain":
        return plain(count, side)
    if kind == "photo":
        return windows(photos, count, side)
    if kind == "shuffled":
        return shuffled(some(portraits), int(torch.randint(3, 9, ())))
    if kind == "warped":
        cells = int(torch.randint(4, 9, ()))
        return warped(some(portraits), float(between(0.22, 0.4, 1)), cells)
    if kind == "blurred":
        return resampled(some(portraits), (3, 4, 5, 6))
    # A part without a face: a corner or an edge, enlarged.
    size = int(side * float(between(0.16, 0.3, 1)))
    picture = some(portraits)
    top, left = (0 if torch.rand(()) < 0.5 else side - size), int(torch.randint(side - size + 1, ()))
    part = picture[..., top : top + size, left : left + size]
    part = part.transpose(2, 3) if torch.rand(()) < 0.5 else part
    return F.interpolate(part, (side, side), mode="bicubic").clamp(0, 1)
