"""Cheaper steps over a latent model: terms judged before its decoder, and fewer tiles a step.

    python -m benchmarks.latent_terms steps
    python -m benchmarks.latent_terms left --work folder --rows 'strong@30' 'strong, latents@30'
    python -m benchmarks.latent_terms left --work folder --side 256 --rows 'strong@18' 'strong@40@moving'

Over the bundled demo latent model, outside ComfyUI. `steps`: processor time of a step and of its parts, and what the
decoder is of the work at Stable Diffusion's own sizes. `left`: what purifiers leave of the unrolled purification of
`strong` and of the paper's loss, where what stands behind the decoder is judged on latents instead, and of fewer tiles
a step on a picture larger than the model's side, beside the forms that ship. Equal time is a matter of the steps asked
for. Every finished picture and figure is kept under --work. Nothing here is used by the pack.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from statistics import mean, median
from unittest.mock import patch

import torch
from antipure.kernels.transfer import to_device
from antipure.methods.antipure.guidance import paper_terms
from antipure.methods.antipure.objective import PRESETS, Objective
from antipure.methods.antipure.perceptual import balance_colours
from antipure.methods.antipure.protect import denoising_loss, protect
from antipure.methods.antipure.unrolled import high_pass, random_half, unrolled_purification
from antipure.methods.attacks import tiled_loss
from antipure.methods.attacks.loss import Loss
from antipure.methods.attacks.pgd import pgd
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.attacks.tiled_loss import TiledLoss, TileTerms
from antipure.methods.controls import apply_control
from antipure.methods.customization.demo_denoiser import DemoDenoiser, load_demo_denoiser
from antipure.methods.figures.text_table import text_table
from antipure.methods.metrics import image as metrics
from antipure.methods.metrics.latent import latent_shift
from antipure.methods.pictures import round_8bit
from antipure.methods.purification.purifiers import parse_purifier
from torch import Tensor

from . import strangers
from .protection_run import PURIFIER_SEED, autoencoders
from .work import digest, kept, load_denoisers, machine, picture_digest, read

# Offsets from tools.latent_pool.HELD_OUT: neither drawn for a training nor in another benchmark.
PERSONS, SHOT = (606, 707, 808), 1
COLUMNS = ("none", "gridpure10/2", "demo:diffpure100/20", "demo:vae")
LEVELS = 8
STRONG, PAPER = PRESETS["strong"], PRESETS["paper"]
ENCODER_ALONE = Objective(ddpm=0, pfg=0, etg=0, latent=1)  # the term that `robust` has in latent space already
RANDOM, SHIFT = "random", "latent shift alone"


@dataclass(frozen=True)
class Form:
    """A way to protect. make: from clean pixels to the loss; precondition: as `pgd` takes it."""

    make: Callable[[DemoDenoiser, Tensor], Loss]
    precondition: Callable[[Tensor], Tensor] | None = None


def present(objective: Objective) -> Callable[[DemoDenoiser, Tensor], Loss]:
    return lambda denoiser, clean: denoising_loss(denoiser, objective, clean)


def over_tiles(
    make: Callable[[DemoDenoiser], TileTerms], forwards: int, at_once: int = 1
) -> Callable[[DemoDenoiser, Tensor], Loss]:
    return lambda denoiser, clean: TiledLoss(denoiser, clean, make(denoiser), forwards=forwards, at_once=at_once)


def without_decoder(denoiser: DemoDenoiser) -> DemoDenoiser:
    """The same model, its latents taken for pictures on the way back."""
    bare = copy.copy(denoiser)
    bare.decode = lambda latent: latent  # type: ignore[method-assign]
    return bare


def latent_unrolled(denoiser: DemoDenoiser, window: int, o: Objective = STRONG) -> TileTerms:
    """`unrolled_term`, the purified latents against the clean picture's. window: of the high-pass in latent places."""
    bare = without_decoder(denoiser)

    def terms(tiles: Tensor, clean: Tensor, generators: list[torch.Generator]) -> Tensor:
        drawn = [torch.randint(o.unrolled_t_low, o.unrolled_t + 1, (1,), generator=g) for g in generators]
        tiles, clean = random_half([tiles, clean], o.halved, generators)
        pure = unrolled_purification(
            bare, tiles, generators, o.unrolled_steps, to_device(torch.cat(drawn), tiles.device)
        )
        with torch.no_grad():
            still = denoiser.encode(clean)
        moved = pure - still
        return (high_pass(moved, window) if window else moved).square().flatten(1).mean(1)

    return terms


def latent_paper(denoiser: DemoDenoiser, o: Objective = PAPER) -> TileTerms:
    """`paper_terms` with PFG on the latent's own 8×8 patches, of 64×64 pixels."""
    bare = without_decoder(denoiser)
    return lambda tiles, clean, generators: paper_terms(bare, tiles, generators, o)


less_grey = partial(balance_colours, luminance=STRONG.luminance)
FORMS = {
    "strong": Form(present(STRONG), less_grey),
    "strong, latents": Form(over_tiles(partial(latent_unrolled, window=0), 4), less_grey),
    "strong, latents high-passed": Form(over_tiles(partial(latent_unrolled, window=4), 4), less_grey),
    "paper": Form(present(PAPER)),
    "paper, PFG on latents": Form(over_tiles(latent_paper, 2, 2)),
    "paper without PFG": Form(present(replace(PAPER, pfg=0))),
}


def moving_positions(height: int, width: int, tile: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """As few tiles as a picture needs, evenly spread, moved together by up to an eighth of a tile, within it."""

    def axis(size: int) -> list[int]:
        count = -(-size // tile)
        reach = tile // 8 if count > 1 else 0
        move = int(torch.randint(2 * reach + 1, (), generator=generator)) - reach
        return sorted({min(max(i * (size - tile) // max(count - 1, 1) + move, 0), size - tile) for i in range(count)})

    return [(y, x) for y in axis(height) for x in axis(width)]


def scattered_positions(height: int, width: int, tile: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """As few tiles as a picture needs, each anywhere by itself; half of one may lie outside, and is then moved in."""

    def start(size: int) -> int:
        return min(max(int(torch.randint(size, (), generator=generator)) - tile // 2, 0), size - tile)

    return [(start(height), start(width)) for _ in range(-(-height // tile) * -(-width // tile))]


def some_positions(height: int, width: int, tile: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """As few tiles as a picture needs, drawn from those of the present grid."""
    every = tiled_loss_positions(height, width, tile, generator)
    few = -(-height // tile) * -(-width // tile)
    return [every[i] for i in torch.randperm(len(every), generator=generator)[:few].tolist()]


tiled_loss_positions = tiled_loss.random_positions
TILES = {
    "grid": tiled_loss_positions,
    "moving": moving_positions,
    "scattered": scattered_positions,
    "some of the grid": some_positions,
}


@cache
def portrait(person: int, side: int) -> Tensor:
    from tools.latent_pool import HELD_OUT  # not installed: there from the repository's root
    from tools.portraits import draw_portraits

    return round_8bit(draw_portraits([HELD_OUT + person], [SHOT], side=side).pictures)


@dataclass(frozen=True)
class Run:
    """The settings that pictures depend on. Stages are named by all that they depend on."""

    work: Path
    denoiser: DemoDenoiser
    precision: str
    side: int
    columns: tuple[str, ...] = COLUMNS

    def file(self, kind: str, ending: str, *more: object) -> Path:
        return self.work / kind / f"{digest(self.precision, self.side, *more)}.{ending}"

    def protected(self, person: int, arm: str, steps: int, seed: int, positions: str = "grid") -> Tensor:
        clean = portrait(person, self.side)
        settings = AttackSettings(levels=LEVELS, steps=steps, seeds=seed)

        def make() -> Tensor:
            if arm == RANDOM:
                return apply_control(arm, clean, settings)
            return made(self, arm, positions, clean, settings)

        path = self.file("protected", "png", picture_digest(clean), arm, steps, seed, positions)
        return read(kept(path, make))

    def purified(self, picture: Tensor, text: str, seed: int) -> Tensor:
        def make() -> Tensor:
            purifier = parse_purifier(
                text, load_denoisers(self.precision) | {"demo": self.denoiser}, seed + PURIFIER_SEED
            )  # type: ignore[arg-type]
            with purifier.session():
                return round_8bit(purifier(picture))

        return read(kept(self.file("purified", "png", picture_digest(picture), text, seed), make))

    def figures(self, picture: Tensor, person: int, seed: int) -> dict[str, dict[str, float]]:
        """By column: structural distortion × 1000, and latent shift under the demo VAE and the strangers'."""
        clean = portrait(person, self.side)

        @torch.no_grad()
        def make() -> dict:
            found: dict[str, dict[str, float]] = {}
            for text in self.columns:
                pure, still = self.purified(picture, text, seed), self.purified(clean, text, seed)
                shifts = {
                    name: float(latent_shift(still, pure, vae, draws=1).value)
                    for name, vae in {"demo": self.denoiser.autoencoder, **autoencoders()}.items()
                }
                found[text] = {
                    "structure": 1000 * float(metrics.structural_distortion(still, pure)),
                    "demo": shifts.pop("demo"),
                    "strangers": mean(shifts.values()) if shifts else float("nan"),
                }
            found["none"]["psnr"] = float(metrics.psnr(clean, picture))
            return found

        names = tuple(strangers.vae_files())
        path = self.file("figures", "json", picture_digest(picture), person, seed, self.columns, names)
        return json.loads(kept(path, make).read_text(encoding="utf-8"))


def made(run: Run, arm: str, positions: str, clean: Tensor, settings: AttackSettings) -> Tensor:
    """A picture protected in the form that this arm has."""
    # Patched where the shipped loss looks for it: the experiment needs no option in the pack.
    with run.denoiser.session(), patch.object(tiled_loss, "random_positions", TILES[positions]):
        if arm == SHIFT:
            return protect(clean, run.denoiser, ENCODER_ALONE, settings)
        form = FORMS[arm]
        return pgd(clean, partial(form.make, run.denoiser), settings, precondition=form.precondition)


def step_seconds(run: Run, rows: list[Row], steps: int = 2, rounds: int = 5) -> list[float]:
    """Median processor seconds of a step of each, taken in turns, the first turn left out."""
    clean = portrait(PERSONS[0], run.side)
    taken: list[list[float]] = [[] for _ in rows]
    for turn in range(rounds + 1):
        for row, values in zip(rows, taken, strict=True):
            began = time.process_time()
            made(run, row.form, row.positions, clean, AttackSettings(levels=LEVELS, steps=steps, seeds=turn))
            if turn:
                values.append((time.process_time() - began) / steps)
    return [median(values) for values in taken]


def part_seconds(denoiser: DemoDenoiser, side: int, rounds: int = 7) -> dict[str, float]:
    """Median processor seconds of each part of a step: forward and backward, the encoder's forward by itself, too."""
    pixels = portrait(PERSONS[0], side) * 2 - 1
    latent, t = denoiser.encode(pixels).detach(), torch.full((1,), 20)

    def seconds(function: Callable[[Tensor], Tensor], x: Tensor, backward: bool = True) -> float:
        taken = []
        for _ in range(rounds):
            began = time.process_time()
            with torch.set_grad_enabled(backward):
                found = function(x.clone().requires_grad_(backward))
            if backward:
                found.sum().backward()
            taken.append(time.process_time() - began)
        return median(taken[1:])

    return {
        "encoder": seconds(denoiser.encode, pixels),
        "encoder, forward only": seconds(denoiser.encode, pixels, backward=False),
        "network": seconds(lambda x: denoiser.predict_noise(x, t), latent),
        "decoder": seconds(denoiser.decode, latent),
    }


def sd_work() -> dict[str, float]:
    """TFLOP of each part over a 512×512 tile of Stable Diffusion 1.5, by its architecture: no weights are read."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    widths = (128, 256, 512, 512)
    with torch.device("meta"):
        kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        vae = AutoencoderKL(block_out_channels=widths, layers_per_block=2, **kinds).requires_grad_(False)
        unet = UNet2DConditionModel(cross_attention_dim=768).requires_grad_(False)
        pixels, latent = torch.zeros(1, 3, 512, 512), torch.zeros(1, 4, 64, 64)
        t, text = torch.zeros(1, dtype=torch.long), torch.zeros(1, 77, 768)

    def tflop(function: Callable[[Tensor], Tensor], x: Tensor, backward: bool = True) -> float:
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
            found = function(x.clone().requires_grad_(backward))
            if backward:
                found.sum().backward()
        return counter.get_total_flops() / 1e12

    def encode(x: Tensor) -> Tensor:
        return vae.encode(x).latent_dist.mean

    return {
        "encoder": tflop(encode, pixels),
        "encoder, forward only": tflop(encode, pixels, backward=False),
        "network": tflop(lambda x: unet(x, t, text).sample, latent),
        "decoder": tflop(lambda z: vae.decode(z).sample, latent),
    }


def shares(cost: dict[str, float]) -> dict[str, float]:
    """What a step of `strong` costs with and without the decoder, by its parts."""
    with_decoder = cost["encoder"] + STRONG.unrolled_steps * cost["network"] + cost["decoder"]
    without = with_decoder - cost["decoder"] + cost["encoder, forward only"]
    return {"strong": with_decoder, "strong, latents": without, "faster by": with_decoder / without}


@dataclass(frozen=True)
class Row:
    """A form of `FORMS` or a control, for so many steps, with tiles at positions of `TILES`."""

    form: str
    steps: int = 0
    positions: str = "grid"

    @classmethod
    def parsed(cls, text: str) -> Row:
        """From "form@steps" or "form@steps@positions"."""
        form, steps, *positions = text.split("@")
        return cls(form, int(steps), *positions)


def table(run: Run, rows: list[Row], pairs: list[tuple[int, int]]) -> str:
    """Means over pairs of person and seed; in brackets, in how many of them a row leaves more than the first one."""
    found: dict[Row, list[dict]] = {}
    for person, seed in pairs:
        for row in [Row(RANDOM), *rows]:
            began = time.process_time()
            picture = run.protected(person, row.form, row.steps, seed, row.positions)
            found.setdefault(row, []).append(run.figures(picture, person, seed))
            print(f"person {person} seed {seed} {row}: {time.process_time() - began:.1f} s", flush=True)
    first = found[rows[0]]
    lines = []
    for row, figures in found.items():
        cells = [f"{mean(one['none']['psnr'] for one in figures):.1f}"]
        for text in run.columns:
            for kind, digits in (("structure", 1), ("demo", 2), ("strangers", 2)):
                values = [one[text][kind] for one in figures]
                over = sum(a > b[text][kind] for a, b in zip(values, first, strict=True))
                cells.append(f"{mean(values):.{digits}f} ({over})")
        lines.append([row.form, row.positions, str(row.steps or "–"), *cells])
    head = [
        f"{text}: {kind}" for text in run.columns for kind in ("structure × 1000", "shift, demo", "shift, strangers")
    ]
    return text_table(["form", "tiles", "steps", "PSNR", *head], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("steps", "left"))
    parser.add_argument("--work", type=Path, default=Path("latent_terms"))
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--rows", nargs="*", default=["strong@40", "strong, latents@40"], help="form@steps[@tiles]")
    parser.add_argument("--persons", nargs="*", type=int, default=PERSONS, help="offsets from HELD_OUT")
    parser.add_argument("--columns", nargs="*", default=COLUMNS, help="what thieves do; the first is none")
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    denoiser = load_demo_denoiser(precision=args.precision)
    run = Run(args.work, denoiser, args.precision, args.side, tuple(args.columns))
    rows = [Row.parsed(text) for text in args.rows]
    print(f"{machine()}, {args.precision}, {args.side} px", flush=True)
    if args.what == "steps":
        for name, cost in (("demo, s", part_seconds(denoiser, args.side)), ("SD 1.5, TFLOP", sd_work())):
            print(name, json.dumps({k: round(v, 3) for k, v in (cost | shares(cost)).items()}), flush=True)
        for row, seconds in zip(rows, step_seconds(run, rows), strict=True):
            print(f"{row}: {seconds:.3f} s a step")
        return
    print(table(run, rows, [(person, seed) for seed in range(args.seeds) for person in args.persons]))


if __name__ == "__main__":
    main()
