"""Surfaces of the procedural portraits: what is painted on a head, and how it is lit (see `portraits`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tools.portrait_solids import FAR, STEPS, head_frame

Fields = dict[str, Tensor]


@dataclass
class Layers:
    """A figure before its style: fields N×H×W, colours N×3×H×W, normals towards the viewer's axes."""

    albedo: Tensor
    light: Tensor
    gloss: Tensor
    cover: Tensor
    normal: Tensor
    depth: Tensor
    lines: Tensor  # features that an ink pen would draw, 0..1
    material: Tensor


def step(value: Tensor, width: Tensor | float) -> Tensor:
    """1 where value is positive, over a ramp of the given width."""
    return (0.5 + value / width).clamp(0, 1)


def mix(base: Tensor, other: Tensor, share: Tensor) -> Tensor:
    return base + (other - base) * share[:, None]


def shaded(p: Fields, q: Fields, d: Any, x: Tensor, y: Tensor, noise: dict[int, Tensor], distances: Any) -> Layers:
    """Trace and paint. x, y: canvas coordinates in -1..1."""
    x, y = (x - q["x"]) * q["zoom"], (y - q["y"]) * q["zoom"]
    pixel = 2 * q["zoom"] / x.shape[-1]
    z, closest = torch.full_like(x, FAR), torch.full_like(x, 9.0)
    for _ in range(STEPS):
        nearest = torch.stack(distances(p, q, x, y, z)).amin(0)
        closest = torch.minimum(closest, nearest)
        z = (z - 0.85 * nearest.clamp(max=0.6)).clamp(min=-FAR)
    skin, hair, hat, cloth = distances(p, q, x, y, z)
    cover = step(0.3 * pixel - closest, pixel) * (z > -FAR + 0.01)
    eps = 0.012
    corners = ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1))
    normal = torch.zeros(len(x), 3, *x.shape[1:], device=x.device)
    for corner in corners:
        near = torch.stack(distances(p, q, x + eps * corner[0], y + eps * corner[1], z + eps * corner[2])).amin(0)
        normal = normal + near[:, None] * torch.tensor(corner, device=x.device).view(1, 3, 1, 1)
    normal = torch.nn.functional.normalize(normal, dim=1)
    others = torch.stack([skin, hair, hat, cloth])
    closeness = torch.softmax(-others / pixel * 2.5, 0)

    u, v, w = head_frame(q, x, y, z)
    v = v / p["long"]
    base, lines, shine = _skin(p, q, d, u, v, w, pixel, noise)
    strands = _strands(p, u, v, w, noise)
    hair_rgb = p["hair"] * (1 + 0.3 * strands)[:, None]
    cloth_rgb = _cloth(p, q, d, x, y, z, noise)
    hat_rgb = p["hat rgb"] * (1 - 0.45 * step(0.07 - (v + 0.5 + 0.1 * w).abs(), pixel) * (p["hat"] == 2))[:, None]
    albedo = sum(rgb * part[:, None] for rgb, part in zip((base, hair_rgb, hat_rgb, cloth_rgb), closeness, strict=True))

    light, gloss = _light(p, q, x, y, z, normal, distances, closeness, shine, strands, p["hair"])
    material = (others.argmin(0) + 1) * (cover > 0.5)
    lines = lines * closeness[0]
    return Layers(albedo.clamp(0, 1), light, gloss, cover, normal, z, lines * cover, material.float())


def _light(p, q, x, y, z, normal, distances, closeness, shine, strands, hair):  # noqa: ANN001, ANN202, PLR0913
    """Key light with soft shadows, fill from the sky, light from behind, sheen. Light N×3×H×W, gloss N×3×H×W."""
    key = q["light"].expand_as(normal)
    shadow = torch.ones_like(x)
    for reach in (0.1, 0.22, 0.45, 0.8):
        at = [c + reach * key[:, i] + 0.04 * normal[:, i] for i, c in enumerate((x, y, z))]
        free = torch.stack(distances(p, q, *at)).amin(0)
        shadow = torch.minimum(shadow, (0.25 + 3.2 * free / reach).clamp(0, 1))
    open_ = torch.ones_like(x)
    for reach, weight in ((0.1, 0.5), (0.3, 0.55)):
        at = [c + reach * normal[:, i] for i, c in enumerate((x, y, z))]
        free = torch.stack(distances(p, q, *at)).amin(0)
        open_ = open_ - weight * (1 - free / reach).clamp(0, 1)
    open_ = open_.clamp(0.25, 1)
    facing = (normal * key).sum(1)
    direct = ((facing + 0.22) / 1.22).clamp(min=0) * shadow
    sky = (0.62 - 0.38 * normal[:, 1]) * open_
    red = torch.tensor([1.0, 0.55, 0.45], device=x.device).view(1, 3, 1, 1)
    bleed = (torch.exp(-(((facing - 0.02) / 0.25) ** 2)) * 0.16 * closeness[0])[:, None] * red
    light = direct[:, None] * q["key rgb"] * 1.02 + sky[:, None] * q["fill rgb"] * 1.25 + bleed
    rim = (1 - normal[:, 2].clamp(min=0)) ** 3 * q["rim"] * open_
    half = torch.nn.functional.normalize(key + torch.tensor([0.0, 0, 1], device=x.device).view(1, 3, 1, 1), dim=1)
    bright = (normal * half).sum(1).clamp(min=0)
    on_skin = closeness[0] * shadow * (0.14 * bright**18 + 0.8 * shine)
    on_hair = closeness[1] * (0.3 + 0.7 * shadow) * bright**9 * (0.35 + 0.5 * strands)
    gloss = (on_skin + 0.8 * rim)[:, None] * q["key rgb"] + on_hair[:, None] * (0.25 + 0.75 * hair)
    return light, gloss


def _strands(p: Fields, u: Tensor, v: Tensor, w: Tensor, noise: dict[int, Tensor]) -> Tensor:
    """Strands of hair, -1..1: meridians from the crown, waves, curls."""
    angle = torch.atan2(u - 0.4 * p["part"] * (p["cut"] == 2), v.clamp(max=0.2) * 0 + w + 1.1)
    sweep = angle * 3 + 0.5 * torch.sin(3 * v + 4 * p["part"]) + 0.35 * p["wave"] * torch.sin(8 * v)
    lines = torch.sin(31 * sweep) * 0.5 + torch.sin(67 * sweep + 2 * v) * 0.3 + torch.sin(13 * sweep + 1.7 * v) * 0.5
    curls = torch.sin(24 * u + 5 * torch.sin(9 * v)) * torch.sin(22 * v + 4 * torch.sin(10 * u))
    return (torch.where(p["cut"] == 5, curls, lines) * 0.75 + 0.6 * (noise[32] - 0.5)).clamp(-1, 1)


def _cloth(p, q, d, x, y, z, noise) -> Tensor:  # noqa: ANN001
    """Clothes: 0 round neck, 1 high collar, 2 shirt with lapels, 3 pattern."""
    u, v, _ = head_frame(q, x, y, z, 0.35)
    rgb = p["cloth rgb"] * q["shade"][:, None]
    kind = p["collar"]
    angle = d(0, 3.14)
    weave = torch.sin((u * angle.cos() + v * angle.sin()) * d(16, 34))
    rgb = rgb * (1 - 0.35 * ((weave > 0) & (kind == 3)).float())[:, None]
    vee = u.abs() * 1.35 - (v - 0.98)
    inner = step(-vee + 0.42, 0.03) * (kind == 2)
    white = torch.tensor([0.9, 0.88, 0.84], device=x.device).view(1, 3, 1, 1)
    rgb = mix(rgb, white, inner)
    seam = step(0.018 - (vee - 0.42).abs(), 0.02) * (kind == 2)
    folds = 1 + 0.22 * (noise[8] - 0.5) + 0.1 * (noise[32] - 0.5)
    return (rgb * (folds * (1 - 0.5 * seam))[:, None]).clamp(0, 1)


def _skin(p, q, d, u, v, w, pixel, noise):  # noqa: ANN001, ANN202, PLR0913, PLR0915
    """Skin with eyes, brows, lips, lines of age, glasses. Gives colour, ink lines and wet highlights."""
    skin, front = p["skin"], (w > 0.15).float()
    soft, age = p["soft"], p["age"].clamp(0, 1.1)
    rgb = skin * (1 + 0.09 * (noise[16] - 0.5) + 0.05 * (noise[64] - 0.5))[:, None]
    deep = skin * torch.tensor([0.72, 0.5, 0.47], device=u.device).view(1, 3, 1, 1)
    pink = skin * torch.tensor([1.04, 0.66, 0.62], device=u.device).view(1, 3, 1, 1)
    lines, shine = torch.zeros_like(u), torch.zeros_like(u)
    flush = torch.exp(-(((u.abs() - 0.38) / 0.18) ** 2) - ((v - 0.28) / 0.16) ** 2) * 0.55
    flush = flush + 0.4 * torch.exp(-((u / 0.13) ** 2) - ((v - p["nose long"]) / 0.12) ** 2)
    rgb = mix(rgb, pink, (flush * front * d(0.3, 1.1)).clamp(0, 1))
    spots = (noise[64] > 0.68).float() * torch.exp(-((u / 0.42) ** 2) - ((v - 0.22) / 0.17) ** 2)
    rgb = mix(rgb, deep, 0.55 * spots * p["freckles"] * front)
    stubble = (
        step(v - 0.5 + 2.0 * (u.abs() - 0.3).clamp(min=0) ** 1.5, 0.2) * (p["beard"] >= 1) * front * step(0.98 - v, 0.1)
    )
    rgb = mix(rgb, p["hair"] * 0.7 + 0.15 * skin, stubble * (0.28 + 0.25 * noise[64]))
    short = step(-0.42 - v + 0.55 * (0.25 - w).clamp(min=0), 0.15) * (p["cut"] == 0) * step(0.45 - w, 0.3)
    rgb = mix(rgb, p["hair"] * 0.6 + 0.3 * skin, 0.3 * short)

    # Eyes: an almond between two lids; iris, pupil, glint; lashes and the fold above.
    for eye in (-1, 1):
        a = (eye * u - p["eye gap"]) / p["eye wide"]
        t = v - 0.012 + p["eye slant"] * 0.13 * a
        arch = (1 - a * a).clamp(min=0)
        upper = -p["eye open"] * q["lids"] * (1 - 0.22 * age) * arch**0.75
        lower = 0.048 * arch * (1 - 0.35 * q["smile"].clamp(min=0))
        inside = torch.minimum(t - upper, lower - t)
        white = step(inside, pixel) * (a.abs() < 1) * front
        shade_ = (1 - 0.42 * step(0.03 - (t - upper), 0.06))[:, None]
        rgb = mix(rgb, torch.tensor([0.93, 0.91, 0.89], device=u.device).view(1, 3, 1, 1) * shade_, white)
        ix, iy = u - eye * p["eye gap"] - q["look x"], v - q["look y"] + 0.006
        ring = (ix * ix + iy * iy + 1e-9).sqrt()
        iris = step(0.072 - ring, pixel) * white
        rgb = mix(rgb, p["iris"] * (0.45 + 8.0 * ring.clamp(max=0.08)).clamp(max=1)[:, None] * shade_, iris)
        rgb = mix(rgb, p["iris"] * 0.25, step(0.014 - (ring - 0.07).abs(), pixel) * white)
        rgb = mix(rgb, torch.full_like(skin, 0.03), step(0.034 - ring, pixel) * white)
        lx = 0.028 * torch.sign(q["light"][:, 0])
        glint = step(0.02 - ((ix - lx) ** 2 + (iy + 0.028) ** 2 + 1e-9).sqrt(), pixel) * white
        rgb, shine = mix(rgb, torch.ones_like(skin), glint), shine + glint
        lash = step(0.013 + 0.012 * soft - (t - upper + 0.006).abs(), pixel) * (a.abs() < 1.08) * front
        rgb = mix(rgb, skin * 0.12, lash * (0.55 + 0.4 * soft))
        under = step(0.008 - (t - lower).abs(), pixel) * (a.abs() < 1) * front
        rgb = mix(rgb, deep * 0.8, 0.6 * under)
        fold = step(0.009 - (t - upper * 1.25 + 0.03).abs(), 1.5 * pixel) * (a.abs() < 1) * front
        rgb = mix(rgb, deep * 0.75, 0.6 * fold)
        lid = step(upper - t, 0.02) * step(t - upper + 0.09, 0.05) * (a.abs() < 1.05) * front
        rgb = mix(rgb, p["rouge rgb"] * 0.6 + 0.2 * skin, 0.35 * lid * (p["rouge"] > 0.5))
        bag = step(0.012 - (t - lower - 0.055 - 0.02 * age).abs(), 0.03) * arch * front
        rgb = mix(rgb, deep, 0.75 * bag * age)
        crow = torch.sin(a * 3 + t * 80) * torch.exp(-(((a - 1.35) / 0.22) ** 2) - (t / 0.07) ** 2) * front
        rgb = mix(rgb, deep, (0.8 * crow * age).clamp(0, 1))
        b = (eye * u - p["eye gap"] - 0.01) / (p["eye wide"] * 1.28)
        drop = q["brows"] + q["frown"] * 0.07 * (b < 0) * b.abs()
        high = v + p["brow high"] + drop - 0.06 * p["brow arch"] * b * b + p["brow tilt"] * 0.08 * b - q["frown"] * 0.03
        taper = p["brow thick"] * (1 - 0.55 * step(b, 1.4)) * (1 + 0.35 * (noise[64] - 0.5))
        brow = step(taper - high.abs(), 2 * pixel) * step(1 - b.abs(), 0.15) * front
        rgb = mix(rgb, p["hair"] * 0.62, brow * 0.88)
        lines = (
            lines
            + 0.9 * lash
            + 0.8 * brow
            + 0.5 * fold
            + iris * step(ring - 0.05, 0.02)
            + step(0.036 - ring, pixel) * white
        )

    tip = p["nose long"]
    hole = (((u.abs() - 0.052) / 0.03) ** 2 + ((v - tip - 0.062) / 0.018) ** 2).sqrt()
    nostril = step(1 - hole, 0.9) * front
    rgb = mix(rgb, deep * 0.5, 0.6 * nostril)
    crease = (u.abs() - 0.15 - 0.42 * (v - tip)).abs()
    fold = step(0.012 - crease, 0.025) * step(v - tip + 0.03, 0.06) * step(tip + 0.24 - v, 0.12) * front
    rgb = mix(rgb, deep, (fold * (0.75 * age + 0.3 * q["smile"].clamp(min=0) + 0.02)).clamp(0, 1))
    wrinkle = torch.sin((v + 0.42 + 0.05 * torch.sin(6 * u)) * 62) * torch.exp(
        -((u / 0.36) ** 2) - ((v + 0.42) / 0.11) ** 2
    )
    rgb = mix(rgb, deep, (0.6 * wrinkle * (age + 1.2 * q["brows"].clamp(min=0) * 5) * 0.8 * front).clamp(0, 1))
    scowl = step(0.008 - (u.abs() - 0.05).abs(), 0.02) * torch.exp(-(((v + 0.16) / 0.08) ** 2)) * front
    rgb = mix(rgb, deep, (scowl * (0.5 * age + 1.6 * q["frown"])).clamp(0, 1))

    # Mouth: two lips around a line that the expression bends; teeth or darkness where it opens.
    half, thick = p["mouth wide"] * (1 + 0.16 * q["smile"]) * (1 - 0.25 * (q["gape"] > 0.5)), p["lips"]
    m = (u / half).clamp(-1.3, 1.3)
    arch = (1 - m * m).clamp(min=0)
    middle = v - p["mouth y"] + q["smile"] * 1.05 * (u * u - 0.4 * half * half)
    gap = 0.1 * q["gape"] * arch
    top = -thick * 0.95 * arch**0.7 * (1 - 0.3 * torch.exp(-((u / 0.035) ** 2)))
    bottom = gap + thick * 1.25 * arch**0.8
    lips = step(torch.minimum(middle - top, bottom - middle), 2 * pixel) * (m.abs() < 1) * front
    natural = skin * torch.tensor([0.83, 0.52, 0.52], device=u.device).view(1, 3, 1, 1)
    red = mix(natural, p["rouge rgb"], p["rouge"])
    rgb = mix(rgb, red * (1 - 0.22 * (middle < 0.5 * gap).float())[:, None], lips * 0.9)
    hollow = step(torch.minimum(middle, gap - middle), pixel) * (q["gape"] > 0.1) * (m.abs() < 0.95) * front
    tooth = (middle < gap * 0.6) & (q["gape"] < 0.6)
    inner = torch.where(tooth[:, None], torch.tensor([0.92, 0.9, 0.86], device=u.device).view(1, 3, 1, 1), deep * 0.3)
    rgb = mix(rgb, inner, hollow)
    parting = step(0.009 - middle.abs(), 1.5 * pixel) * (m.abs() < 1.04) * front
    rgb = mix(rgb, deep * 0.3, 0.75 * parting)
    shine = shine + 0.25 * torch.exp(-((u / 0.07) ** 2) - ((middle - gap - 0.6 * thick) / 0.014) ** 2) * front * (
        0.4 + p["rouge"]
    )
    lines = lines + 0.9 * parting + 0.45 * nostril + 0.35 * fold * (0.3 + age)

    # Glasses and earrings.
    rims = torch.full_like(u, 9.0)
    gx, gy = u.abs() - p["eye gap"] - 0.01, v - 0.02
    wx, wy = gx.abs() - p["frame wide"] + p["frame round"], gy.abs() - p["frame tall"] + p["frame round"]
    lens = (
        (wx.clamp(min=0) ** 2 + wy.clamp(min=0) ** 2 + 1e-9).sqrt()
        + torch.maximum(wx, wy).clamp(max=0)
        - p["frame round"]
    )
    rims = torch.minimum(rims, lens.abs() - 0.017)
    bridge = torch.maximum((v + 0.02 - 0.9 * u * u).abs() - 0.016, u.abs() - 0.1)
    stem = torch.maximum((v + 0.05).abs() - 0.02, p["eye gap"] + p["frame wide"] - u.abs())
    frame = step(-torch.minimum(torch.minimum(rims, bridge), stem), 1.5 * pixel) * p["glasses"] * (w > -0.1)
    glass = step(-lens, 2 * pixel) * p["glasses"] * front
    streak = step(0.03 - (gx + 0.8 * gy - 0.03).abs(), 0.05)
    rgb = mix(rgb, torch.ones_like(skin), glass * (0.06 + 0.16 * streak))
    rgb = mix(rgb, p["frame rgb"], frame)
    ring = step(0.04 - ((v - 0.3) ** 2 + (w + 0.04) ** 2 + 1e-9).sqrt(), pixel) * (u.abs() > 0.55) * p["earring"]
    rgb = mix(rgb, torch.tensor([0.95, 0.8, 0.35], device=u.device).view(1, 3, 1, 1), ring)
    return rgb.clamp(0, 1), (lines + frame).clamp(0, 1), shine.clamp(0, 1)
