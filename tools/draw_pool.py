"""Draw the portraits the demo latent model is trained on, once, to files that every sitting of a training reads.

    python -m tools.draw_pool --out folder/pool --count 1500
    python -m tools.draw_pool --portraits bundled/demo/portraits.png

Files of 48 portraits each (`pool-00000.safetensors`: `pictures` N×3×side×side and `labels` N×slots, both uint8), 12
heads in 4 styles over 4 backgrounds, written whole or not at all; the same command goes on where it was stopped, and a
greater --count adds to what is there. What a file holds follows from its number and --seed alone.
The second line draws the five portraits of a person never trained on that ship with the model.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from tools.latent_pool import HELD_OUT, KNOWN
from tools.portrait_paint import shaded
from tools.portrait_solids import distances
from tools.portrait_styles import STYLES, background, finish, value_noise
from tools.portraits import SIDE, SLOTS, SUPERSAMPLING, Draws, draw_portraits, occasion, person, uniforms

DEMO_PERSON, DEMO_STYLES = HELD_OUT + 11, (1, 2, 1, 2, 4)  # studio, oil, studio, oil, pastel
POSES, VARIANTS, AT_ONCE = 12, 4, 2  # heads a file, pictures of each, heads drawn together (what fits into a cache)


def numbered(first: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Identity and picture seeds of the heads first..: one in six of a known identity, the others of anybody."""
    at = torch.arange(first, first + count)
    who = torch.where(at % 6 == 0, (at // 6) % KNOWN, KNOWN + (at * 7_919 + seed) % (HELD_OUT - KNOWN))
    return who, at + seed


def painted_often(who: Tensor, shots: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Each head found and lit once and finished in VARIANTS other styles over backgrounds of their own.

    Pictures (N·VARIANTS)×3×side×side in 0..1 and their labels (N·VARIANTS)×slots: finding the head is what takes time.
    """
    shots = shots * 7_919 + who
    (p, labels), (q, more, d) = person(who), occasion(shots, None)
    axis = (torch.arange(side * SUPERSAMPLING) + 0.5) * 2 / (side * SUPERSAMPLING) - 1
    y, x = (v[None].expand(len(who), -1, -1) for v in torch.meshgrid(axis, axis, indexing="ij"))
    noise = value_noise(shots, side * SUPERSAMPLING, uniforms)
    layers = shaded(p, q, d, x, y, noise, distances)
    first = Draws(shots, 3).choice(torch.ones(len(STYLES) - 1))
    pictures, rows = [], []
    for variant in range(VARIANTS):
        d = Draws(shots, 4 + variant)
        style = (first + variant) % (len(STYLES) - 1)
        scene = background(d, x, y, noise)
        pictures.append(finish(style, layers, scene, d, x, y, noise, SUPERSAMPLING))
        told = labels | more | {"style": style + 1}
        rows.append(torch.stack([told[name] for name in SLOTS], 1))
    return torch.cat(pictures), torch.cat(rows)


@torch.no_grad()
def drawn(first: int, count: int, seed: int, side: int) -> dict[str, Tensor]:
    """Pictures uint8 and labels uint8 (column 0: the known identity's token, 0 for others)."""
    pictures, labels = [], []
    for start in range(first, first + count, AT_ONCE):
        who, shots = numbered(start, min(AT_ONCE, first + count - start), seed)
        found, rows = painted_often(who, shots, side)
        pictures.append((found * 255).round().byte())
        labels.append(torch.cat([torch.where(who < KNOWN, who + 1, 0).repeat(VARIANTS)[:, None], rows], 1).byte())
    return {"pictures": torch.cat(pictures), "labels": torch.cat(labels)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="folder of the pool")
    what.add_argument("--portraits", type=Path, help="PNG of five portraits side by side")
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.portraits:
        strip = draw_portraits([DEMO_PERSON] * 5, range(1, 6), style=DEMO_STYLES).pictures
        strip = (torch.cat(list(strip), -1) * 255).round().byte().permute(1, 2, 0)
        Image.fromarray(strip.numpy()).save(args.portraits)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    per_file = POSES * VARIANTS
    for number in range(-(-args.count // per_file)):
        path = args.out / f"pool-{number:05}.safetensors"
        if path.exists():
            continue
        save_file(drawn(number * POSES, POSES, args.seed, args.side), path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)
        print(f"{(number + 1) * per_file} portraits, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
