"""Draw the portraits the identity judge is trained and tested on, once, to files that a training reads.

    python -m tools.draw_judge_portraits --out folder/judge --persons 360
    python -m tools.draw_judge_portraits --out folder/judge --persons 60 --held-out

Files of six persons (`people-00000.safetensors`, held out: `held-00000.safetensors`): `pictures` N×3×side×side uint8,
`who` and `shot` N int64 (identity and picture seeds), and `empty` M×3×side×side uint8, backgrounds in a style with
nobody before them. Written whole or not at all; the same command goes on where it was stopped, a greater
--persons adds to what is there. What a file holds follows from its number alone.

For training a person sits HEADS times (pose, light, expression, framing), and each head is finished in VARIANTS styles
over backgrounds of their own. It is found at half the resolution the renderer uses, because finding is what takes
time; strokes and lines have their true size. The held-out pictures are the renderer's own (`portraits`), one head each.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import fields, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from tools.latent_pool import HELD_OUT
from tools.portrait_paint import Layers, shaded
from tools.portrait_solids import distances
from tools.portrait_styles import STYLES, background, finish, value_noise
from tools.portraits import SIDE, SUPERSAMPLING, Draws, draw_portraits, occasion, person, uniforms

PERSONS, HEADS, VARIANTS = 6, 3, 4  # persons a file, heads of each, styles of each head
HELD_OUT_SHOTS, JUDGED = 8, HELD_OUT + 5_000  # pictures of each held-out person; whose seeds start here
FIRST = 300_000  # seed of the first person to train on


def grid(count: int, side: int) -> tuple[Tensor, Tensor]:
    """x and y of pixels' middles in -1..1, count×side×side each."""
    axis = (torch.arange(side) + 0.5) * 2 / side - 1
    y, x = (v[None].expand(count, -1, -1) for v in torch.meshgrid(axis, axis, indexing="ij"))
    return x, y


def enlarged(layers: Layers, side: int) -> Layers:
    """The same figure at another resolution."""

    def sized(field: Tensor) -> Tensor:
        field = field[:, None] if field.dim() == 3 else field
        return F.interpolate(field, (side, side), mode="bilinear")

    made = {f.name: sized(getattr(layers, f.name)) for f in fields(layers)}
    return replace(layers, **{k: v if getattr(layers, k).dim() == 4 else v[:, 0] for k, v in made.items()})


def nobody(count: int, side: int) -> Layers:
    colour, field = torch.zeros(count, 3, side, side), torch.zeros(count, side, side)
    return Layers(colour, colour, colour, field, colour, field, field, field)


def sittings(who: Tensor, seeds: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Each head once found and VARIANTS times finished: pictures (VARIANTS·N)×3×side×side, empty ones N×3×side×side."""
    big = side * SUPERSAMPLING
    shots = seeds * 7_919 + who
    (p, _), (q, _, d) = person(who), occasion(shots, None)
    layers = enlarged(shaded(p, q, d, *grid(len(who), side), value_noise(shots, side, uniforms), distances), big)
    noise, (x, y) = value_noise(shots, big, uniforms), grid(len(who), big)
    first = Draws(shots, 3).choice(torch.ones(len(STYLES) - 1))
    made = []
    for variant in range(VARIANTS + 1):
        d = Draws(shots, 4 + variant)
        style = (first + variant) % (len(STYLES) - 1)
        figure = layers if variant < VARIANTS else nobody(len(who), big)
        made.append(finish(style, figure, background(d, x, y, noise), d, x, y, noise, SUPERSAMPLING))
    return torch.cat(made[:-1]), made[-1]


def to_bytes(pictures: Tensor) -> Tensor:
    return (pictures * 255).round().byte()


@torch.no_grad()
def training_file(number: int, side: int) -> dict[str, Tensor]:
    pictures, whose, shots, empty = [], [], [], []
    for i in range(PERSONS):
        for shot in range(HEADS):
            who = torch.tensor([FIRST + number * PERSONS + i])
            seed = torch.tensor([shot])
            found, without = sittings(who, seed, side)
            pictures.append(to_bytes(found))
            empty.append(to_bytes(without))
            whose.append(who.repeat(VARIANTS))
            shots.append(seed.repeat(VARIANTS))
    return {
        "pictures": torch.cat(pictures),
        "who": torch.cat(whose),
        "shot": torch.cat(shots),
        "empty": torch.cat(empty),
    }


def backgrounds(who: Tensor, seeds: Tensor, side: int) -> Tensor:
    """Pictures N×3×side×side with nobody in them."""
    big, shots = side * SUPERSAMPLING, seeds * 7_919 + who
    noise, (x, y) = value_noise(shots, big, uniforms), grid(len(who), big)
    d, style = Draws(shots, 4), Draws(shots, 3).choice(torch.ones(len(STYLES) - 1))
    return finish(style, nobody(len(who), big), background(d, x, y, noise), d, x, y, noise, SUPERSAMPLING)


@torch.no_grad()
def held_out_file(number: int, side: int) -> dict[str, Tensor]:
    who = (JUDGED + number * PERSONS + torch.arange(PERSONS)).repeat_interleave(HELD_OUT_SHOTS)
    shots = torch.arange(HELD_OUT_SHOTS).repeat(PERSONS)
    pictures = [draw_portraits(who[i : i + 1], shots[i : i + 1], side=side).pictures for i in range(len(who))]
    empty = [backgrounds(who[i : i + 1], shots[i : i + 1], side) for i in range(len(who))]
    return {"pictures": to_bytes(torch.cat(pictures)), "who": who, "shot": shots, "empty": to_bytes(torch.cat(empty))}


def read_people(folder: Path, held_out: bool = False) -> dict[str, Tensor]:
    """All that was drawn into a folder, one tensor per name. Ends with a sentence where there is nothing."""
    files = [load_file(path) for path in sorted(folder.glob("held-*" if held_out else "people-*"))]
    if not files:
        more = " --held-out" if held_out else ""
        raise SystemExit(f"Nobody in {folder}: run python -m tools.draw_judge_portraits --out {folder}{more}")
    return {name: torch.cat([f[name] for f in files]) for name in files[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the files")
    parser.add_argument("--persons", type=int, default=360)
    parser.add_argument("--held-out", action="store_true", help="the persons to test on")
    parser.add_argument("--side", type=int, default=SIDE)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    name, draw = ("held", held_out_file) if args.held_out else ("people", training_file)
    began = time.monotonic()
    for number in range(-(-args.persons // PERSONS)):
        path = args.out / f"{name}-{number:05}.safetensors"
        if path.exists():
            continue
        save_file(draw(number, args.side), path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)
        print(f"{(number + 1) * PERSONS} persons, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
