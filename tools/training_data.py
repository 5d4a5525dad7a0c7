"""Training pictures of the bundled denoiser: public sample photos and procedural textures.

The photos are the ones that scikit-image and scikit-learn carry inside their wheels, so nothing is downloaded.
The astronaut photo is held out: it is the picture everything in this repository is measured on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

# name -> sampling weight. Colour photographs of the world weigh most; microscopy, sky and flat textures
# keep the network honest about what is not a photograph of a person.
SKIMAGE_PHOTOS = {
    "chelsea.png": 4.0,
    "coffee.png": 4.0,
    "motorcycle_left.png": 3.0,
    "motorcycle_right.png": 3.0,
    "rocket.jpg": 2.0,
    "hubble_deep_field.jpg": 1.0,
    "ihc.png": 1.0,
    "retina.jpg": 0.7,
    "color.png": 0.3,
    "camera.png": 2.0,
    "brick.png": 0.7,
    "grass.png": 0.7,
    "gravel.png": 0.7,
    "coins.png": 0.7,
    "cell.png": 0.3,
    "moon.png": 0.5,
    "page.png": 0.3,
    "text.png": 0.2,
}
SKLEARN_PHOTOS = {"china.jpg": 3.0, "flower.jpg": 3.0}
SCALES = (1.0, 0.75, 0.55, 0.4)
PROCEDURAL_SHARE = 0.3


def load_photos() -> list[tuple[float, np.ndarray]]:
    """Every training photo at every scale: pairs of (weight, uint8 H×W×3)."""
    import skimage
    import sklearn

    skimage_folder = Path(skimage.__file__).parent / "data"
    sklearn_folder = Path(sklearn.__file__).parent / "datasets" / "images"
    out = []
    for folder, names in ((skimage_folder, SKIMAGE_PHOTOS), (sklearn_folder, SKLEARN_PHOTOS)):
        for name, weight in names.items():
            picture = Image.open(folder / name).convert("RGB")
            for scale in SCALES:
                size = (round(picture.width * scale), round(picture.height * scale))
                if min(size) < 72:
                    continue
                resized = picture if scale == 1.0 else picture.resize(size, Image.Resampling.LANCZOS)
                out.append((weight, np.asarray(resized)))
    return out


def _coloured_noise(rng: np.random.Generator, size: int, slope: float) -> np.ndarray:
    """Noise with amplitude spectrum f^-slope, size×size×3, zero mean, unit deviation."""
    fy = np.fft.fftfreq(size)[:, None]
    fx = np.fft.rfftfreq(size)[None, :]
    amplitude = 1 / np.maximum(np.hypot(fy, fx), 1 / size) ** slope
    grey = rng.normal(size=(size, size, 1))
    noise = 0.8 * grey + 0.3 * rng.normal(size=(size, size, 3))
    noise = np.fft.irfft2(np.fft.rfft2(noise, axes=(0, 1)) * amplitude[..., None], s=(size, size), axes=(0, 1))
    noise -= noise.mean()
    return noise / (noise.std() + 1e-8)


def dead_leaves(rng: np.random.Generator, palette: np.ndarray, size: int = 320) -> np.ndarray:
    """Dead-leaves picture (occluding shapes with power-law radii) with shading, texture and thin strokes.

    palette: N×3 uint8 colours to draw from. Returns uint8 size×size×3, rendered at twice the size and reduced.
    """
    big = 2 * size
    canvas = np.zeros((big, big, 3), np.float32)
    canvas[:] = palette[rng.integers(len(palette))]
    textures = [_coloured_noise(rng, big, slope).astype(np.float32) for slope in (0.4, 1.0, 1.6)]
    for _ in range(900):
        radius = min(6 / rng.random() ** 0.6, big / 3)
        cy, cx = rng.random(2) * big
        y0, y1 = int(max(cy - radius, 0)), int(min(cy + radius + 1, big))
        x0, x1 = int(max(cx - radius, 0)), int(min(cx + radius + 1, big))
        if y1 <= y0 or x1 <= x0:
            continue
        dy, dx = np.mgrid[y0:y1, x0:x1].astype(np.float32)
        dy, dx = (dy - cy) / radius, (dx - cx) / radius
        angle, squash, power = rng.random() * np.pi, rng.uniform(1, 3), rng.choice([1.0, 2.0, 2.0, 6.0])
        u = dx * np.cos(angle) + dy * np.sin(angle)
        v = (dy * np.cos(angle) - dx * np.sin(angle)) * squash
        inside = np.abs(u) ** power + np.abs(v) ** power < 1
        colour = palette[rng.integers(len(palette))].astype(np.float32)
        shade = rng.normal(0, 25) * u + rng.normal(0, 25) * v
        leaf = colour + shade[..., None]
        kind = rng.random()
        if kind < 0.5:
            texture = textures[rng.integers(3)][y0:y1, x0:x1]
            leaf = leaf + texture * rng.uniform(1, 18)
        elif kind < 0.6:
            stripes = np.sin(u * radius * rng.uniform(0.1, 1.2))
            leaf = leaf + stripes[..., None] * rng.uniform(5, 40)
        canvas[y0:y1, x0:x1][inside] = leaf[inside]
    picture = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    if rng.random() < 0.6:  # bundles of thin curved strokes: hair, grass, threads
        draw = ImageDraw.Draw(picture)
        for _ in range(rng.integers(2, 7)):
            start, end = rng.random(2) * big, rng.random(2) * big
            bend = rng.normal(0, big / 5, 2)
            colour = palette[rng.integers(len(palette))].astype(int)
            for _ in range(rng.integers(30, 120)):
                jitter = rng.normal(0, big / 25, (2, 2))
                t = np.linspace(0, 1, 12)[:, None]
                points = (start + jitter[0]) * (1 - t) + (end + jitter[1]) * t + 4 * t * (1 - t) * bend
                tone = tuple(int(c) for c in np.clip(colour + rng.normal(0, 22), 0, 255))
                draw.line([tuple(p) for p in points], fill=tone, width=int(rng.integers(1, 5)))
    return np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS))


class TileSampler:
    """Random augmented tiles: N×3×tile×tile float32 in [-1, 1]. Deterministic for a seed."""

    def __init__(self, seed: int, tile: int = 64, procedural: int = 48):
        self.rng = np.random.default_rng(seed)
        self.tile = tile
        photos = load_photos()
        palette = np.concatenate([p.reshape(-1, 3)[:: max(1, p.size // 6000)] for _, p in photos])
        leaves = [dead_leaves(self.rng, palette) for _ in range(procedural)]
        self.pictures = [p for _, p in photos] + leaves
        weights = np.array([w for w, _ in photos], np.float64)
        weights *= (1 - PROCEDURAL_SHARE) / weights.sum()
        self.weights = np.concatenate([weights, np.full(procedural, PROCEDURAL_SHARE / procedural)])

    def _tile(self) -> np.ndarray:
        rng, size = self.rng, self.tile
        picture = self.pictures[rng.choice(len(self.pictures), p=self.weights)]
        y = rng.integers(picture.shape[0] - size + 1)
        x = rng.integers(picture.shape[1] - size + 1)
        tile = picture[y : y + size, x : x + size].astype(np.float32) / 127.5 - 1
        if rng.random() < 0.5:
            tile = tile[:, ::-1]
        if rng.random() < 0.5:
            tile = tile[::-1]
        if rng.random() < 0.5:
            tile = tile.transpose(1, 0, 2)
        if rng.random() < 0.3:
            tile = tile[..., rng.permutation(3)]
        if rng.random() < 0.4:  # exposure, white balance and saturation
            grey = tile.mean(-1, keepdims=True)
            tile = grey + (tile - grey) * rng.uniform(0.3, 1.4)
            tile = tile * rng.uniform(0.6, 1.15) + rng.normal(0, 0.12) + rng.normal(0, 0.05, 3).astype(np.float32)
        return np.clip(tile, -1, 1)

    def batch(self, count: int) -> np.ndarray:
        return np.ascontiguousarray(np.stack([self._tile() for _ in range(count)]).transpose(0, 3, 1, 2))
