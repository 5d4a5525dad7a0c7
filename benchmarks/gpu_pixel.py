"""What the pixel denoiser does on a GPU, for `benchmarks.gpu`: python -m benchmarks.gpu_pixel OUT.json

Each check stands alone; one that fails says so in the results. `--device cpu --small` is for a look without a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from unittest.mock import patch

import torch
from antipure.benchmarks.gpu_probe import exact
from antipure.benchmarks.speed import bundled, enlarged
from antipure.benchmarks.work import read, write
from antipure.methods import pictures
from antipure.methods.antipure.objective import PRESETS
from antipure.methods.antipure.protect import protect
from antipure.methods.attacks.ensemble import bundled_vae_targets, combine
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.customization.dreambooth_lora import CustomizationSettings, customized
from antipure.methods.diffusion.checkpoints import BUNDLED
from antipure.methods.diffusion.pixel import PixelDenoiser
from antipure.methods.generators.procedural_faces import draw_faces
from antipure.methods.generators.stargan import StarGAN, StarGANNetwork
from antipure.methods.gradients.compilation import COMPILED, CUDA_GRAPHS
from antipure.methods.gradients.reproducible import reproducible
from antipure.methods.lora_patching.training import TrainingConfig, train_patch
from antipure.methods.purification.gridpure import gridpure
from antipure.nodes.protect import DEFAULT
from torch import Tensor


class Checks:
    """device: what is looked at. small: sizes for a look."""

    def __init__(self, device: torch.device, small: bool):
        self.device, self.small, self.steps = device, small, 1 if small else 8
        self.gpu = device.type == "cuda"
        face = read(BUNDLED.with_name("astronaut_face.png"))
        self.face = face[..., :64, :64] if small else face
        self.large = enlarged(read(BUNDLED.with_name("astronaut.png")), 64 if small else 1024)

    def protect(self, denoiser: PixelDenoiser, picture: Tensor | None = None, steps: int = 0, name="strong") -> Tensor:
        """All steps are run, also of presets that run a share of them; with our own VAE where latents are moved."""
        picture = (self.face if picture is None else picture).to(denoiser.device)
        objective, target = replace(PRESETS[name], step_share=1), denoiser
        if objective.latent:
            target = combine(denoiser, bundled_vae_targets(denoiser.device), "mean")
        with target.session():
            return protect(picture, target, objective, AttackSettings(steps=steps or self.steps))

    def seconds(self, work: Callable[[], object], repeats: int = 3) -> float:
        work()
        times = []
        for _ in range(repeats):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    def wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    def check_training(self) -> dict:
        """A LoRA patch, against the CPU: the largest difference of its weights over the largest weight."""

        def trained(device: torch.device) -> Tensor:
            torch.manual_seed(0)
            network = StarGANNetwork(conv_dim=8, n_labels=2, blocks=1)
            generator = StarGAN(network, {"dark": (1.0, 0.0), "light": (0.0, 1.0)}, size=32)
            generator.to(device)
            config = TrainingConfig(mode="evaluation", rank=2, epochs=1, batch=2)
            tensors = train_patch(generator, draw_faces(range(4), side=32), config).patch.tensors
            return torch.cat([value.flatten().float().cpu() for _, value in sorted(tensors.items())])

        ours, theirs = trained(self.device), trained(torch.device("cpu"))
        return {"relative": float((ours - theirs).abs().max() / theirs.abs().max())}

    def check_same_bytes(self) -> dict:
        """Twice, and again with most of the free memory taken, without and with `reproducible`; and its price."""
        found: dict = {}
        for name, fixed in product(dict.fromkeys(("strong", DEFAULT)), (False, True)):
            label = f"{name}, {'reproducible' if fixed else 'as it is'}"

            def run(name: str = name, fixed: bool = fixed) -> Tensor:
                with reproducible(fixed):
                    return self.protect(bundled(self.device), self.large, 1 if self.small else 4, name)

            first = run()
            found[f"{label}, twice"] = differ(first, run())
            found[f"{label}, s"] = self.seconds(run, 1)
            if self.gpu:
                free, total = torch.cuda.mem_get_info()
                taken = torch.empty(max(0, int(free - 0.3 * total)), dtype=torch.uint8, device=self.device)
                found[f"{label}, with {taken.numel() / 1e9:.0f} GB taken"] = differ(first, run())
                del taken
                torch.cuda.empty_cache()
        return found

    def check_time(self) -> dict:
        """Of a large picture: `strong`'s step, the GPU's part of it, its noise; 40 steps, and the default preset's."""
        denoiser, count = bundled(self.device), 1 if self.small else 4
        run = partial(self.protect, denoiser, self.large, count)
        found: dict = {"s per step": self.seconds(run, 1 if self.small else 3) / count}
        side = self.large.shape[-1] // denoiser.tile + 1
        draw = partial(
            lambda n: list(
                pictures.noises(4, (3, 64, 64), [pictures.random_stream(0, i) for i in range(n)], self.device)
            ),
            side**2,
        )
        found["noise of a step, s"] = self.seconds(draw)
        with patch.object(pictures, "drawing_threads", lambda device: 0):
            found["noise of a step on one thread, s"] = self.seconds(draw)
        if self.gpu:
            from torch.profiler import ProfilerActivity, profile

            with profile(activities=[ProfilerActivity.CUDA]) as profiled:
                run()
                self.wait()
            events = sorted(profiled.key_averages(), key=lambda event: -event.self_device_time_total)
            found["GPU busy, s per step"] = sum(event.self_device_time_total for event in events) / 1e6 / count
            found["kernels, ms"] = [[e.key[:90], e.count, e.self_device_time_total / 1e3] for e in events[:18]]
        for name in dict.fromkeys(("strong", DEFAULT)):
            if self.gpu:
                torch.cuda.reset_peak_memory_stats()
            self.wait()
            started = time.perf_counter()
            self.protect(denoiser, self.large, 1 if self.small else 40, name)
            self.wait()
            found[f"{name}, 40 steps, s"] = time.perf_counter() - started
            if self.gpu:
                found[f"{name}, peak GB"] = torch.cuda.max_memory_allocated() / 1e9
        return found

    def check_customization(self) -> dict:
        """A LoRA trained on the portrait, against the CPU: the largest difference of its weights over the largest."""

        def trained(device: torch.device) -> Tensor:
            denoiser = bundled(device)
            with denoiser.session():
                settings = CustomizationSettings(steps=2, batch=2)
                with customized(denoiser, self.face, settings) as customization:
                    return torch.cat([p.detach().flatten().float().cpu() for p in customization.parameters])

        with exact():
            ours, theirs = trained(self.device), trained(torch.device("cpu"))
        return {"relative, TF32 off": float((ours - theirs).abs().max() / theirs.abs().max())}

    def check_waits(self) -> dict:
        """How often the host waits for the GPU in a step of each preset and in an iteration of GrIDPure, and where."""
        if not self.gpu:
            return {"skipped": "for GPUs"}
        denoiser, found = bundled(self.device), {}
        works = {name: partial(self.protect, denoiser, self.face, name=name) for name in PRESETS}
        works["GrIDPure"] = lambda steps: gridpure(self.face.to(self.device), denoiser, iterations=steps)
        for name, work in works.items():
            # Neither the look at the gradients in the first and last step nor what comes once counts.
            counts = [waited(partial(work, steps=n) if name in PRESETS else partial(work, n)) for n in (3, 6)]
            found[name] = {place: count / 3 for place, count in (counts[1] - counts[0]).items()}
        return found

    def check_parity(self) -> dict:
        """Against the CPU, with and without TF32."""
        cpu, here, found = bundled(torch.device("cpu")), bundled(self.device), {}
        works: dict = {
            f"{name}: share of values that differ": (partial(self.protect, name=name), differ) for name in PRESETS
        }
        works["GrIDPure: levels apart"] = (
            lambda d: gridpure(self.face.to(d.device), d, iterations=1).cpu(),
            lambda a, b: float((a - b).abs().max() * 255),
        )
        for label, (work, apart) in works.items():
            expected = work(cpu)
            found[f"{label}, TF32 on"] = apart(expected, work(here))
            with exact():
                found[f"{label}, TF32 off"] = apart(expected, work(here))
        return found

    def check_compiled(self) -> dict:
        """torch.compile and CUDA graphs: first run, later ones, and whether the result is the same."""
        if not self.gpu:
            return {"skipped": "for GPUs"}
        base = bundled(self.device)
        reference = self.protect(base)
        found: dict = {
            "allocator": torch.cuda.get_allocator_backend(),
            "as it is, s": self.seconds(lambda: self.protect(base)),
        }
        for mode in (COMPILED, CUDA_GRAPHS):
            denoiser = bundled(self.device, compile=mode)
            started = time.perf_counter()
            differs = differ(self.protect(denoiser), reference)
            row = {
                "first, s": time.perf_counter() - started,
                "active": denoiser.compiled,
                "share that differs": differs,
            }
            found[mode] = {**row, "s": self.seconds(partial(self.protect, denoiser))}
        return found


def waited(work: Callable[[], object]) -> Counter:
    """Where the host waits for the GPU, as torch itself tells it: file and line of whoever asked, and how often."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    told = [warning for warning in said if "synchronizing" in str(warning.message)]
    return Counter(f"{Path(warning.filename).name}:{warning.lineno}" for warning in told)


def differ(x: Tensor, y: Tensor) -> float:
    """Share of 8-bit values that are not the same."""
    return float(((x.cpu() - y.cpu()).abs() * 255 > 0.5).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    names = [name.removeprefix("check_") for name in vars(Checks) if name.startswith("check_")]
    parser.add_argument("--only", nargs="+", choices=names, default=[name for name in names if name != "compiled"])
    args = parser.parse_args()
    checks, found = Checks(torch.device(args.device), args.small), {}
    for name in args.only:
        started = time.perf_counter()
        try:
            found[name] = getattr(checks, f"check_{name}")()
        except Exception:
            found[name] = {"failed": traceback.format_exc()[-1500:]}
        found[name]["took, s"] = time.perf_counter() - started
        print(name, found[name], flush=True)
        write(args.out, found)


if __name__ == "__main__":
    main()
