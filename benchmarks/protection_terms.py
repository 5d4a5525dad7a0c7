"""Where a protection's strength comes from: `python -m benchmarks.protection_terms`.

The terms of the loss one by one after one purifier, and structural distortion over GrIDPure iterations, on the
development half, since settings are chosen by them. Pictures are not kept: a run is some ten minutes.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from statistics import fmean

import torch
from antipure.methods.antipure.objective import PRESETS, Objective
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.figures.text_table import text_table
from antipure.methods.metrics.image import detail_ratio, psnr, structural_distortion
from antipure.methods.pictures import center_crop
from antipure.methods.protections import apply_protection
from antipure.methods.purification.purifiers import parse_purifier

from . import sets
from .work import load_denoisers, machine

OFF = Objective(ddpm=0, pfg=0, etg=0)
TERMS = {
    "L_ddpm": replace(OFF, ddpm=1),
    "PFG": replace(OFF, pfg=0.5),
    "ETG": replace(OFF, etg=0.5),
    "PFG + ETG": replace(OFF, pfg=0.5, etg=0.5),
    "paper: L_ddpm + PFG + ETG": PRESETS["paper"],
    "unrolled": PRESETS["unrolled"],
    "unrolled, less grey": replace(PRESETS["unrolled"], luminance=PRESETS["strong"].luminance),
    "unrolled, timesteps and sizes": replace(PRESETS["strong"], luminance=1),
    "strong": PRESETS["strong"],
}
PURIFIER = "gridpure"
SEED = 1000


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", nargs="+", default=list(sets.names("development")))
    parser.add_argument("--terms", nargs="+", default=list(TERMS), choices=TERMS, metavar="NAME")
    parser.add_argument("--size", type=int, default=96, help="side of the middle that is taken of each")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--levels", type=float, default=8.0)
    parser.add_argument("--iterations", nargs="+", type=int, default=[1, 2, 5, 10, 20, 30, 40])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    denoiser = load_denoisers()["bundled"]
    purifier = parse_purifier(f"{PURIFIER}{max(args.iterations)}", {"bundled": denoiser}, SEED)
    settings = AttackSettings(levels=args.levels, steps=args.steps, seeds=0)
    known = sets.load()
    lines: dict[str, list[list[float]]] = {term: [] for term in args.terms}
    for name in args.pictures:
        clean = center_crop(known[name].read(), args.size)
        reference = purifier.after_iterations(clean, args.iterations)
        for term in args.terms:
            picture = apply_protection(TERMS[term], clean, denoiser, settings)
            after = purifier.after_iterations(picture, args.iterations)
            lines[term].append(
                [
                    min(float(psnr(clean, picture)), 99.0),
                    float(detail_ratio(reference[args.iterations[-1]], after[args.iterations[-1]])),
                    *(1000 * float(structural_distortion(reference[i], after[i])) for i in args.iterations),
                ]
            )
        print(f"{name} done", flush=True)
    head = ["loss", "PSNR", f"detail ratio after {args.iterations[-1]}", *(f"after {i}" for i in args.iterations)]
    rows = [[term, *(f"{fmean(v):.2f}" for v in zip(*found, strict=True))] for term, found in lines.items()]
    print(f"\n{machine()}. {len(args.pictures)} pictures, {args.size}×{args.size}, {args.steps} steps, one seed.\n")
    print("Structural distortion × 1000 after that many GrIDPure iterations:\n\n" + text_table(head, rows))


if __name__ == "__main__":
    main()
