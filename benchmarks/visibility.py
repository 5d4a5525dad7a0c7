"""What a gentler `visibility` costs and buys: `python -m benchmarks.visibility`.

The default preset against what the table has it made against (`protection_run.target_of`), under every setting, on
pictures of the development half (`sets.json`). Looks: PSNR, CIEDE2000 (mean, 95th percentile), what is left after an
eye-like blur (luma, chroma), LPIPS where --lpips names torchvision's AlexNet. Kept: the latent shift as it is and at
half size, mean of the VAEs that are attacked, and the structural distortion behind the bundled purifier, all as a share
of what `full` has on the same picture. Protected pictures are kept under --work: look at them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from antipure.methods.antipure.objective import PRESETS
from antipure.methods.antipure.protect import protect
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.attacks.visibility import FULL, SETTINGS
from antipure.methods.metrics import image as metrics
from antipure.methods.metrics import visibility
from antipure.methods.metrics.latent import latent_shift
from antipure.methods.metrics.lpips import Lpips
from antipure.methods.purification.transforms import parse_transform
from torch import Tensor

from . import sets, strangers
from .protection_run import attacker, target_of
from .work import chosen, digest, kept, picture_digest, read, read_lpips

PICTURES = ("astronaut_face", "peaks", "flat_valley", "logo_chart")  # photographs and flat fills
LOOKS = ("PSNR", "ΔE₀₀", "ΔE₀₀ p95", "seen luma", "seen chroma", "LPIPS")
EFFECTS = ("latent", "latent, half size", "structure, purified")


def looks(clean: Tensor, picture: Tensor, lpips: Lpips | None) -> list[float]:
    mean, high = visibility.ciede2000(clean, picture)
    luma, chroma = visibility.seen_rms(clean, picture)
    distance = lpips(clean, picture) if lpips else torch.tensor(float("nan"))
    return [float(v) for v in (metrics.psnr(clean, picture), mean, high, luma, chroma, distance)]


@torch.no_grad()
def effects(clean: Tensor, picture: Tensor) -> list[float]:
    vaes = [vae for name, vae in strangers.load_vaes().items() if name in strangers.ATTACKED_VAES]
    half, purifier = parse_transform("shrink0.5"), attacker("gridpure10/2", 1000)
    found = []
    for view in (None, half):
        shifts = [float(latent_shift(clean, picture, vae, view=view, draws=1).value) for vae in vaes]
        found.append(sum(shifts) / len(shifts) if shifts else float("nan"))
    return [*found, float(metrics.structural_distortion(purifier(clean), purifier(picture)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    development = sets.names("development")
    parser.add_argument("--pictures", nargs="+", default=list(PICTURES), choices=development, metavar="NAME")
    parser.add_argument("--preset", default="robust", choices=PRESETS)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--levels", type=float, default=8)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--lpips", type=Path, help="torchvision's AlexNet file")
    parser.add_argument("--work", type=Path, default=Path("visibility"), help="folder for protected pictures")
    args = parser.parse_args()
    lpips = read_lpips(args.lpips) if args.lpips else None
    found: dict[str, list[list[float]]] = {}
    for name in args.pictures:
        clean, whole = sets.load()[name].read(), []
        for setting in SETTINGS:
            began = time.monotonic()
            settings = AttackSettings(args.levels, args.steps, seeds=args.seed, visibility=setting)
            key = digest(picture_digest(clean), chosen(PRESETS[args.preset]), args.preset, settings)

            def make(clean: Tensor = clean, settings: AttackSettings = settings) -> Tensor:
                return protect(clean, target_of(args.preset), PRESETS[args.preset], settings)

            picture = read(kept(args.work / f"{name}_{setting}-{key}.png", make))
            left = effects(clean, picture)
            whole = left if setting == FULL else whole
            row = looks(clean, picture, lpips) + [a / b for a, b in zip(left, whole, strict=True)]
            found.setdefault(setting, []).append(row)
            print(f"{name:16s} {setting:9s}", " ".join(f"{v:6.2f}" for v in row), f"{time.monotonic() - began:5.0f} s")
    print("\n| visibility |", " | ".join(LOOKS + EFFECTS), "|")
    print("|---|" + "--:|" * len(LOOKS + EFFECTS))
    for setting, rows in found.items():
        means = torch.tensor(rows).mean(0).tolist()
        texts = [f"{v:.2f}" for v in means[: len(LOOKS)]] + [f"{v:.0%}" for v in means[len(LOOKS) :]]
        print(f"| {setting} |", " | ".join(text.replace("nan%", "–").replace("nan", "–") for text in texts), "|")


if __name__ == "__main__":
    main()
