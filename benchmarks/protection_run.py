"""The stages of `benchmarks.protection`: protected and purified pictures and their figures, each kept."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import torch
from antipure.methods.antipure.objective import PRESETS
from antipure.methods.attacks.ensemble import Target, VaeTargets, combine
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.controls import smooth_equal, smooth_random, spectrum_matched
from antipure.methods.diffusion.autoencoder import NetworkAutoencoder, load_autoencoder
from antipure.methods.diffusion.checkpoints import load_denoiser
from antipure.methods.diffusion.pixel import PixelDenoiser
from antipure.methods.errors import AntiPureError
from antipure.methods.metrics import image as metrics
from antipure.methods.metrics import visibility
from antipure.methods.metrics.latent import shift_of_latents
from antipure.methods.pictures import center_crop, round_8bit, to_pixels
from antipure.methods.protections import apply_protection
from antipure.methods.purification.purifiers import Purifier, parse_purifier
from antipure.methods.purification.transforms import Transform
from torch import Tensor

from . import sets, strangers
from .upscalers import load_upscalers
from .work import chosen, digest, kept, load_denoisers, picture_digest, read

MATCHED = ", spectrum-matched"
SMOOTH_EQUAL, SMOOTH_RANDOM = "smooth, equal PSNR", "smooth + random"
OVER_VAES = ("photoguard", "mist_textural", "pid")  # published ones whose loss is about a VAE's latent alone
EQUAL_TO = "strong"  # the protection whose PSNR that control has
PURIFIER_SEED = 1000  # a purifier's noise is never that of the protection


@cache
def denoisers() -> dict[str, PixelDenoiser]:
    """What protections are made against, its sibling, the judge, and a stranger where its file is."""
    found = dict(load_denoisers("fp32"))
    stranger = strangers.ffdnet_file()
    return found | ({"ffdnet": load_denoiser(stranger)} if stranger else {})


@cache
def autoencoders() -> dict[str, NetworkAutoencoder]:
    """Strangers' VAEs by name, those that are there."""
    return {name: load_autoencoder(files, name=name) for name, files in strangers.vae_files().items()}


def attacker(text: str, seed: int = 0) -> Purifier:
    """A column of the table. Raises `AntiPureError` for what is unknown or not there."""
    return parse_purifier(text, denoisers(), seed, autoencoders=autoencoders(), upscalers=load_upscalers())


def target_of(arm: str) -> Target:
    """What a protection is made against: the bundled denoiser; where VAEs are asked for, those that may be attacked.

    A preset that has use for VAEs gets the bundled denoiser's sibling too, as the shipped workflow has it.
    """
    bundled, sibling = (load_denoisers()[name] for name in ("bundled", "held_out"))
    vaes = [vae for name, vae in autoencoders().items() if name in strangers.ATTACKED_VAES]
    if arm in PRESETS and PRESETS[arm].latent:
        both = combine(bundled, sibling, "mean")
        return combine(both, VaeTargets(tuple(vaes)), "mean") if vaes else both
    if arm in OVER_VAES and vaes:
        return VaeTargets(tuple(vaes))
    return bundled


def usable(texts: list[str]) -> tuple[list[str], dict[str, str]]:
    """The columns that can be measured here, and why the others cannot, by their text."""
    refused = {}
    for text in texts:
        try:
            attacker(text)
        except AntiPureError as error:
            refused[text] = re.split(r"[;.]( |$)", str(error))[0]
    return [text for text in texts if text not in refused], refused


@cache
def picture_of(name: str) -> Tensor:
    return sets.load()[name].read()


@lru_cache(maxsize=256)
def reference_of(run: Run, name: str, text: str, seed: int) -> Tensor:
    """What an attacker makes of the clean picture: all its protections are compared with it."""
    return run.purified(run.clean(name), text, seed)


@lru_cache(maxsize=1024)
def reference_latent(run: Run, name: str, text: str, seed: int, vae: str) -> Tensor:
    return encoded(reference_of(run, name, text, seed), vae)


@torch.no_grad()
def encoded(picture: Tensor, vae: str) -> Tensor:
    return autoencoders()[vae].encode_padded(to_pixels(picture))


@dataclass(frozen=True)
class Run:
    """The settings that stages depend on.

    steps: of every protection. size: side of the middle that is taken of each picture, 0: all of it.
    finished: whether only what is kept counts and nothing is computed.
    """

    work: Path
    steps: int
    size: int = 0
    finished: bool = False

    def clean(self, name: str) -> Tensor:
        """A picture of the sets, 1×3×H×W in 0..1."""
        return center_crop(picture_of(name), self.size) if self.size else picture_of(name)

    def _file(self, kind: str, ending: str, name: str, arm: str, levels: float, seed: int, *more: object) -> Path:
        """Named by all that its content depends on."""
        source = EQUAL_TO if arm == SMOOTH_EQUAL else arm.removesuffix(MATCHED)
        depends = (picture_digest(self.clean(name)), arm, chosen(PRESETS.get(source)), levels, seed, self.steps, *more)
        plain = re.sub(r"[^a-z0-9]+", "_", "-".join([name, arm, *more[:1]]).lower())
        return self.work / kind / f"{plain}-l{levels:g}-s{seed}-{digest(*depends)}.{ending}"

    def protected(self, name: str, arm: str, levels: float, seed: int) -> Tensor:
        """The 8-bit picture under a protection, a control, or the spectrum-matched control of a protection."""
        clean = self.clean(name)

        def make() -> Tensor:
            if arm.endswith(MATCHED):
                made = self.protected(name, arm.removesuffix(MATCHED), levels, seed)
                return spectrum_matched(clean, made, levels=levels, seed=seed)
            if arm == SMOOTH_EQUAL:
                return smooth_equal(clean, self.protected(name, EQUAL_TO, levels, seed))
            settings = AttackSettings(levels=levels, steps=self.steps, seeds=seed)
            if arm == SMOOTH_RANDOM:
                return smooth_random(clean, settings)
            return apply_protection(arm, clean, target_of(arm), settings)

        return read(kept(self._file("protected", "png", name, arm, levels, seed), make))

    def purified(self, picture: Tensor, text: str, seed: int) -> Tensor:
        """What an attacker makes of a picture. Up to its last slow step it is kept, whatever follows after."""
        purifier = attacker(text, seed + PURIFIER_SEED)
        slow = [i for i, step in enumerate(purifier.steps) if not isinstance(step, Transform)]
        last = slow[-1] + 1 if slow else 0
        if last:
            parts = text.split("+")
            rest = sum(len(step.steps) for step in purifier.steps[last:])
            first = "+".join(parts[: len(parts) - rest])
            key = digest(picture_digest(picture), first, seed)
            file = self.work / "purified" / f"{re.sub('[^a-z0-9]+', '_', first.lower())}-{key}.png"

            def make() -> Tensor:
                step = attacker(first, seed + PURIFIER_SEED)
                with step.session():
                    return step(picture)

            picture = read(kept(file, make))
        for step in purifier.steps[last:]:
            picture = step(picture)
        return round_8bit(picture)

    def looks(self, name: str, arm: str, levels: float, seed: int) -> dict | None:
        """What a protected picture costs, to the clean one; None where nothing is kept or to be computed."""

        def make() -> dict:
            clean, picture = self.clean(name), self.protected(name, arm, levels, seed)
            mean, high = visibility.ciede2000(clean, picture)
            luma, chroma = visibility.seen_rms(clean, picture)
            return {
                "psnr": min(float(metrics.psnr(clean, picture)), 99.0),
                "ssim": float(metrics.ssim(clean, picture)),
                "levels": float(metrics.linf_levels(clean, picture)),
                "ciede2000": float(mean),
                "ciede2000_p95": float(high),
                "seen_luma": float(luma),
                "seen_chroma": float(chroma),
                "peak_share": float(visibility.peak_share(picture - clean)),
            }

        return self._figures(self._file("looks", "json", name, arm, levels, seed), make)

    def after(self, name: str, arm: str, levels: float, seed: int, text: str) -> dict | None:
        """What an attacker leaves: its result on the protected picture against that on the clean one, same noise."""
        vaes = tuple(strangers.vae_files())

        @torch.no_grad()
        def make() -> dict:
            began = time.time()
            reference = reference_of(self, name, text, seed)
            pure = self.purified(self.protected(name, arm, levels, seed), text, seed)
            shift = {}
            for vae in vaes:
                latents = reference_latent(self, name, text, seed, vae), encoded(pure, vae)
                shift[vae] = float(shift_of_latents(*latents, draws=1).value)
            return {
                "distortion": float(metrics.structural_distortion(reference, pure)),
                "detail": float(metrics.detail_ratio(reference, pure)),
                "shift": shift,
                "size": list(pure.shape[-2:]),
                "seconds": time.time() - began,
            }

        return self._figures(self._file("after", "json", name, arm, levels, seed, text, vaes), make)

    def _figures(self, path: Path, make: Callable[[], dict]) -> dict | None:
        if self.finished and not path.is_file():
            return None
        return json.loads(kept(path, make).read_text(encoding="utf-8"))
