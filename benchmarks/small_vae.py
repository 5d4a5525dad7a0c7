"""What the bundled VAE encoder is worth beside real ones: latent shift over random signs, on the development half.

    python -m benchmarks.small_vae --pictures astronaut_face peaks painting_lake airplane

The latent term alone is maximised over the bundled encoder, over the VAE of SD 1.5 alone, and over all four of
`strangers.ATTACKED_VAES`; each result is measured on those four at full, three quarters and half size, mean and worst.
The bundled encoder was trained with none of them: for it all four are strangers.
"""

from __future__ import annotations

import argparse

import torch
from antipure.methods.antipure.objective import Objective
from antipure.methods.antipure.protect import protect
from antipure.methods.attacks.ensemble import VaeTargets, bundled_vae_targets
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.controls import apply_control
from antipure.methods.metrics.image import psnr
from antipure.methods.metrics.latent import latent_shift
from antipure.methods.purification.transforms import parse_transform
from torch import Tensor

from benchmarks import sets, strangers

LATENT = Objective(ddpm=0, pfg=0, etg=0, latent=1, first_step=0.375)
VIEWS = {"full": None, "3/4": "shrink0.75", "half": "shrink0.5"}


def shifts(clean: Tensor, picture: Tensor, vaes: list) -> Tensor:
    """Latent shift by view and VAE: len(VIEWS)×len(vaes)."""
    views = [None if view is None else parse_transform(view) for view in VIEWS.values()]
    found = [[latent_shift(clean, picture, vae, view=view, draws=1).value for vae in vaes] for view in views]
    return torch.tensor(found)


def measure(clean: Tensor, targets: dict[str, VaeTargets], vaes: list, settings: AttackSettings) -> dict[str, Tensor]:
    """By target: PSNR, then mean and worst of the shifts over those of random signs, view by view."""
    base = shifts(clean, apply_control("random", clean, settings), vaes)
    rows = {}
    for name, target in targets.items():
        moved = protect(clean, target, LATENT, settings)
        over = shifts(clean, moved, vaes) / base
        rows[name] = torch.cat([psnr(clean, moved).float(), torch.stack([over.mean(1), over.amin(1)], 1).flatten()])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    development = sets.names("development")
    parser.add_argument("--pictures", nargs="+", default=list(development), choices=development, metavar="NAME")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--levels", type=float, default=8)
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    loaded = strangers.load_vaes()
    if any(name not in loaded for name in strangers.ATTACKED_VAES):
        raise SystemExit(strangers.missing())
    vaes = [loaded[name] for name in strangers.ATTACKED_VAES]
    targets = {"bundled": bundled_vae_targets(), "sd15": VaeTargets((loaded["sd15"],)), "four": VaeTargets(tuple(vaes))}
    found: dict[str, list[Tensor]] = {}
    for name in args.pictures:
        settings = AttackSettings(args.levels, args.steps, seeds=args.seed)
        for target, row in measure(sets.load()[name].read(), targets, vaes, settings).items():
            found.setdefault(target, []).append(row)
            print(f"{name:15s} {target:8s}", " ".join(f"{value:5.2f}" for value in row.tolist()), flush=True)
    print("\n| target | PSNR |", " | ".join(f"{view}: mean | worst" for view in VIEWS), "|")
    print("|---|" + "--:|" * (1 + 2 * len(VIEWS)))
    for target, rows in found.items():
        print(f"| {target} |", " | ".join(f"{value:.2f}" for value in torch.stack(rows).mean(0).tolist()), "|")


if __name__ == "__main__":
    main()
