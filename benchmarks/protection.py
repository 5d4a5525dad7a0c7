"""Every protection against every purifier, with the controls: `python -m benchmarks.protection`.

Held-out pictures × seeds × budgets; a seed is that of the protection, and (plus 1000) of the purifiers' noise. All
presets, and the published baselines that run on a pixel denoiser, made against the bundled denoiser; as controls
random signs, a uniform shift, blocks, and each protection's own spectrum-matched noise. Purifiers are named as in
`methods/purification/purifiers.py`; the denoiser `held_out` took no part in any protection. Figures are those of
`methods/metrics/image.py` on 8-bit pictures: what the purifier makes of the protected picture against what it makes
of the clean one, with the same noise.

Parts: `table`; `curve`, distortion over GrIDPure iterations; `ablation`, the terms of the loss. Finished stages are
kept under --work, named by their settings; an interrupted run goes on, and --finished tabulates what is there without
computing anything. After a change of the algorithms give another folder.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import torch
from antipure.methods.antipure.objective import PRESETS, Objective
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.controls import CONTROLS, spectrum_matched
from antipure.methods.diffusion.pixel import PixelDenoiser
from antipure.methods.errors import AntiPureError
from antipure.methods.metrics import image as metrics
from antipure.methods.metrics.encoders import file_encoder
from antipure.methods.metrics.lpips import AlexNet, Lpips
from antipure.methods.protections import apply_protection
from antipure.methods.purification.purifiers import parse_purifier
from torch import Tensor

from ..methods.pictures import center_crop
from .protection_report import ablation_table, curve_table, report
from .work import HELD_OUT as PICTURE_NAMES
from .work import PICTURES, digest, kept, load_denoisers, machine, picture_digest, read

PURIFIERS = (
    "gridpure10",
    "held_out:gridpure10@15",
    "diffpure30",
    "jpeg75",
    "jpeg75+resize0.5",
    "jpeg75+resize0.5+gridpure10",
    "blur1",
    "median3",
    "noise8",
)
# Mist's other modes and PhotoGuard need a VAE, Mist's textural mode too: not on a pixel denoiser.
ON_PIXELS = ("advdm", "anti_dreambooth_fsmg", "anti_dreambooth_aspl", "simac")
MATCHED = ", spectrum-matched"
WITH_CONTROL = (*PRESETS, "advdm", "simac", "smooth")  # Anti-DreamBooth's two are AdvDM's loss again
# Controls that need another arm's picture come last: with several processes it is there by then.
ARMS = (*CONTROLS, *PRESETS, *ON_PIXELS, *(arm + MATCHED for arm in WITH_CONTROL))
OFF = Objective(ddpm=0, pfg=0, etg=0)
ABLATION = {
    "L_ddpm": replace(OFF, ddpm=1),
    "PFG": replace(OFF, pfg=0.5),
    "ETG": replace(OFF, etg=0.5),
    "PFG + ETG": replace(OFF, pfg=0.5, etg=0.5),
    "paper": PRESETS["paper"],
    "unrolled": PRESETS["unrolled"],
    "unrolled, less grey": replace(PRESETS["unrolled"], luminance=PRESETS["strong"].luminance),
    "unrolled, timesteps and sizes": replace(PRESETS["strong"], luminance=1),
    "strong": PRESETS["strong"],
}
CURVE = (1, 2, 5, 10, 20, 30, 40)
CURVE_ARMS = ("random", "paper", "paper" + MATCHED, "unrolled", "strong", "strong" + MATCHED)


@dataclass(frozen=True)
class Run:
    """The settings that stages depend on."""

    work: Path
    size: int
    steps: int
    precision: str
    purifiers: tuple[str, ...]
    finished: bool

    @property
    def denoisers(self) -> dict[str, PixelDenoiser]:
        return load_denoisers(self.precision)

    def clean(self, name: str) -> Tensor:
        """The middle of a picture, 1×3×size×size in 0..1."""
        return center_crop(read(PICTURES / f"{name}.png"), self.size)

    def picture(self, kind: str, name: str, key: str, make) -> Tensor:
        return read(kept(self.work / kind / f"{name}-{key}.png", make))

    def figures(self, kind: str, name: str, key: str, make) -> dict | None:
        """Kept figures, or new ones; None where nothing is kept and nothing is to be computed."""
        path = self.work / kind / f"{name}-{key}.json"
        if self.finished and not path.is_file():
            return None
        return json.loads(kept(path, make).read_text(encoding="utf-8"))

    def protected(self, name: str, arm: str, objective: Objective | None, levels: float, seed: int) -> Tensor:
        clean, denoiser = self.clean(name), self.denoisers["bundled"]

        def make() -> Tensor:
            if arm.endswith(MATCHED):
                preset = arm.removesuffix(MATCHED)
                made = self.protected(name, preset, PRESETS.get(preset), levels, seed)
                return spectrum_matched(clean, made, levels=levels, seed=seed)
            return apply_protection(
                objective or arm, clean, denoiser, AttackSettings(levels=levels, steps=self.steps, seeds=seed)
            )

        key = digest(picture_digest(clean), arm, objective, levels, seed, self.steps, self.precision)
        return self.picture("protected", f"{name}-{arm.replace(' ', '_')}-l{levels:g}-s{seed}", key, make)

    def purified(self, picture: Tensor, text: str, seed: int) -> Tensor:
        purifier = parse_purifier(text, self.denoisers, seed + 1000)
        if purifier.is_transform:
            return purifier(picture)
        key = digest(picture_digest(picture), text, seed, self.precision)
        return self.picture("purified", text.replace(":", "_"), key, lambda: purifier(picture))

    def measure(self, name: str, arm: str, objective: Objective | None, levels: float, seed: int, texts) -> dict | None:
        """All figures of one protection of one picture."""
        clean = self.clean(name)

        def make() -> dict:
            began = time.time()
            picture = self.protected(name, arm, objective, levels, seed)
            made = time.time() - began
            after = {}
            for text in texts:
                reference, pure = self.purified(clean, text, seed), self.purified(picture, text, seed)
                after[text] = {
                    "distortion": float(metrics.structural_distortion(reference, pure)),
                    "detail": float(metrics.detail_ratio(reference, pure)),
                    "psnr": min(float(metrics.psnr(clean, pure)), 99.0),
                }
            return {
                "psnr": min(float(metrics.psnr(clean, picture)), 99.0),
                "ssim": float(metrics.ssim(clean, picture)),
                "levels": float(metrics.linf_levels(clean, picture)),
                "seconds": made,
                "after": after,
            }

        key = digest(picture_digest(clean), arm, objective, levels, seed, self.steps, self.precision, tuple(texts))
        return self.figures("figures", f"{name}-{arm.replace(' ', '_')}-l{levels:g}-s{seed}", key, make)

    def iterated(self, picture: Tensor, seed: int) -> dict[int, Tensor]:
        purifier = parse_purifier(f"gridpure{CURVE[-1]}", self.denoisers, seed + 1000)
        return purifier.after_iterations(picture, CURVE)

    def curve(self, name: str, arm: str, levels: float, seed: int) -> dict | None:
        """Distortion after 1..40 GrIDPure iterations, from one run of each picture."""
        clean = self.clean(name)

        def make() -> dict:
            references = clean_curve(self, name, seed)
            steps = self.iterated(self.protected(name, arm, PRESETS.get(arm), levels, seed), seed)
            return {str(i): float(metrics.structural_distortion(references[i], steps[i])) for i in CURVE}

        key = digest(picture_digest(clean), arm, PRESETS.get(arm), levels, seed, self.steps, self.precision)
        return self.figures("curve", f"{name}-{arm.replace(' ', '_')}-l{levels:g}-s{seed}", key, make)


@lru_cache(maxsize=1)
def clean_curve(run: Run, name: str, seed: int) -> dict[int, Tensor]:
    """The clean picture's iterations serve all its protections, which follow one another."""
    return run.iterated(run.clean(name), seed)


def work(task: tuple) -> tuple[tuple, dict | None]:
    """One task of the pool: (run, threads, part, picture, arm, levels, seed)."""
    run, threads, part, name, arm, levels, seed = task
    torch.set_num_threads(threads)
    if part == "curve":
        found = run.curve(name, arm, levels, seed)
    elif part == "ablation":
        found = run.measure(name, arm, ABLATION[arm], levels, seed, run.purifiers[:1])
    else:
        found = run.measure(name, arm, PRESETS.get(arm), levels, seed, run.purifiers)
    return (part, name, arm, levels, seed), found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", nargs="+", default=list(PICTURE_NAMES), help="names in benchmarks/pictures")
    parser.add_argument("--size", type=int, default=96, help="side of the middle that is taken of each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--levels", nargs="+", type=float, default=[8.0, 16.0, 4.0])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, metavar="NAME")
    parser.add_argument("--purifiers", nargs="+", default=list(PURIFIERS))
    parser.add_argument("--steps", type=int, default=40, help="PGD steps of every protection")
    parser.add_argument("--parts", nargs="+", default=["table", "curve", "ablation"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--work", type=Path, default=Path("protection-work"), help="folder for finished stages")
    parser.add_argument("--finished", action="store_true", help="tabulate what is finished, compute nothing")
    parser.add_argument("--lpips", type=Path, help="torchvision's AlexNet file, for a column LPIPS")
    parser.add_argument("--markdown", type=Path, help="write the tables there, too")
    return parser.parse_args()


def tasks(args: argparse.Namespace, run: Run) -> list[tuple]:
    """The first budget with all seeds, then curve and ablation, then the other budgets seed by seed."""
    first, *others = args.levels
    order = [(first, seed) for seed in range(args.seeds)] + [(level, s) for s in range(args.seeds) for level in others]
    found = []
    for i, (level, seed) in enumerate(order):
        if "table" in args.parts:
            found += [("table", name, arm, level, seed) for name in args.pictures for arm in args.arms]
        if i == args.seeds - 1:
            for part, arms in (("ablation", ABLATION), ("curve", CURVE_ARMS)):
                if part in args.parts:
                    found += [(part, name, arm, first, 0) for name in args.pictures for arm in arms]
    return [(run, args.threads, *task) for task in found]


@torch.no_grad()
def add_lpips(tables: dict[tuple, dict], run: Run, path: Path) -> None:
    """LPIPS of every protected picture to its original; the pictures are there already."""
    encoder = file_encoder(path)
    if not isinstance(encoder.module, AlexNet):
        raise AntiPureError(f"{path} does not hold torchvision's AlexNet.")
    distance = Lpips(encoder.module)
    for (_, name, arm, levels, seed), found in tables.items():
        picture = run.protected(name, arm, PRESETS.get(arm), levels, seed)
        found["lpips"] = float(distance(run.clean(name), picture))


def main() -> None:
    args = arguments()
    run = Run(args.work, args.size, args.steps, args.precision, tuple(args.purifiers), args.finished)
    jobs = tasks(args, run)
    results: dict[tuple, dict] = {}
    began = time.time()
    with get_context("spawn").Pool(1 if args.finished else args.workers) as pool:
        for i, (task, found) in enumerate(pool.imap(work, jobs, chunksize=1), 1):
            if found is not None:
                results[task] = found
            spent = (time.time() - began) / 60
            if i % 20 == 0 and not args.finished:
                print(f"{spent:6.1f} min, about {spent / i * (len(jobs) - i):.0f} left: {task}", flush=True)
    head = (
        f"{machine()}; {args.workers} processes of {args.threads} thread(s). Pictures: {', '.join(args.pictures)}, "
        f"{args.size}×{args.size}; up to {args.seeds} seeds; {args.steps} PGD steps for all; {args.precision}."
    )
    tables, ablation, curves = (
        {key: value for key, value in results.items() if key[0] == part} for part in ("table", "ablation", "curve")
    )
    if args.lpips:
        add_lpips(tables, run, args.lpips)
    text = "\n\n".join(
        [
            head,
            *report(tables, list(args.arms), args.purifiers, MATCHED),
            *([ablation_table(ablation, list(ABLATION), args.purifiers[0])] if ablation else []),
            *([curve_table(curves, CURVE_ARMS, CURVE)] if curves else []),
        ]
    )
    print(text)
    if args.markdown:
        args.markdown.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
