"""docs/gallery.jpg: four kinds of pictures, each before, after, after at the gentlest, the change ×8, both purified.

    python -m tools.draw_gallery --preset robust --steps 40

The pictures have 128×128 pixels and are drawn at twice their size. Presets are made against what ships with the pack:
the pair of denoisers, and the pack's own VAE encoder where the preset has a term for VAEs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from antipure.methods.antipure.objective import PRESETS
from antipure.methods.attacks.ensemble import Target, bundled_vae_targets, combine
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.attacks.visibility import FULL, SETTINGS
from antipure.methods.diffusion.checkpoints import BUNDLED_HELD_OUT, load_denoiser
from antipure.methods.figures.canvas import BACKGROUND, INK
from antipure.methods.figures.fonts import font_file
from antipure.methods.pictures import to_uint8
from antipure.methods.protections import NAMES, apply_protection
from antipure.methods.purification.gridpure import gridpure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
SIDE, ZOOM, EDGE, LINE = 128, 2, 12, 30
PICTURES = {
    "flat art": "benchmarks/pictures/drawn/flat_still_life.png",
    "line art": "benchmarks/pictures/drawn/line_ship.png",
    "painting": "benchmarks/pictures/drawn/painting_portrait.png",
    "photograph": "benchmarks/pictures/raccoon.png",
}
FONT = ImageFont.truetype(font_file(), 17)
COLUMNS = ("before", "after", "after, gentle", "the change ×8", "before, purified", "after, purified")
GENTLEST = tuple(SETTINGS)[-1]


def read(file: str) -> Tensor:
    """1×3×SIDE×SIDE in 0..1."""
    with Image.open(ROOT / file) as picture:
        array = np.asarray(picture.convert("RGB"))
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 255


def row(clean: Tensor, preset: str, levels: float, steps: int, iterations: int) -> Iterator[Tensor]:
    """The pictures of one row, in the order of `COLUMNS`."""
    denoiser, target = load_denoiser(None), target_of(preset)
    settings = AttackSettings(levels, steps)
    protected, gentle = (
        apply_protection(preset, clean, target, replace(settings, visibility=name)) for name in (FULL, GENTLEST)
    )
    yield from (clean, protected, gentle, (0.5 + 8 * (protected - clean)).clamp(0, 1))
    with denoiser.session():
        for version in (clean, protected):
            yield gridpure(version, denoiser, iterations=iterations)


def target_of(preset: str) -> Target:
    """The bundled pair; with the pack's own VAE encoder for presets that have a term for VAEs."""
    pair = combine(load_denoiser(None), load_denoiser(BUNDLED_HELD_OUT), "mean")
    return combine(pair, bundled_vae_targets(), "mean") if preset in PRESETS and PRESETS[preset].latent else pair


def sheet(rows: list[list[Tensor]], kinds: list[str]) -> Image.Image:
    """The pictures with the names of rows and columns."""
    cell = SIDE * ZOOM
    size = len(COLUMNS) * (cell + EDGE) + EDGE + LINE, len(rows) * (cell + EDGE) + EDGE + LINE
    picture = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for j, name in enumerate(COLUMNS):
        draw.text((LINE + EDGE + j * (cell + EDGE), 8), name, INK, FONT)
    for i, (cells, kind) in enumerate(zip(rows, kinds, strict=True)):
        top = LINE + EDGE + i * (cell + EDGE)
        label = Image.new("RGB", (cell, LINE), BACKGROUND)
        ImageDraw.Draw(label).text((0, 4), kind, INK, FONT)
        picture.paste(label.rotate(90, expand=True), (4, top))
        for j, one in enumerate(cells):
            shown = Image.fromarray(to_uint8(one)[0]).resize((cell, cell), Image.Resampling.LANCZOS)
            picture.paste(shown, (LINE + EDGE + j * (cell + EDGE), top))
    return picture


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=NAMES, default="robust")
    parser.add_argument("--levels", type=float, default=8)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--iterations", type=int, default=5, help="of GrIDPure")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "gallery.jpg")
    args = parser.parse_args(arguments)
    rows = []
    for file in PICTURES.values():
        rows.append(list(row(read(file), args.preset, args.levels, args.steps, args.iterations)))
        sheet(rows, list(PICTURES)[: len(rows)]).save(args.out, quality=88)


if __name__ == "__main__":
    main()
