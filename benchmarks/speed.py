"""Where the time goes: `python -m benchmarks.speed` (`--only` picks parts, `--quick` is for a look).

Every figure is a ratio within one run: the two sides take turns, and the median over the repeats stands with the
smallest and the largest. Parts:

* floor: one PGD step and one GrIDPure iteration over the bare network's batched passes;
* plain: the same over straightforward eager code, and over the order of the released GrIDPure script (`plain.py`);
* kernels: bytes moved and bandwidth of the primitives against a plain copy (`kernel_speed.py`);
* pixels: cost and peak memory from 256² on, with a straight line through them;
* fast: `fast` against `strong`, time and structural distortion after GrIDPure, on the development pictures;
* substeps: GrIDPure with fewer timesteps, time and quality;
* options: bf16, channels_last, torch.compile, CUDA graphs, and memory kept between steps.

Rows of a device that is not there stay empty. Results go to --out as JSON and Markdown.
"""

from __future__ import annotations

import argparse
import gc
import re
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from antipure.benchmarks import plain
from antipure.benchmarks.kernel_speed import kernels
from antipure.benchmarks.speed_report import markdown
from antipure.benchmarks.work import PICTURES, machine, read, write
from antipure.kernels.filters import gaussian_blur
from antipure.methods.antipure.objective import PRESETS
from antipure.methods.antipure.protect import protect
from antipure.methods.attacks import pgd as attack
from antipure.methods.attacks.budget import Budget
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.controls import SMOOTH_SIGMA
from antipure.methods.diffusion.checkpoints import BUNDLED, load_denoiser
from antipure.methods.diffusion.pixel import PixelDenoiser
from antipure.methods.gradients.compilation import COMPILED, CUDA_GRAPHS
from antipure.methods.gradients.malloc import freed_memory_kept, return_free_memory
from antipure.methods.metrics import image as metrics
from antipure.methods.pictures import center_crop, grid_positions, random_positions, random_stream
from antipure.methods.purification.gridpure import gridpure
from antipure.nodes import host
from torch import Tensor

# What a run touches for the first time is paid for once: 3 steps would show it as a share of every step.
STEPS = 12
# sigma in pixels: the row
SMOOTHED = {PRESETS["fast"].start_blur: "fast's start alone, no network", SMOOTH_SIGMA: "control smooth, no network"}
PARTS = ("floor", "plain", "kernels", "pixels", "fast", "substeps", "options")
Work = Callable[[], object]


@dataclass
class Bench:
    """What all parts share. device, repeats: of every ratio. picture: 1×3×H×W in 0..1 on the device."""

    device: torch.device
    repeats: int
    quick: bool
    denoiser: PixelDenoiser
    picture: Tensor

    @classmethod
    def on(cls, name: str, repeats: int, quick: bool) -> Bench:
        """With the bundled denoiser and portrait, on a device by its name."""
        device, picture = torch.device(name), read(BUNDLED.with_name("astronaut.png"))
        return cls(device, repeats, quick, bundled(device), (center_crop(picture, 96) if quick else picture).to(device))

    def seconds(self, work: Work) -> float:
        gc.collect()
        self.wait()
        started = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - started

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def ratio(self, label: str, work: Work, other: Work, **more) -> dict:
        """work's time over other's: they take turns after one warm-up of each."""
        work(), other()
        pairs = [(self.seconds(work), self.seconds(other)) for _ in range(self.repeats)]
        ratios = [a / b for a, b in pairs]
        row = {
            "row": label,
            "ratio": statistics.median(ratios),
            "smallest": min(ratios),
            "largest": max(ratios),
            "seconds": statistics.median(a for a, _ in pairs),
            **more,
        }
        print(f"{label}: {row['ratio']:.3f} ({row['smallest']:.3f}..{row['largest']:.3f})", flush=True)
        return row

    def pgd(
        self, preset: str, picture: Tensor | None = None, steps: int = STEPS, denoiser: PixelDenoiser | None = None
    ) -> Work:
        picture = self.picture if picture is None else picture
        return partial(protect, picture, denoiser or self.denoiser, PRESETS[preset], AttackSettings(steps=steps))

    def passes(self, preset: str) -> Work:
        """The network's forwards and backwards of `STEPS` steps: as many tiles, batched alike, nothing around them."""
        denoiser, objective = self.denoiser, PRESETS[preset]
        at_once, chain = (1, objective.unrolled_steps) if objective.unrolled else (2, 1)
        tile, (h, w) = denoiser.tile, self.picture.shape[-2:]
        counts = [len(random_positions(h, w, tile, random_stream(0, step))) for step in range(STEPS)]

        def work() -> None:
            with freed_memory_kept(self.device):
                for count in counts:
                    for part in denoiser.batching.batches(count, tile, tile, at_once * chain, at_once):
                        n = (part.stop - part.start) * at_once
                        for _ in range(chain):
                            x = torch.zeros(n, 3, tile, tile, device=self.device, requires_grad=True)
                            denoiser.predict_noise(x, torch.full((n,), 5, device=self.device)).sum().backward()

        return work

    def forwards(self, count: int, timesteps: int = 10) -> Work:
        denoiser, tile = self.denoiser, self.denoiser.tile
        tiles = torch.zeros(count, 3, tile, tile, device=self.device)

        @torch.no_grad()
        def work() -> None:
            for t in range(timesteps):
                for part in denoiser.batching.batches(count, tile, tile):
                    x = tiles[part]
                    denoiser.predict_noise(x, torch.full((len(x),), t, device=self.device))

        return work


def bundled(device: torch.device, **settings) -> PixelDenoiser:
    """The bundled denoiser, its batches sized as the nodes do it: on a GPU for half of the free memory.

    With the default of 768 MB a GPU's rows would measure launches of small batches.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what an earlier denoiser kept counts as free
    denoiser = load_denoiser(device=device, **settings)
    denoiser.allowance = host.memory_allowance
    return denoiser


def enlarged(picture: Tensor, side: int) -> Tensor:
    """side×side pixels of the picture repeated."""
    return picture.repeat(1, 1, -(-side // picture.shape[-2]), -(-side // picture.shape[-1]))[..., :side, :side]


def development() -> dict[str, Tensor]:
    """The pictures that settings may be chosen on, their middle 96×96."""
    files = [BUNDLED.with_name("astronaut_face.png"), PICTURES / "airplane.png", PICTURES / "canyon.png"]
    return {file.stem: center_crop(read(file), 96) for file in files}


def floor(bench: Bench) -> list[dict]:
    asked = {"paper": 1.10, "strong": 1.15}
    rows = [
        bench.ratio(f"PGD, {name}, {STEPS} steps", bench.pgd(name), bench.passes(name), asked=asked[name])
        for name in asked
    ]
    tile, side = bench.denoiser.tile, 96 if bench.quick else 512
    count = len(grid_positions(side, side, tile, tile // 2)) + 1
    work = partial(gridpure, enlarged(bench.picture, side), bench.denoiser, iterations=1)
    return [*rows, bench.ratio(f"GrIDPure {side}², 1 iteration", work, bench.forwards(count), asked=1.05)]


def plain_code(bench: Bench) -> list[dict]:
    """Time of the plain code over ours, and how far the results are apart."""
    rows, on_gpu = [], bench.device.type == "cuda"
    for name in ("paper", "strong"):
        eager = partial(plain.protect, bench.picture, bench.denoiser, PRESETS[name], levels=8, steps=STEPS)
        ours = bench.pgd(name)
        moved = (ours() - eager()).abs()
        same = {"asked": 3 if on_gpu else 1.5, "values that differ": float((moved * 255 > 0.5).float().mean())}
        rows.append(bench.ratio(f"plain eager PGD, {name}", eager, ours, **same))
    script = partial(plain.gridpure, bench.picture, bench.denoiser, iterations=1)
    ours = partial(gridpure, bench.picture, bench.denoiser, iterations=1)
    difference = float((ours() - script()).abs().max() * 255)
    more = {"levels apart": difference, **({"asked": 5} if on_gpu else {})}
    return [*rows, bench.ratio("GrIDPure in the released order", script, ours, **more)]


def pixels(bench: Bench, sides: list[int]) -> list[dict]:
    """One step each, by the picture's area, with the peak of the process's memory or of the GPU's."""
    works = {
        "PGD, paper, 1 step": lambda x: bench.pgd("paper", x, 1)(),
        "PGD, strong, 1 step": lambda x: bench.pgd("strong", x, 1)(),
        "GrIDPure, 1 iteration at timestep 2": lambda x: gridpure(x, bench.denoiser, timestep=2, iterations=1),
    }
    rows = []
    source = bench.picture
    for label, work in works.items():
        areas, times = [], []
        work(source)
        for side in sides:
            x = enlarged(source, side)
            forget_peak(bench.device)
            seconds = statistics.median(bench.seconds(partial(work, x)) for _ in range(1 if side > 512 else 3))
            areas.append(side * side / 1e6)
            times.append(seconds)
            rows.append({"row": label, "side": side, "seconds": seconds, "peak MB": peak_megabytes(bench.device)})
            print(rows[-1], flush=True)
        slope, offset = statistics.linear_regression(areas, times)
        residual = sum((t - slope * a - offset) ** 2 for a, t in zip(areas, times, strict=True))
        spread = sum((t - statistics.mean(times)) ** 2 for t in times)
        rows.append({"row": label, "seconds per megapixel": slope, "constant": offset, "R²": 1 - residual / spread})
    return rows


def forget_peak(device: torch.device) -> None:
    """Peaks count from here on; on a CPU where the system is Linux."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform.startswith("linux"):
        return_free_memory()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_megabytes(device: torch.device) -> float | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    if not sys.platform.startswith("linux"):
        return None
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s*(\d+) kB", status).group(1)) * 1024 / 1e6


def fast(bench: Bench, steps: int, seeds: int) -> list[dict]:
    """Per picture: shares of `strong`'s time and of its structural distortion after ten GrIDPure iterations."""
    strong = PRESETS["strong"]
    tenth = max(1, steps // 10)
    arms = {
        "fast": (PRESETS["fast"], steps),
        "strong, a tenth of the steps": (strong, tenth),
        "strong, 2 unrolled, a fifth of the steps": (replace(strong, unrolled_steps=2), 2 * tenth),
    }
    rows: list[dict] = []
    for name, clean in development().items():
        clean = clean.to(bench.device)
        for seed in range(seeds):
            purify = partial(gridpure, denoiser=bench.denoiser, iterations=10, seed=seed)
            pure = purify(clean)

            def measured(objective, count, clean=clean, seed=seed, purify=purify, pure=pure) -> tuple[float, float]:
                made = []
                work = partial(protect, clean, bench.denoiser, objective, AttackSettings(steps=count, seeds=seed))
                seconds = bench.seconds(lambda: made.append(work()))
                return seconds, float(metrics.structural_distortion(pure, purify(made[0])))

            whole = measured(strong, steps)
            found = {arm: measured(*settings) for arm, settings in arms.items()}
            # Controls that need no network: the start itself, and a wider one.
            for sigma, control in SMOOTHED.items():
                budget = Budget(clean, 8)
                alone = budget.quantise(budget.project(gaussian_blur(clean, sigma) * 255))
                found[control] = 0.0, float(metrics.structural_distortion(pure, purify(alone)))
            for arm, (seconds, distortion) in found.items():
                rows.append(
                    {
                        "row": arm,
                        "picture": name,
                        "seed": seed,
                        "strong steps": steps,
                        "share of time": seconds / whole[0],
                        "share of distortion": distortion / whole[1],
                        "distortion": distortion,
                        "strong": whole[1],
                    }
                )
                print(rows[-1], flush=True)
    for arm in [*arms, *SMOOTHED.values()]:
        own = [row for row in rows if row["row"] == arm]
        keys = ("share of time", "share of distortion")
        rows.append({"row": arm, "picture": "median", **{k: statistics.median(r[k] for r in own) for k in keys}})
    return rows


def substeps(bench: Bench) -> list[dict]:
    """Ten GrIDPure iterations with fewer timesteps: what they do to a clean picture and leave of a perturbation."""
    clean = bench.picture
    protected = protect(clean, bench.denoiser, PRESETS["strong"], AttackSettings(steps=4 if bench.quick else 40))
    purify = partial(gridpure, denoiser=bench.denoiser, iterations=10)
    whole = purify(clean)
    repeats, bench.repeats = bench.repeats, min(bench.repeats, 3)
    rows = []
    for count in (10, 5, 2, 1):
        pure = purify(clean, substeps=count)
        quality = {
            "PSNR to original": float(metrics.psnr(clean, pure)),
            "PSNR to all 10": float(metrics.psnr(whole, pure)) if count < 10 else None,
            "strong's distortion": float(metrics.structural_distortion(pure, purify(protected, substeps=count))),
        }
        work, other = (partial(gridpure, clean, bench.denoiser, iterations=1, substeps=n) for n in (count, 10))
        rows.append(bench.ratio(f"{count} of 10 timesteps", work, other, **quality))
    bench.repeats = repeats
    return rows


def options(bench: Bench) -> list[dict]:
    """Each option over the same without it; for a compiled network, what its first step costs."""
    rows = []
    half = bundled(bench.device, precision="bf16")
    for name in ("paper", "strong"):
        rows.append(bench.ratio(f"bf16 autocast, {name}", bench.pgd(name, denoiser=half), bench.pgd(name)))
    purify = partial(gridpure, bench.picture, iterations=1)
    rows.append(bench.ratio("bf16 autocast, GrIDPure", partial(purify, half), partial(purify, bench.denoiser)))
    base = bench.pgd("paper")
    other = bundled(bench.device)
    other.unet.to(memory_format=torch.contiguous_format)
    rows.append(bench.ratio("weights not channels_last, paper", bench.pgd("paper", denoiser=other), base))
    if bench.device.type == "cpu":
        kept = bench.pgd("paper", enlarged(bench.picture, 96 if bench.quick else 512), steps=2)

        def not_kept() -> None:
            with patch.object(attack, "freed_memory_kept", lambda device: nullcontext()):
                kept()

        rows.append(bench.ratio("freed memory not kept, paper, 512²", not_kept, kept))
    for mode in (COMPILED, CUDA_GRAPHS) if bench.device.type == "cuda" else (COMPILED,):
        compiled = bundled(bench.device, compile=mode)
        first = bench.seconds(bench.pgd("paper", steps=1, denoiser=compiled))
        row = {"row": f"{mode} (does not work here, see the log)"}
        if compiled.compiled:
            row = bench.ratio(f"{mode}, paper", bench.pgd("paper", denoiser=compiled), base)
        rows.append({**row, "first step, s": first})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--devices", nargs="+", default=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--large", action="store_true", help="sides up to 4096, too")
    parser.add_argument("--steps", type=int, default=100, help="of `strong`, which `fast` is measured against")
    parser.add_argument("--seeds", type=int, default=1, help="of `fast` against `strong`")
    parser.add_argument("--quick", action="store_true", help="a 96×96 picture; no figures to quote")
    parser.add_argument("--out", type=Path, default=Path("output/speed"), help="without ending")
    args = parser.parse_args()
    sides = sorted({*args.sides, *((2048, 4096) if args.large else ())})
    run = {
        "floor": floor, "plain": plain_code, "kernels": kernels, "pixels": partial(pixels, sides=sides),
        "fast": partial(fast, steps=args.steps, seeds=args.seeds), "substeps": substeps, "options": options,
    }  # fmt: skip
    results: dict = {"machine": machine(), "repeats": args.repeats, "quick": args.quick, "devices": {}}
    for device in args.devices:
        print(f"\n{device}", flush=True)
        bench = Bench.on(device, args.repeats, args.quick)
        found = results["devices"].setdefault(device, {})
        for part in args.only:
            found[part] = run[part](bench)
            write(args.out.with_suffix(".json"), results)
    results["devices"].setdefault("cuda", {})
    write(args.out.with_suffix(".json"), results)
    text = markdown(results)
    args.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(f"\n{text}\n{args.out}.json, {args.out}.md")


if __name__ == "__main__":
    main()
