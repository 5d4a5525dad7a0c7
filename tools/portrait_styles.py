"""Backgrounds and styles of the procedural portraits (see `portraits`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from tools.portrait_paint import Layers

STYLES = ("studio", "oil", "ink", "pastel", "flat", "watercolour", "painted")  # the last: of pictures, not drawn here


def value_noise(seeds: Tensor, side: int, uniforms: Callable) -> dict[int, Tensor]:
    """Smooth noise N×side×side in 0..1 by cells per side; the same whatever the side."""
    noise = {}
    for cells in (4, 8, 16, 32, 64):
        grid = uniforms(seeds, (cells + 1) ** 2, 10 + cells).view(len(seeds), 1, cells + 1, cells + 1)
        noise[cells] = F.interpolate(grid, size=(side, side), mode="bilinear", align_corners=True)[:, 0]
    return noise


def background(d: Any, x: Tensor, y: Tensor, noise: dict[int, Tensor]) -> Tensor:
    """Studio cloth, wall, open land, lights or an arch behind the sitter, N×3×H×W in 0..1."""

    def tone(low: float, high: float) -> Tensor:
        base = torch.stack([d(low, high), d(low, high), d(low, high)], 1)
        return torch.lerp(base.mean(1, keepdim=True), base, 0.45)

    kind = d.choice(torch.tensor([0.4, 0.16, 0.16, 0.14, 0.14])).view(-1, 1, 1, 1)
    first, second, third = tone(0.08, 0.7), tone(0.2, 0.85), tone(0.3, 0.95)
    angle, cloud = d(0, 2 * math.pi), d(0.1, 0.7)
    ramp = (0.5 + 0.42 * (x * angle.cos() + y * angle.sin()) + cloud * (noise[4] + 0.5 * noise[8] - 0.75)).clamp(0, 1)
    cloth = torch.lerp(first, second, ramp[:, None])
    glow = torch.exp(-((x - d(-0.4, 0.4)) ** 2 + (y + d(-0.1, 0.5)) ** 2) / 0.7)[:, None]
    cloth = cloth + 0.25 * glow * third * d(0, 1)[:, None]
    hills = y - d(-0.25, 0.35) - 0.16 * torch.sin(3 * x + d(0, 6)) - 0.3 * (noise[8] - 0.5)
    ridge = y - d(-0.1, 0.3) - 0.1 * torch.sin(5 * x + d(0, 6)) + 0.12 - 0.2 * (noise[16] - 0.5)
    sky = torch.lerp(third, second, (0.5 + 0.5 * y + 0.4 * (noise[4] - 0.5)).clamp(0, 1)[:, None])
    green = torch.stack([d(0.15, 0.5), d(0.25, 0.55), d(0.12, 0.4)], 1)
    land = torch.lerp(sky, torch.lerp(green, sky, 0.5), (0.5 + 14 * ridge).clamp(0, 1)[:, None])
    land = torch.lerp(land, green * (0.8 + 0.4 * noise[32])[:, None], (0.5 + 14 * hills).clamp(0, 1)[:, None])
    lights = cloth * 0.7
    for _ in range(6):
        r, cx, cy = d(0.06, 0.22), d(-1, 1), d(-1, 0.7)
        disc = ((r - ((x - cx) ** 2 + (y - cy) ** 2).sqrt()) * 30).clamp(0, 1) * d(0.15, 0.6)
        lights = torch.lerp(lights, tone(0.3, 1.0), disc[:, None])
    period, bend = d(5, 14), d(-0.4, 0.4)
    drape = (
        first * (0.75 + 0.35 * torch.sin((x + bend * y + 0.1 * noise[4]) * period) * (0.7 + 0.6 * noise[8]))[:, None]
    )
    inner = torch.maximum(x.abs() - 0.72, torch.where(y < -0.2, (x**2 + (y + 0.2) ** 2).sqrt() - 0.72, x.abs() - 0.72))
    arch = torch.where((inner > 0)[:, None], first * (0.9 + 0.25 * noise[16])[:, None], sky)
    arch = arch * (1 - 0.5 * torch.exp(-((inner / 0.03) ** 2)))[:, None]
    scene = torch.where(
        kind == 0,
        cloth,
        torch.where(kind == 1, land, torch.where(kind == 2, lights, torch.where(kind == 3, drape, arch))),
    )
    vignette = 1 - d(0, 0.4) * ((x**2 + y**2) / 2).clamp(0, 1)
    return (scene * vignette[:, None]).clamp(0, 1)


def finish(
    style: Tensor, layers: Layers, scene: Tensor, d: Any, x: Tensor, y: Tensor, noise: dict[int, Tensor], factor: int
) -> Tensor:
    """Each portrait in its style, averaged down by `factor`: N×3×h×w in 0..1."""
    out = torch.zeros_like(scene)
    lit = (layers.albedo * layers.light + layers.gloss).clamp(0, 1.4)
    lit = 1 - torch.exp(-1.55 * lit)  # soft shoulder instead of clipping
    lit = (lit / (1 - math.exp(-1.55))).clamp(0, 1)
    cover = layers.cover[:, None]
    plain = torch.lerp(scene, lit, cover)
    paper = torch.stack([d(0.9, 0.98), d(0.87, 0.95), d(0.8, 0.92)], 1)
    strength = d(0.0, 1.0)
    for index, draw in enumerate((_studio, _oil, _ink, _pastel, _flat, _watercolour)):
        rows = (style == index).nonzero()[:, 0]
        if len(rows):
            part = {k: v[rows] for k, v in noise.items()}
            fields = {
                k: getattr(layers, k)[rows]
                for k in ("albedo", "light", "cover", "normal", "depth", "lines", "material")
            }
            args = (plain[rows], scene[rows], paper[rows], strength[rows], x[rows], y[rows], part)
            out[rows] = draw(fields, *args)
    return F.avg_pool2d(out.clamp(0, 1), factor)


def _edges(f: dict[str, Tensor], width: int) -> Tensor:
    """Where depth or material jump or the surface folds, N×H×W in 0..1."""

    def jump(v: Tensor) -> Tensor:
        return F.max_pool2d(v, width, 1, width // 2) + F.max_pool2d(-v, width, 1, width // 2)

    depth = jump((f["depth"] * f["cover"])[:, None])[:, 0]
    parts = jump(f["material"][:, None])[:, 0]
    folds = jump(f["normal"]).amax(1) * f["cover"]
    return torch.maximum(torch.maximum(((depth - 0.2) * 6), (parts > 0.5).float()), (folds - 1.0) * 1.6).clamp(0, 1)


def _soft(picture: Tensor, width: int) -> Tensor:
    return F.avg_pool2d(F.pad(picture, [width // 2] * 4, mode="replicate"), width, 1)


def _kuwahara(picture: Tensor, width: int) -> Tensor:
    """Edge-keeping strokes (M. Kuwahara, 1976): of four windows at a pixel's corners, the mean of the calmest."""
    mean = _soft(picture, width)
    spread = (_soft(picture**2, width) - mean**2).sum(1, keepdim=True)
    reach = width // 2
    size = picture.shape[-1]
    best, lowest = mean, torch.full_like(spread, 9.0)
    padded, around = F.pad(mean, [reach] * 4, mode="replicate"), F.pad(spread, [reach] * 4, mode="replicate")
    for top in (0, 2 * reach):
        for left in (0, 2 * reach):
            m, s = (v[..., top : top + size, left : left + size] for v in (padded, around))
            best, lowest = torch.where(s < lowest, m, best), torch.minimum(s, lowest)
    return best


def _warp(picture: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """picture moved by dx, dy (N×H×W, in canvas units of -1..1)."""
    axis = (torch.arange(picture.shape[-1], device=picture.device) + 0.5) * 2 / picture.shape[-1] - 1
    grid = torch.stack([axis[None, None, :] + dx, axis[None, :, None] + dy], -1)
    return F.grid_sample(picture, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _studio(f, plain, scene, paper, strength, x, y, n) -> Tensor:  # noqa: ANN001, PLR0913
    blurred = torch.lerp(_soft(scene, 9), plain, f["cover"][:, None])
    return blurred * (1 + 0.04 * (n[64] - 0.5))[:, None]


def _oil(f, plain, scene, paper, strength, x, y, n) -> Tensor:  # noqa: ANN001, PLR0913
    size = 0.012 + 0.012 * strength
    moved = _warp(plain, size * (2 * n[32] - 1), size * (2 * n[64].flip(1) - 1))
    features = (0.75 * f["lines"] * f["cover"]).clamp(0, 0.75)[:, None]  # eyes and mouth get a fine brush
    painted = torch.lerp(torch.lerp(_kuwahara(moved, 5), _kuwahara(moved, 7), 0.4), plain, features)
    flow = (n[8] * 9 + n[4] * 5)[:, None]
    along = torch.sin((x * flow[:, 0].cos() + y * flow[:, 0].sin()) * 80 + 8 * n[32]) * (0.4 + 0.6 * n[16])
    painted = painted * (1 + 0.075 * along + 0.1 * (n[64] - 0.5))[:, None]
    grey = painted.mean(1, keepdim=True)
    return grey + (painted - grey) * (1.15 + 0.2 * strength[:, None])


def _ink(f, plain, scene, paper, strength, x, y, n) -> Tensor:  # noqa: ANN001, PLR0913
    grey = (plain * torch.tensor([0.3, 0.59, 0.11], device=x.device).view(1, 3, 1, 1)).sum(1)
    grey = torch.lerp(0.55 + 0.45 * grey, grey, f["cover"])
    line = torch.maximum(_edges(f, 5), f["lines"])
    wobble = 3 * n[16] + 1.5 * n[32]
    first = torch.sin((x + y) * 95 + wobble) * 0.5 + 0.5
    second = torch.sin((x - y) * 88 + wobble) * 0.5 + 0.5
    dark = torch.maximum(((0.52 - grey) * 2.2).clamp(0, 1) > first, ((0.3 - grey) * 2.4).clamp(0, 1) > second).float()
    dark = torch.maximum(dark, (grey < 0.09).float())
    ink = torch.maximum(line, _soft(dark[:, None], 3)[:, 0] * 0.85)
    wash = torch.lerp(paper, paper * (0.35 + 0.65 * _soft(plain, 9)), (f["cover"] * (strength > 0.4) * 0.8)[:, None])
    tone = torch.tensor([0.1, 0.09, 0.12], device=x.device).view(1, 3, 1, 1)
    return torch.lerp(wash * (1 - 0.05 * n[64])[:, None], tone, ink[:, None])


def _pastel(f, plain, scene, paper, strength, x, y, n) -> Tensor:  # noqa: ANN001, PLR0913
    soft = torch.lerp(_soft(plain, 5), plain, 0.45)
    soft = _warp(soft, 0.012 * (2 * n[64] - 1), 0.012 * (2 * n[64].flip(2) - 1))
    pale = 0.16 + 0.84 * soft
    grain = ((n[64] + n[64].flip(1) - 1) * 0.9 + 0.35 * torch.sin((x * 0.8 + y) * 120 + 9 * n[16])).clamp(-1, 1)
    edge = torch.exp(-(((torch.maximum(x.abs(), y.abs()) - 1.02) / 0.13) ** 2))
    bare = (0.22 + 0.4 * edge) * (grain > 0.25 - 0.5 * edge).float()
    return torch.lerp(pale * (1 + 0.06 * grain)[:, None], paper, bare[:, None] * (0.4 + 0.6 * strength[:, None]))


def _flat(f, plain, scene, paper, strength, x, y, n) -> Tensor:  # noqa: ANN001, PLR0913
    level = f["light"].mean(1, keepdim=True)
    bands = 0.62 + 0.24 * ((level - 0.5) * 14).clamp(0, 1) + 0.2 * ((level - 0.95) * 14).clamp(0, 1)
    base = _kuwahara(f["albedo"], 5)
    base = torch.lerp(base, f["albedo"], f["lines"][:, None].clamp(0, 1))
    figure = (base.clamp(min=1e-4) ** 0.85 * bands).clamp(0, 1)
    ground = (_soft(scene, 9) * 6).round() / 6
    ground = torch.lerp(ground, paper * 0.9, 0.25)
    picture = torch.lerp(ground, figure, f["cover"][:, None])
    line = _edges(f, 5) * (strength > 0.35)
    return torch.lerp(picture, torch.full_like(picture, 0.08), 0.9 * line[:, None])


def _watercolour(f, plain, scene, paper, strength, x, y, n) -> Tensor:  # noqa: ANN001, PLR0913
    bleed = 0.03
    moved = _warp(plain, bleed * (n[16] - 0.5), bleed * (n[16].flip(1) - 0.5))
    wash = torch.lerp(_kuwahara(moved, 5), plain, (0.6 * f["lines"] * f["cover"]).clamp(0, 0.6)[:, None])
    pigment = (0.75 + 0.5 * n[8] + 0.22 * (n[32] - 0.5))[:, None]
    tinted = paper * (1 - (1 - wash) * pigment * 0.92)
    drying = (_soft(wash, 5) - wash).abs().sum(1, keepdim=True)
    tinted = tinted * (1 - 0.9 * drying.clamp(0, 0.4))
    ragged = 0.78 + 0.35 * (n[8] - 0.5) + 0.2 * (n[32] - 0.5)
    inside = torch.maximum(f["cover"] * 0.9, ((ragged - (x**2 + y**2).sqrt() * 0.8) * 7).clamp(0, 1))
    picture = torch.lerp(paper.expand_as(tinted), tinted, inside[:, None])
    line = torch.maximum(_edges(f, 3) * 0.5, f["lines"] * 0.7) * (0.4 + 0.6 * strength) * (0.4 + 0.9 * n[16])
    return picture * (1 - 0.75 * line[:, None].clamp(0, 1))
