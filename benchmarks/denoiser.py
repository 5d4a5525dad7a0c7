"""How good the bundled denoiser is on the held-out photo: `python -m benchmarks.denoiser`.

The astronaut photo (192×192 crop) after GrIDPure, 10 iterations at timestep 10: clean, and with ±8 levels of random
sign noise, over three seeds.
"""

from __future__ import annotations

import argparse

import torch
from antipure.cli.core_nodes import LoadImage
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.controls import apply_control
from antipure.methods.diffusion.checkpoints import load_denoiser
from antipure.methods.figures.text_table import text_table
from antipure.methods.metrics import image as metrics
from antipure.methods.purification.gridpure import gridpure
from antipure.nodes.convert import from_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--denoiser", help="another checkpoint (default: the bundled one)")
    parser.add_argument("--picture", default="astronaut.png")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    denoiser = load_denoiser(args.denoiser)
    clean, _ = from_image(LoadImage().load(args.picture)[0])
    parameters = sum(p.numel() for p in denoiser.unet.parameters())
    print(f"{parameters / 1e6:.2f} M parameters, tile {denoiser.tile}, {args.picture} {tuple(clean.shape[-2:])}\n")
    rows = []
    for name in ("clean", "random"):
        before, after, structure = [], [], []
        for seed in range(args.seeds):
            picture = clean if name == "clean" else apply_control("random", clean, AttackSettings(levels=8, seeds=seed))
            pure = gridpure(picture, denoiser, iterations=args.iterations, seed=seed)
            before.append(metrics.psnr(clean, picture))
            after.append(metrics.psnr(clean, pure))
            structure.append(metrics.ssim(clean, pure))
        b, a, s = (torch.cat(values).mean().item() for values in (before, after, structure))
        rows.append(("clean" if name == "clean" else "±8 levels, random sign", f"{b:.2f}", f"{a:.2f}", f"{s:.4f}"))
    print(text_table(("input", "PSNR before", "PSNR after", "SSIM after"), rows))


if __name__ == "__main__":
    main()
