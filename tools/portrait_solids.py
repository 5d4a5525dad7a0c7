"""Solids of the procedural portraits: signed distances of a head, its hair, hat and clothes (see `portraits`)."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS, FAR = 24, 2.2


def ellipsoid(x: Tensor, y: Tensor, z: Tensor, a: Tensor | float, b: Tensor | float, c: Tensor | float) -> Tensor:
    """Signed distance to an ellipsoid around the origin, to first order (I. Quilez, "ellipsoid - SDF")."""
    u, v, w = x / a, y / b, z / c
    near = (u * u + v * v + w * w + 1e-8).sqrt()
    slope = ((u / a) ** 2 + (v / b) ** 2 + (w / c) ** 2 + 1e-8).sqrt()
    return near * (near - 1) / slope


def blend(a: Tensor, b: Tensor, k: float) -> Tensor:
    """Union with a fillet of width k."""
    h = (k - (a - b).abs()).clamp(min=0) / k
    return torch.minimum(a, b) - h * h * (k / 4)


def carve(a: Tensor, b: Tensor, k: float) -> Tensor:
    """What of a lies outside b, with a soft edge."""
    return -blend(-a, b, k)


def capsule(
    x: Tensor, y: Tensor, z: Tensor, y0: Tensor | float, z0: Tensor | float, y1: Tensor | float, z1: Tensor | float
) -> Tensor:
    """Distance to a segment of the plane x = 0."""
    dy, dz = y1 - y0, z1 - z0
    t = (((y - y0) * dy + (z - z0) * dz) / (dy * dy + dz * dz)).clamp(0, 1)
    return (x * x + (y - y0 - t * dy) ** 2 + (z - z0 - t * dz) ** 2 + 1e-9).sqrt()


def head_frame(
    q: dict[str, Tensor], x: Tensor, y: Tensor, z: Tensor, share: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Viewer's coordinates to those of the head (share 1) or of a body that follows it in part."""
    cy, sy = (share * q["yaw"]).cos(), (share * q["yaw"]).sin()
    cp, sp = (share * q["pitch"]).cos(), (share * q["pitch"]).sin()
    cr, sr = (share * q["roll"]).cos(), (share * q["roll"]).sin()
    x, y = cr * x + sr * y, cr * y - sr * x
    y, z = cp * y + sp * z, cp * z - sp * y
    return cy * x - sy * z, y, cy * z + sy * x


def face_distance(p: dict[str, Tensor], q: dict[str, Tensor], x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """The bare head without its neck."""
    ax, wide, y = x.abs(), p["wide"], y / p["long"]
    d = ellipsoid(x, y + 0.36, z + 0.14, 0.71 * wide, 0.72, 0.82)
    d = blend(d, ellipsoid(x, y - 0.2, z - 0.06, 0.6 * p["jaw"], 0.73, 0.63), 0.3)
    d = blend(d, ellipsoid(x, y - 0.76 - p["chin"], z - 0.44, p["chin size"] * 1.15, p["chin size"], 0.18), 0.2)
    d = blend(d, ellipsoid(ax - 0.36, y - 0.2, z - 0.4 - p["cheek"], 0.2, 0.2, 0.17), 0.2)
    d = blend(d, ellipsoid(ax - 0.2, y + 0.2, z - 0.58 - p["brow ridge"], 0.24, 0.07, 0.12), 0.14)
    d = carve(d, ellipsoid(ax - p["eye gap"], y - 0.01, z - 0.85, 0.18, 0.11, 0.16), 0.12)
    d = blend(d, ellipsoid(ax - p["eye gap"], y, z - 0.5, 0.16, 0.13, 0.16), 0.04)
    tip, out = p["nose long"], p["nose out"]
    nose = capsule(x, y, z, -0.12, 0.63, tip - 0.05, 0.83 + out) - p["bridge"]
    nose = blend(nose, ellipsoid(x, y - tip, z - 0.84 - out, p["nose tip"], p["nose tip"] * 0.85, p["nose tip"]), 0.08)
    nose = blend(nose, ellipsoid(ax - p["nose wide"], y - tip - 0.03, z - 0.73 - 0.5 * out, 0.065, 0.055, 0.08), 0.05)
    d = blend(d, nose, 0.12)
    my, lips = p["mouth y"], p["lips"]
    d = blend(d, ellipsoid(x, y - my, z - 0.58, 0.27, 0.16, 0.12), 0.12)
    line = my - q["smile"] * 1.1 * x * x
    d = blend(d, ellipsoid(x, y - line + lips * 0.55, z - 0.66, p["mouth wide"], lips * 0.9, 0.07), 0.05)
    d = blend(
        d, ellipsoid(x, y - line - lips * 0.65 - 0.06 * q["gape"], z - 0.645, p["mouth wide"] * 0.85, lips, 0.07), 0.05
    )
    ear = ellipsoid(ax - 0.71 * wide, y - 0.06, z + 0.06, 0.07, p["ear"], 0.11)
    return blend(d, ear, 0.05)


def hair_distance(p: dict[str, Tensor], face: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Hair and beard. Cuts: 0 bald, 1 cropped, 2 parted, 3 bob, 4 long, 5 curly, 6 bun."""
    cut, wide, volume = p["cut"], p["wide"], p["volume"]
    far = torch.full_like(x, 9.0)
    curly, falls = cut == 5, (cut == 3) | (cut == 4)
    thick = torch.where(cut == 1, 0.03 + 0.03 * volume, torch.where(curly, 0.14 + 0.2 * volume, 0.07 + 0.1 * volume))
    ripple = (
        0.022
        * (torch.sin(13 * x) * torch.sin(12 * y + 2 * x) + torch.sin(11 * z + 9 * y))
        * torch.where(curly, 1.6, 0.25)
    )
    cap = ellipsoid(x, y + 0.37, z + 0.17, 0.71 * wide + thick, 0.72 + thick, 0.82 + thick) + ripple
    drop = torch.where(cut == 3, 0.55 + 0.3 * volume, p["length"])
    sway = 0.07 * p["wave"] * torch.sin(7 * y + 3 * x)
    fall = ellipsoid(x + sway, y - drop * 0.5 + 0.35, z + 0.3, 0.74 * wide + 1.3 * thick, drop * 0.5 + 0.62, 0.52)
    cap = torch.where(falls, blend(cap, fall, 0.2), cap)
    bun = ellipsoid(x, y + 1.17, z + 0.42, 0.3 + 0.08 * volume, 0.27, 0.3)
    cap = torch.where(cut == 6, blend(cap, bun, 0.06), cap)
    line = (
        p["hairline"]
        + torch.where(falls | (cut == 2), p["fringe"], 0 * volume)
        + 0.16 * p["age"] * -(p["soft"] < 0.5).float()
    )
    shift = torch.where((cut == 2) | falls, p["part"], 0 * volume)
    tall = 0.45 - line + 0.5 * (x - shift) * shift
    open_x = torch.where(falls, 0.5 + 0.05 * volume, 0.6)
    opening = ((((x - 0.4 * shift) / (open_x * wide)) ** 2 + ((y - 0.45) / tall) ** 2 + 1e-6).sqrt() - 1) * 0.45
    behind = torch.where(falls, 0.18, 0.3 - 0.25 * (y > 0.1))
    hair = carve(cap, torch.maximum(opening, behind - z), 0.05)
    nape = torch.where(falls, far, y - 0.42 + 0.3 * (z + 0.2) + 0.0 * x)  # short hair ends at the neck
    sides = torch.where(falls, far, y - 0.25 + 0.6 * (z - 0.25).clamp(min=0))
    short = -blend(-torch.maximum(hair, torch.where(z > -0.2, sides, nape)), far, 0.01)
    hair = torch.where(cut == 0, far, torch.where(falls, hair, short))
    ax = x.abs()
    edge = 0.47 - 2.2 * (ax - 0.28).clamp(min=1e-4) ** 1.5
    lips = 0.09 * (1 - ((x / 0.23) ** 2 + ((y - p["mouth y"] - 0.01) / 0.085) ** 2 + 1e-6).sqrt())
    full = torch.maximum(torch.maximum(face - 0.035, (edge - y) * 0.7), torch.maximum(lips, 0.05 - z))
    goatee = torch.maximum(ellipsoid(x, y - 0.86, z - 0.36, 0.26, 0.2 + 0.25 * volume, 0.22), lips)
    full = blend(full, goatee, 0.08)
    arc = y - p["mouth y"] + 0.105 - 0.9 * x * x
    lip = torch.maximum(face - 0.04, torch.maximum(arc.abs() - 0.045, ax - 0.22))
    whiskers = torch.where(
        p["beard"] == 3,
        torch.minimum(full, torch.maximum(lip, 0.3 - z)),
        torch.where(p["beard"] == 2, torch.maximum(lip, 0.3 - z), far),
    )
    return torch.minimum(hair, whiskers)


def hat_distance(p: dict[str, Tensor], x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Hats: 1 beret, 2 cap."""
    beret = ellipsoid(x - 0.12, y + 0.84 - 0.25 * x + 0.12 * z, z + 0.1, 0.98, 0.3, 0.95)
    cap = torch.maximum(ellipsoid(x, y + 0.42, z + 0.15, 0.9 * p["wide"], 0.86, 0.99), y + 0.42 + 0.1 * z)
    return torch.where(p["hat"] == 1, beret, torch.where(p["hat"] == 2, cap, torch.full_like(x, 9.0)))


def distances(
    p: dict[str, Tensor], q: dict[str, Tensor], x: Tensor, y: Tensor, z: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Skin, hair, hat, clothes at a point in the viewer's coordinates."""
    hx, hy, hz = head_frame(q, x, y, z)
    face = face_distance(p, q, hx, hy, hz)
    hair = hair_distance(p, face, hx, hy, hz)
    hat = hat_distance(p, hx, hy, hz)
    bx, by, bz = head_frame(q, x, y, z, 0.35)
    thin = 0.06 * p["soft"]
    neck = capsule(bx, by, bz, 0.45, -0.12, 1.6, -0.3) - (0.34 - thin)
    skin = blend(face, neck, 0.1)
    shoulders = ellipsoid(bx, by - 1.66, bz + 0.3, 1.32 - 2.5 * thin, 0.52, 0.5)
    shoulders = blend(shoulders, ellipsoid(bx, by - 1.95, bz + 0.15, 0.85, 0.85, 0.58), 0.25)
    collar = torch.maximum(capsule(bx, by, bz, 0.9, -0.18, 1.6, -0.3) - (0.41 - thin), 0.98 - by - 0.12 * bz)
    clothes = torch.where(p["collar"] == 1, blend(shoulders, collar, 0.12), shoulders)
    return skin, hair, hat, clothes
