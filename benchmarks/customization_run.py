"""The stages of `benchmarks.customization`: protected, purified and customized, each kept."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cache, cached_property, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from antipure.methods.antipure.objective import PRESETS
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.baselines import BASELINES
from antipure.methods.controls import spectrum_matched
from antipure.methods.customization.dreambooth_lora import CustomizationSettings, customized
from antipure.methods.customization.gap import PROBE_RANGES, Probe, judge_samples, make_probes, probe_losses
from antipure.methods.customization.pipeline import load_pipeline
from antipure.methods.diffusion.checkpoints import load_denoiser
from antipure.methods.diffusion.ddim import generate
from antipure.methods.diffusion.pixel import PixelDenoiser
from antipure.methods.metrics.distribution import DenoiserFeatures
from antipure.methods.pictures import round_8bit
from antipure.methods.protections import apply_protection
from antipure.methods.purification.purifiers import Purifier, parse_purifier
from torch import Tensor

from . import strangers
from .protection_run import target_of
from .upscalers import load_upscalers
from .work import DENOISERS, Clock, chosen, digest, load_denoisers, picture_digest, read, stage, write

MATCHED = "matched"
START_BLOCK, START_TIMESTEP = 16, 500


@cache
def purifying() -> dict[str, PixelDenoiser]:
    """The denoisers that thieves purify with, by name: ours, and a stranger's where its file is."""
    stranger = strangers.ffdnet_file()
    return load_denoisers() | ({"ffdnet": load_denoiser(stranger)} if stranger else {})


def attacker(text: str, seed: int = 0) -> Purifier:
    """What a thief does to a picture before customizing on it. Raises `AntiPureError` for what cannot be run."""
    return parse_purifier(text, purifying(), seed, upscalers=load_upscalers())


@dataclass
class Run:
    """All stages of one run, each taken from the work folder when it is there."""

    work: Path
    levels: float
    protection_steps: int
    settings: CustomizationSettings
    samples: int
    sampling_steps: int
    probe_crops: int
    precision: str
    customize: str
    pipeline: Path | None
    prompt: str
    clock: Clock

    @property
    def surrogate(self) -> PixelDenoiser:
        """The bundled denoiser in fp32: published protections are made against it, and it gives the features."""
        return load_denoisers()["bundled"]

    @cached_property
    def model(self):
        """What is customized."""
        if self.pipeline is None:
            return load_denoiser(DENOISERS[self.customize], precision=self.precision)
        return load_pipeline(self.pipeline, self.prompt, precision=self.precision)

    def model_key(self, denoiser: str) -> str:
        """Of the pipeline, or else of that denoiser."""
        files = [DENOISERS[denoiser]] if self.pipeline is None else sorted(self.pipeline.rglob("*.safetensors"))
        return digest(
            self.precision, self.prompt if self.pipeline else "", *((f.name, f.stat().st_size) for f in files)
        )

    def _stage(self, kind: str, name: str, key: str, suffix: str, make, stem: str | None = None) -> Path:
        """The file of a stage. stem: of its name, where it is another one than what the stage is called."""
        path = self.work / kind / f"{f'{name}-' if stem is None else stem}{key}{suffix}"
        return stage(self.clock, kind, name, path, make)

    def protected(self, subject: str, clean: Tensor, version: str, seed: int) -> Tensor:
        """The picture under a protection. Raises `AntiPureError` where the model does not take it."""
        if version == "clean":
            return clean
        key = digest(
            picture_digest(clean), version, chosen(PRESETS.get(version)), self.levels, self.protection_steps, seed,
            self.model_key("bundled") if version in BASELINES else "",
            (self.settings if version == "anti_dreambooth_fsmg" else ""),
            chosen(PRESETS["strong"]) if version == MATCHED else "",
        )  # fmt: skip
        make = partial(self._protect, subject, clean, version, seed)
        return read(self._stage("protected", f"{subject}-{version}-s{seed}", key, ".png", make))

    def _protect(self, subject: str, clean: Tensor, version: str, seed: int) -> Tensor:
        if version == MATCHED:
            strong = self.protected(subject, clean, "strong", seed)
            return spectrum_matched(clean, strong, levels=self.levels, seed=seed)
        model = self.model if version in BASELINES and self.pipeline else self.surrogate
        customization = nullcontext()
        if version == "anti_dreambooth_fsmg":
            customization = customized(model, clean, self.settings, seed + 1_000_000)
        with customization:
            settings = AttackSettings(self.levels, self.protection_steps, seeds=seed)
            target = target_of(version) if version in PRESETS else model
            return apply_protection(version, clean, target, settings)

    def purified(self, name: str, picture: Tensor, text: str, seed: int) -> Tensor:
        """The picture after an attacker of `parse_purifier`; some leave it at another size."""
        purifier = attacker(text, seed)
        if not purifier.steps or str(purifier) == "none":
            return picture
        key = digest(picture_digest(picture), str(purifier), seed)
        return read(self._stage("purified", name, key, ".png", lambda: purifier(picture)))

    def view(self, clean: Tensor, text: str) -> Tensor:
        """The clean picture at the size and cut in which an attacker customizes on it."""
        return round_8bit(attacker(text).view(clean))

    def result(self, name: str, picture: Tensor | None, clean: Tensor, seed: int) -> tuple[dict, Tensor | None]:
        """Figures and a 2×2 picture of samples after customizing on a picture (None: not at all).

        clean: what the probes are cut from. The same customization is never done twice, whatever its name.
        """
        trained = "base" if picture is None else (picture_digest(picture), asdict(self.settings))
        key = digest(
            trained,
            picture_digest(clean),
            (START_BLOCK, START_TIMESTEP, PROBE_RANGES),
            (self.samples, self.sampling_steps),
            self.probe_crops,
            seed,
            self.model_key(self.customize),
        )
        samples = self.work / "samples" / f"{key}.png"

        def make() -> dict:
            probes = make_probes(self.model, clean, count=self.probe_crops, resize=self.settings.resize)
            began = time.time()
            with nullcontext() if picture is None else customized(self.model, picture, self.settings, seed) as c:
                trained_in = time.time() - began
                losses = probe_losses(self.model, probes)
                probe = next(iter(probes.values()))
                found = round_8bit(self._generate(probe, seed)) if self.samples else None
            judged = {} if found is None else self._judged(found, probe)
            if found is not None:
                write(samples, torch.cat([torch.cat(list(found[i : i + 2]), -1) for i in (0, 2)], -2)[None])
            ends = [] if picture is None else [sum(p) / len(p) for p in (c.losses[:20], c.losses[-20:])]
            return {
                "name": name,
                **losses,
                **judged,
                "training_loss_first_and_last_20": ends,
                "training_seconds": trained_in,
            }

        path = self._stage("customized", name, key, ".json", make, stem="")
        return json.loads(path.read_text(encoding="utf-8")), read(samples) if self.samples else None

    def _judged(self, found: Tensor, probe: Probe) -> dict[str, float]:
        crops = probe.pictures[:: max(1, len(probe.crops) // 64)]
        return judge_samples(found, crops, DenoiserFeatures(self.surrogate, "bundled denoiser"))

    def _generate(self, probe: Probe, seed: int) -> Tensor:
        if self.pipeline is None:
            crops = probe.pictures
            crops = crops[[i % len(crops) for i in range(self.samples)]]
            start = F.interpolate(F.avg_pool2d(crops, START_BLOCK), crops.shape[-2:], mode="bilinear")
            settings = {"start": start, "timestep": START_TIMESTEP, "steps": self.sampling_steps}
            return generate(self.model, self.samples, seed=seed, **settings)
        return self.model.generate(self.samples, seed, steps=self.sampling_steps)
