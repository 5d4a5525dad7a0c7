"""Draws the artworks of the benchmarks' picture sets: `python -m tools.draw_artworks [NAME ...]`.

Flat illustrations, line art, paintings (brush strokes over a scene, and procedural portraits in oil), pixel-clean logos
with alpha, and two whole pictures. Everything comes from fixed seeds; nothing is copied, no network takes part. Crops
are drawn larger and cut, so that shapes run out of the frame as they do in pieces of bigger pictures.
`benchmarks/pictures/sets.json` says what each is for.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "pictures"
SCALE = 4  # supersampling
Point = tuple[float, float]
Colour = tuple[int, int, int]


class Canvas:
    """Shapes with smooth edges on w×h pixels. All coordinates are in pixels of the finished picture."""

    def __init__(self, w: int, h: int, colour: Colour):
        self.size = (w, h)
        self.big = Image.new("RGB", (w * SCALE, h * SCALE), colour)
        self.pen = ImageDraw.Draw(self.big)

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self.pen.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        self.pen.ellipse([(x - rx) * SCALE, (y - ry) * SCALE, (x + rx) * SCALE, (y + ry) * SCALE], fill=colour)

    def line(self, points: Sequence[Point], colour: Colour, width: float = 1.5) -> None:
        """A pen's line with round ends and joints."""
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        r = width * SCALE / 2
        self.pen.line(scaled, fill=colour, width=max(round(2 * r), 1), joint="curve")
        for x, y in (scaled[0], scaled[-1]):
            self.pen.ellipse([x - r, y - r, x + r, y + r], fill=colour)

    def finished(self) -> Image.Image:
        return self.big.resize(self.size, Image.Resampling.BOX)


def curve(points: Sequence[Point], parts: int = 14) -> list[Point]:
    """Catmull-Rom through the points."""
    p = [points[0], *points, points[-1]]
    found = []
    for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False):
        for i in range(parts):
            t = i / parts
            found.append(
                tuple(
                    0.5 * (2 * b[k] + (c[k] - a[k]) * t + (2 * a[k] - 5 * b[k] + 4 * c[k] - d[k]) * t**2
                           + (3 * b[k] - a[k] - 3 * c[k] + d[k]) * t**3)
                    for k in (0, 1)
                )
            )  # fmt: skip
    return [*found, points[-1]]


def ridge(rng: np.random.Generator, w: float, y: float, rough: float, bottom: float) -> list[Point]:
    """A hill's outline from side to side, closed at the bottom."""
    xs = np.linspace(-w * 0.05, w * 1.05, 9)
    return [*curve([(x, y + rng.normal() * rough) for x in xs]), (w * 1.05, bottom), (-w * 0.05, bottom)]


def tree(c: Canvas, x: float, y: float, size: float, leaves: Colour, trunk: Colour) -> None:
    c.polygon(
        [(x - size * 0.06, y), (x + size * 0.06, y), (x + size * 0.03, y - size), (x - size * 0.03, y - size)], trunk
    )
    for i in range(3):
        top, half = y - size * (0.45 + 0.3 * i), size * (0.36 - 0.08 * i)
        c.polygon([(x - half, top), (x + half, top), (x, top - size * 0.45)], tuple(v + 9 * i for v in leaves))


def house(c: Canvas, x: float, y: float, w: float, wall: Colour, roof: Colour) -> None:
    h = w * 0.7
    c.polygon([(x, y), (x + w, y), (x + w, y - h), (x, y - h)], wall)
    c.polygon(
        [(x - w * 0.1, y - h), (x + w * 1.1, y - h), (x + w * 0.78, y - h * 1.6), (x + w * 0.22, y - h * 1.6)], roof
    )
    for i in range(2):
        left = x + w * (0.14 + 0.42 * i)
        c.polygon(
            [
                (left, y - h * 0.35),
                (left + w * 0.26, y - h * 0.35),
                (left + w * 0.26, y - h * 0.8),
                (left, y - h * 0.8),
            ],
            (250, 222, 130),
        )
        c.line([(left + w * 0.13, y - h * 0.35), (left + w * 0.13, y - h * 0.8)], wall, w * 0.03)


def valley(w: int, h: int, seed: int, dusk: bool) -> Image.Image:
    """A flat illustration: sky, sun, hills, a lake, houses and firs."""
    rng = np.random.default_rng(seed)
    sky = (244, 178, 140) if dusk else (158, 208, 232)
    c = Canvas(w, h, sky)
    c.ellipse(w * 0.68, h * 0.3, h * 0.12, h * 0.12, (255, 236, 190) if dusk else (255, 246, 214))
    for _ in range(4):
        x, y = rng.uniform(0, w), rng.uniform(h * 0.05, h * 0.25)
        for k in range(3):
            c.ellipse(x + k * h * 0.05, y, h * 0.06, h * 0.022, tuple(min(v + 22, 255) for v in sky))
    near, far = ((92, 52, 92), (206, 128, 132)) if dusk else ((48, 112, 84), (130, 176, 178))
    for i in range(4):
        colour = tuple(round(f + (n - f) * i / 3) for n, f in zip(near, far, strict=True))
        c.polygon(ridge(rng, w, h * (0.42 + 0.11 * i), h * (0.06 - 0.01 * i), h), colour)
    c.polygon(
        curve([(w * 0.3, h * 0.86), (w * 0.5, h * 0.82), (w * 0.8, h * 0.84), (w * 1.05, h * 0.8)])
        + [(w * 1.05, h), (w * 0.4, h)],
        sky,
    )
    for x, size in ((0.22, 0.17), (0.42, 0.13)):
        house(c, w * x, h * 0.82, h * size, (238, 226, 204), (184, 74, 58))
    for _ in range(9):
        x = rng.uniform(0, w)
        tree(
            c,
            x,
            h * rng.uniform(0.84, 0.98),
            h * rng.uniform(0.12, 0.24),
            tuple(round(v * 0.62) for v in near),
            (82, 58, 48),
        )
    return c.finished()


def still_life(w: int, h: int) -> Image.Image:
    """A flat illustration: table, pot, fruit, a cup, a window."""
    c = Canvas(w, h, (236, 222, 196))
    c.polygon([(w * 0.06, 0), (w * 0.5, 0), (w * 0.5, h * 0.5), (w * 0.06, h * 0.5)], (128, 186, 206))
    c.ellipse(w * 0.2, h * 0.5, w * 0.2, h * 0.16, (96, 152, 112))
    c.polygon([(0, h * 0.5), (w, h * 0.5), (w, h * 0.64), (0, h * 0.64)], (236, 222, 196))
    for x in (0.06, 0.28, 0.5):
        c.line([(w * x, 0), (w * x, h * 0.5)], (250, 246, 236), w * 0.022)
    c.line([(w * 0.06, h * 0.5), (w * 0.5, h * 0.5)], (250, 246, 236), w * 0.03)
    c.polygon([(0, h * 0.64), (w, h * 0.6), (w, h), (0, h)], (158, 96, 66))
    c.polygon([(0, h * 0.64), (w, h * 0.6), (w, h * 0.63), (0, h * 0.67)], (190, 124, 86))
    for i in range(7):  # leaves
        a = math.radians(-160 + 23 * i)
        tip = (w * 0.66 + math.cos(a) * w * 0.24, h * 0.36 + math.sin(a) * h * 0.3)
        side = (math.sin(a) * w * 0.035, -math.cos(a) * w * 0.035)
        middle = ((w * 0.66 + tip[0]) / 2, (h * 0.36 + tip[1]) / 2)
        c.polygon(
            [
                (w * 0.66, h * 0.4),
                (middle[0] + side[0], middle[1] + side[1]),
                tip,
                (middle[0] - side[0], middle[1] - side[1]),
            ],
            ((62, 124, 88), (84, 152, 98))[i % 2],
        )
    c.polygon([(w * 0.56, h * 0.4), (w * 0.77, h * 0.4), (w * 0.73, h * 0.66), (w * 0.6, h * 0.66)], (206, 104, 72))
    c.polygon([(w * 0.69, h * 0.4), (w * 0.77, h * 0.4), (w * 0.73, h * 0.66), (w * 0.68, h * 0.66)], (172, 80, 58))
    for x, y, colour in ((0.32, 0.7, (226, 164, 52)), (0.42, 0.74, (198, 62, 56)), (0.24, 0.75, (132, 164, 68))):
        c.ellipse(w * x, h * (y + 0.06), w * 0.075, h * 0.02, (124, 72, 52))
        c.ellipse(w * x, h * y, w * 0.065, w * 0.065, colour)
        c.ellipse(w * (x - 0.02), h * (y - 0.025), w * 0.02, w * 0.016, tuple(min(v + 40, 255) for v in colour))
    return c.finished()


INK = (28, 26, 34)


def hatch(
    c: Canvas, rng: np.random.Generator, box: tuple[float, float, float, float], gap: float, slope: float
) -> None:
    """Slanted strokes of a pen over a box (left, top, right, bottom)."""
    left, top, right, bottom = box
    y = top
    while y < bottom:
        a, b = left + rng.normal(), right + rng.normal()
        c.line([(a, y), (b, y - (b - a) * slope)], INK, rng.uniform(0.6, 1.1))
        y += gap * rng.uniform(0.8, 1.2)


def ship(w: int, h: int) -> Image.Image:
    """Line art: a sailing ship, its rigging and the sea, pen on white paper."""
    rng = np.random.default_rng(7)
    c = Canvas(w, h, (255, 255, 255))
    hull = curve(
        [(w * 0.12, h * 0.62), (w * 0.2, h * 0.75), (w * 0.5, h * 0.79), (w * 0.8, h * 0.74), (w * 0.94, h * 0.56)]
    )
    c.line([(w * 0.12, h * 0.62), (w * 0.94, h * 0.56)], INK, 2.2)
    c.line(hull, INK, 2.6)
    hatch(c, rng, (w * 0.22, h * 0.7, w * 0.76, h * 0.77), 4.5, 0.04)
    for x, top in ((0.32, 0.14), (0.56, 0.06), (0.76, 0.18)):
        c.line([(w * x, h * 0.6), (w * x, h * top)], INK, 2.4)
        for k in range(2):
            y, half = top + 0.06 + 0.2 * k, 0.09 + 0.02 * k
            sail = curve([(w * (x - half), h * y), (w * (x + 0.02), h * (y + 0.02)), (w * (x + half), h * y)])
            foot = curve(
                [(w * (x + half), h * (y + 0.17)), (w * (x + 0.05), h * (y + 0.13)), (w * (x - half), h * (y + 0.17))]
            )
            c.polygon([*sail, *foot], (255, 255, 255))
            c.line([*sail, *foot, sail[0]], INK, 1.6)
            for s in np.linspace(-0.6, 0.2, 6):
                c.line([(w * (x + half * s), h * (y + 0.03)), (w * (x + half * s + 0.012), h * (y + 0.13))], INK, 0.8)
        c.line([(w * x, h * top), (w * 0.94, h * 0.56)], INK, 0.8)
        c.line([(w * x, h * top), (w * 0.12, h * 0.62)], INK, 0.8)
    for row in range(7):
        y = h * (0.78 + 0.032 * row)
        c.line(curve([(x, y + rng.normal() * 3) for x in np.arange(-10, w + 10, 16)]), INK, 1.2)
    return c.finished()


def street(w: int, h: int) -> Image.Image:
    """Line art with flat colour under it: a street of houses, the whole picture."""
    rng = np.random.default_rng(21)
    c = Canvas(w, h, (244, 240, 226))
    c.polygon([(0, 0), (w, 0), (w, h * 0.5), (0, h * 0.5)], (190, 218, 226))
    c.ellipse(w * 0.8, h * 0.14, h * 0.07, h * 0.07, (250, 232, 170))
    walls = ((222, 150, 112), (236, 208, 150), (160, 182, 160), (206, 120, 116), (180, 186, 206), (232, 190, 168))
    x, i = -w * 0.03, 0
    while x < w:
        wide, high = w * rng.uniform(0.15, 0.21), h * rng.uniform(0.36, 0.55)
        top, base, colour = h * 0.8 - high, h * 0.8, walls[i % len(walls)]
        outline = [
            (x, base),
            (x, top),
            (x + wide / 2, top - h * rng.uniform(0.06, 0.12)),
            (x + wide, top),
            (x + wide, base),
        ]
        c.polygon(outline, colour)
        c.polygon(outline[1:4], (116, 74, 70) if i % 2 else (92, 96, 116))
        c.line([*outline, outline[0]], INK, 2.6)
        c.line([outline[1], outline[3]], INK, 2)
        hatch(c, rng, (x + wide * 0.84, top + 8, x + wide - 3, base - 6), 7, 0.5)
        rows = max(int(high / (h * 0.13)), 2)
        for r in range(rows):
            for k in range(3):
                left, up = x + wide * (0.1 + 0.26 * k), top + high * (0.08 + 0.88 * r / rows)
                pane = [
                    (left, up),
                    (left + wide * 0.16, up),
                    (left + wide * 0.16, up + h * 0.065),
                    (left, up + h * 0.065),
                ]
                if r == rows - 1 and k == 1:
                    pane = [(px, base if py > up else up) for px, py in pane]
                c.polygon(
                    pane,
                    (70, 62, 66)
                    if r == rows - 1 and k == 1
                    else ((252, 240, 196), (126, 158, 178))[int(rng.integers(2))],
                )
                c.line([*pane, pane[0]], INK, 1.5)
                c.line(
                    [((pane[0][0] + pane[1][0]) / 2, pane[0][1]), ((pane[0][0] + pane[1][0]) / 2, pane[2][1])], INK, 1
                )
        x, i = x + wide, i + 1
    c.polygon([(0, h * 0.8), (w, h * 0.8), (w, h), (0, h)], (186, 176, 170))
    c.line([(0, h * 0.8), (w, h * 0.8)], INK, 3)
    for row in range(6):  # cobbles
        y = h * (0.825 + 0.032 * row)
        for k in range(int(w / 26)):
            cx = k * 26 + 13 * (row % 2) + rng.normal()
            c.line(curve([(cx, y), (cx + 8, y - 4), (cx + 17, y)]), INK, 1)
    for at in (0.18, 0.62):  # lanterns
        c.line([(w * at, h * 0.86), (w * at, h * 0.58)], INK, 5)
        c.ellipse(w * at, h * 0.57, h * 0.02, h * 0.026, (255, 226, 130))
    return c.finished()


def brushed(scene: Image.Image, seed: int, sizes: Sequence[float] = (22, 11, 5)) -> Image.Image:
    """The scene in brush strokes, large ones first: along its edges, each of a few bristles; canvas shows through."""
    rng = np.random.default_rng(seed)
    w, h = scene.size
    grey = np.asarray(scene.convert("L").filter(ImageFilter.GaussianBlur(4)), np.float64)
    gy, gx = np.gradient(grey)
    target = np.asarray(scene.filter(ImageFilter.GaussianBlur(1)), np.float64)
    painted = Image.new("RGB", (2 * w, 2 * h), (196, 170, 134))
    pen = ImageDraw.Draw(painted)
    for size in sizes:
        for _ in range(int(2.6 * w * h / size**2)):
            x, y = rng.integers(w), rng.integers(h)
            steep = math.hypot(gx[y, x], gy[y, x])
            if size < sizes[0] and steep < 0.6 and rng.random() < 0.72:
                continue  # fine strokes where there is something to tell
            angle = math.atan2(gx[y, x], -gy[y, x]) if steep > 0.4 else 0.25 * math.sin(x / 31) + rng.normal() * 0.35
            colour = target[y, x] + rng.normal() * 9 + rng.normal(size=3) * 5
            length = size * rng.uniform(1.0, 2.2)
            along, across = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))
            for k in range(5):
                off, shade = (k - 2) * size / 5, colour + rng.normal() * 7
                ends = [
                    (
                        2 * (x + s * length / 2 * along[0] + off * across[0]),
                        2 * (y + s * length / 2 * along[1] + off * across[1]),
                    )
                    for s in (-1 + rng.normal() * 0.12, 1 + rng.normal() * 0.12)
                ]
                pen.line(ends, fill=tuple(int(v) for v in shade.clip(0, 255)), width=max(round(2 * size / 4.2), 1))
    found = np.asarray(painted.resize((w, h), Image.Resampling.BOX), np.float64)
    yy, xx = np.mgrid[:h, :w]
    weave = np.sin(xx * 2.1) * np.sin(yy * 1.9) * 2 + rng.normal(size=(h, w)) * 1.6
    return Image.fromarray((found + weave[..., None]).clip(0, 255).round().astype(np.uint8))


def portrait(identity: int, style: int, side: int) -> Image.Image:
    """A procedural portrait (`tools.portraits`) in a style of its SLOTS."""
    from tools.portraits import draw_portraits

    picture = draw_portraits([identity], [identity], style=[style], side=side).pictures[0]
    return Image.fromarray((picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def logo(ring: bool) -> Image.Image:
    """A mark of whole pixels, 128×128 with alpha: three inks, hard edges, nothing behind it."""
    y, x = np.mgrid[:128, :128]
    picture = np.zeros((128, 128, 4), np.uint8)

    def ink(where: np.ndarray, colour: Colour) -> None:
        picture[where] = (*colour, 255)

    if ring:
        r = np.hypot(x - 63.5, y - 63.5)
        ink((r < 58) & (r > 44), (24, 72, 140))
        ink((np.abs(x - 63.5) + np.abs(y - 63.5) < 40), (24, 72, 140))
        ink((np.abs(x - 63.5) < 6) & (r < 34), (255, 255, 255))
        ink((np.abs(y - 63.5) < 6) & (r < 34), (255, 255, 255))
        ink((r < 13), (236, 120, 32))
    else:
        for i in range(3):
            ink(
                (x > 14 + 34 * i) & (x < 38 + 34 * i) & (y > 74 - 26 * i) & (y < 108),
                ((196, 40, 60), (34, 34, 40), (34, 34, 40))[i],
            )
        ink((np.abs(y - (56 - 0.62 * (x - 14))) < 5) & (x > 14) & (x < 90), (196, 40, 60))
        ink((x > 78) & (x < 106) & (y > 4) & (y < x - 78 + 8), (196, 40, 60))
        ink((y > 112) & (y < 120) & (x > 14) & (x < 107), (34, 34, 40))
    return Image.fromarray(picture)


def cut(picture: Image.Image, x: int, y: int) -> Image.Image:
    return picture.crop((x, y, x + 128, y + 128))


ARTWORKS: dict[str, Callable[[], Image.Image]] = {
    "flat_valley": lambda: cut(valley(256, 192, 3, dusk=False), 28, 62),
    "flat_still_life": lambda: cut(still_life(200, 200), 62, 44),
    "line_ship": lambda: cut(ship(256, 256), 104, 84),
    "line_portrait": lambda: cut(portrait(508, 3, 176), 26, 20),
    "painting_lake": lambda: cut(brushed(valley(300, 230, 11, dusk=True), 5, (16, 8, 4)), 60, 80),
    "painting_portrait": lambda: cut(portrait(503, 2, 176), 24, 22),
    "logo_ring": lambda: logo(ring=True),
    "logo_chart": lambda: logo(ring=False),
    "whole_painting": lambda: brushed(valley(640, 512, 29, dusk=False), 6, (26, 13, 6)),
    "whole_street": lambda: street(576, 768),
}


def main() -> None:
    for name in sys.argv[1:] or ARTWORKS:
        # Strokes all over hardly compress: the large painting is a JPEG, as most uploads are.
        ending, settings = ("jpg", {"quality": 93, "subsampling": 0}) if name == "whole_painting" else ("png", {})
        folder, file = ("whole", name.removeprefix("whole_")) if name.startswith("whole") else ("drawn", name)
        path = FOLDER / folder / f"{file}.{ending}"
        ARTWORKS[name]().save(path, optimize=True, **settings)
        print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
