"""Where the host would wait for a GPU in a step, on the pretended device; test_pretended_waits.py runs it.

Usage: python waits.py. Each piece of work is done with two steps and with more; what is waited for more often then is
the steps' own. Prints one JSON object: name: {steps, waits: {place: how often}}, or what failed.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent))

import checks  # noqa: E402
import device  # noqa: E402
import torch  # noqa: E402
from antipure.kernels import transfer  # noqa: E402
from antipure.methods import pictures, protections  # noqa: E402
from antipure.methods.antipure import latent as latent_loss  # noqa: E402
from antipure.methods.antipure import unrolled  # noqa: E402
from antipure.methods.antipure.objective import PRESETS  # noqa: E402
from antipure.methods.attacks import pgd  # noqa: E402
from antipure.methods.attacks.ensemble import Target, VaeTargets, combine  # noqa: E402
from antipure.methods.attacks.settings import AttackSettings  # noqa: E402
from antipure.methods.baselines.surrogate import PGD_STEPS  # noqa: E402
from antipure.methods.diffusion.autoencoder import NetworkAutoencoder  # noqa: E402
from antipure.methods.diffusion.denoiser import Denoiser  # noqa: E402
from antipure.methods.gradients.differentiation import segment  # noqa: E402
from antipure.methods.purification.purify import purify  # noqa: E402
from antipure.methods.purification.random_cleaner import Jpeg  # noqa: E402
from torch import Tensor  # noqa: E402

transfer.PINNED.add(device.NAME)
pgd.CHECK_EVERY = 100  # the look at the gradients, once in ten steps, is no step's own


class Latent(Denoiser):
    """A latent denoiser in segments, as one over a host's MODEL and VAE."""

    latent, clip_x0, multiple, tile = True, False, 2, 16

    def __init__(self):
        self.vae = checks.Vae().requires_grad_(False)
        like = checks.denoiser(channels=4)
        self.unet, self.alphas_cumprod = like.network, like.alphas_cumprod

    network = property(lambda self: self.unet)

    def to(self, where: torch.device) -> Latent:
        self.vae.to(where)
        self.unet.to(where)
        self.alphas_cumprod = self.alphas_cumprod.to(where)
        return self

    def encode(self, pixels: Tensor) -> Tensor:
        return segment(lambda x: self.vae.moments(x)[0], pixels, keep=True)

    def decode(self, latent: Tensor) -> Tensor:
        return segment(self.vae.decode, latent, keep=True)

    def predict(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, None]:
        return segment(lambda x: self.unet(x, t).sample, x_t, keep=False), None

    def predict_trainable(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.unet(x_t, t).sample

    def bytes_per_pixel(self) -> float:
        return 1e3


def pixels() -> Denoiser:
    return checks.denoiser().to(checks.DEVICE)


def vae() -> VaeTargets:
    return VaeTargets((NetworkAutoencoder(checks.Vae(), name="small").to(checks.DEVICE),))


def latent() -> Denoiser:
    return Latent().to(checks.DEVICE)


def protect(name: str, target: Target, steps: int, visibility: str = "full") -> None:
    with target.session():
        settings = AttackSettings(8.0, steps, torch.ones(1, 1, *checks.PICTURE.shape[-2:]), 3, visibility=visibility)
        # All steps are run: `fast` would run one of these.
        protection = replace(PRESETS[name], step_share=1) if name in PRESETS else name
        protections.apply_protection(protection, checks.PICTURE.to(checks.DEVICE), target, settings)


def through_jpeg(target: Target, steps: int) -> None:
    """`robust`, as if JPEG were drawn for every tile and view."""
    objective = replace(PRESETS["robust"], step_share=1, tiles_cleaned=1, views_cleaned=1)
    drawn = [patch.object(module, "random_cleaner", lambda generator: Jpeg(75)) for module in (latent_loss, unrolled)]
    with target.session(), drawn[0], drawn[1]:
        protections.apply_protection(objective, checks.PICTURE.to(checks.DEVICE), target, AttackSettings(8.0, steps))


def pure(method: str, iterations: int) -> None:
    model = latent() if method == "vae" else pixels()
    with model.session():
        timestep = iterations if method.startswith("diffpure") else 4
        again = 1 if method.startswith("diffpure") else iterations
        purify(method, checks.PICTURE.to(checks.DEVICE), model, timestep=timestep, iterations=again, seed=1)


def kinds(steps: int) -> None:
    """One wait of each kind in a step, and as many copies and looks that wait for nothing."""
    x = torch.rand(4, 4, device=checks.DEVICE)
    pinned, drawn = torch.rand(4).pin_memory(), torch.rand(4, 2)
    for _ in range(steps):
        x.sum().item()
        x[x > 0.5]
        x[torch.tensor([0, 1])]
        x.cpu()
        drawn[:, 0].to(checks.DEVICE, non_blocking=True)
        pinned.to(checks.DEVICE)
        pinned.to(checks.DEVICE, torch.float64, non_blocking=True)
        torch.equal(x, x)
        # None of these:
        pinned.to(checks.DEVICE, non_blocking=True)
        x[torch.tensor([0, 1]).pin_memory().to(checks.DEVICE, non_blocking=True)] = 0.0
        torch.where(x > 0.5, x, torch.full((), 2.0, device=checks.DEVICE))
        transfer.to_device(drawn[:, 0], checks.DEVICE, torch.float16)


def unpinned(steps: int) -> None:
    with patch.object(transfer, "PINNED", set()), patch.object(pictures, "PINNED", set()):
        protect("strong", pixels(), steps)


def work() -> Iterator[tuple[str, Callable[[int], None]]]:
    yield "one of each kind", kinds
    yield "strong, nothing pinned", unpinned
    for name in protections.NAMES:
        if protections.needs_denoiser(name) and name not in checks.LIKE_OTHERS:
            for label, target in (("pixels", combine(pixels(), vae(), "mean")), ("latent", latent())):
                if label == "latent" or name not in checks.LATENT:
                    yield f"{name}, {label}", lambda steps, name=name, target=target: protect(name, target, steps)
    for name, target in (("pixels", combine(pixels(), vae(), "mean")), ("latent", latent())):
        yield f"all through JPEG, {name}", lambda steps, target=target: through_jpeg(target, steps)
    yield "strong, balanced", lambda steps: protect("strong", pixels(), steps, "balanced")
    worst = combine(pixels(), latent(), "worst")
    yield "strong, worst of two", lambda steps: protect("strong", worst, steps)
    for method in ("gridpure", "diffpure", "diffpure_resized", "vae"):
        yield f"purify {method}", lambda steps, method=method: pure(method, steps)


def waited(name: str, run: Callable[[int], None]) -> dict:
    """What is waited for in steps that come after two others, which may be the first and the last."""
    further = PGD_STEPS if name.startswith(("simac", "anti_dreambooth_aspl")) else 1  # so often a surrogate is trained
    found = []
    for count in (2, 2 + further):
        with device.waits() as places:
            run(count)
        found.append(Counter(places))
    return {"steps": further, "waits": dict(found[1] - found[0])}


if __name__ == "__main__":
    results = {}
    for name, run in work():
        try:
            results[name] = waited(name, run)
        except Exception:
            results[name] = {"failed": traceback.format_exc()[-1500:]}
    print("RESULT " + json.dumps(results))
