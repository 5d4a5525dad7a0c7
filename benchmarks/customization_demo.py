"""The whole loop with a model that draws: `python -m benchmarks.customization --model demo`.

Four portraits of a person whom the demo model (`bundled/demo`) was never shown are protected, purified, learned by
DreamBooth-LoRA under the name "stranger 1", and asked for by that name. Versions × attackers × persons × seeds; every
stage is kept under --work, named by all it depends on, and an interrupted run goes on from there.

Published protections are made against the demo model itself, knowing its weights (the baselines that need a VAE alone:
against its VAE); `paper` and `strong` against the bundled pixel denoiser; `robust` and `robust_set` against the two
bundled pixel denoisers and the demo model's VAE; `robust_blind` against those two and the pack's own encoder, knowing
nothing of the demo model. Attackers are texts of `methods/purification/purifiers.py`; "demo:" in front purifies with
the demo model.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path

import torch
from antipure.methods.antipure.objective import PRESETS
from antipure.methods.attacks.ensemble import Target, VaeTargets, bundled_vae_targets, combine
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.baselines import BASELINES
from antipure.methods.baselines.targets import VAE
from antipure.methods.controls import CONTROLS, spectrum_matched
from antipure.methods.customization.demo_denoiser import DemoDenoiser, load_demo_denoiser
from antipure.methods.customization.demo_model import FOLDER
from antipure.methods.customization.dreambooth_lora import CustomizationSettings, customized
from antipure.methods.diffusion.ddim import generate
from antipure.methods.errors import AntiPureError
from antipure.methods.metrics.brisque import load_brisque
from antipure.methods.metrics.distribution import DenoiserFeatures, extract, kernel_distance
from antipure.methods.metrics.image import psnr
from antipure.methods.metrics.portrait_judge import BUNDLED as JUDGE
from antipure.methods.metrics.portrait_judge import fdfr, ism
from antipure.methods.pictures import round_8bit
from antipure.methods.protections import apply_protection
from antipure.methods.purification.purifiers import Purifier, parse_purifier
from torch import Tensor

from .customization_run import MATCHED
from .work import Clock, chosen, digest, load_denoisers, picture_digest, read, stage

NONE, CLEAN, BLIND = "none", "clean", "robust_blind"
NAME = "stranger 1"  # what the person is called in training and sampling
AFTER = (NONE, "gridpure10", "demo:diffpure100/20", "demo:vae")
VERSIONS = (
    *(CLEAN, "random", "smooth", MATCHED, "paper", "advdm", "anti_dreambooth_aspl", "simac"),
    *("photoguard", "mist", "pid", "strong", BLIND, "robust", "robust_set"),
)
# Offsets from HELD_OUT: persons to protect, and the others their samples must not be taken for.
PERSONS = (101, 202, 303, 404, 505)
IMPOSTORS = tuple(range(2001, 2009))
TRAINED_ON, LOOKED_AT = 4, 8  # portraits of a person: those to customize on, and others to know the person by
GUIDANCE = 3.0


@dataclass(frozen=True)
class Result:
    """One customization and what it draws. psnr: of the pictures trained on to the clean ones (at most 99)."""

    person: int
    version: str
    after: str
    seed: int
    psnr: float
    ism: float
    impostor: float
    d_prime: float
    fdfr: float
    kid: float
    brisque: float


def strip(pictures: Tensor) -> Tensor:
    """N×3×S×S side by side: 1×3×S×N·S."""
    return torch.cat(list(pictures), -1)[None]


def unstripped(pictures: Tensor) -> Tensor:
    return torch.cat(pictures.split(pictures.shape[-2], -1))


@cache
def portraits(person: int, first: int, count: int) -> Tensor:
    """Drawn portraits of a held-out person, count×3×128×128, 8-bit; styles as the shots have them."""
    from tools.latent_pool import HELD_OUT  # not installed: there from the repository's root
    from tools.portraits import draw_portraits

    drawn = draw_portraits([HELD_OUT + person] * count, range(first, first + count))
    return round_8bit(drawn.pictures)


@dataclass
class DemoRun:
    """All stages of one run, each taken from the work folder when it is there."""

    work: Path
    levels: float
    protection_steps: int
    settings: CustomizationSettings
    samples: int
    sampling_steps: int
    precision: str
    clock: Clock
    folder: Path = FOLDER

    @cached_property
    def model(self) -> DemoDenoiser:
        """What is customized and, before that, attacked by the published protections."""
        return load_demo_denoiser({"person": NAME}, self.folder, precision=self.precision)

    @cached_property
    def key(self) -> str:
        """Of the demo model's weights."""
        files = sorted(f for f in self.folder.glob("*.safetensors") if f != JUDGE)
        return digest(*((f.name, f.read_bytes()) for f in files))

    @cached_property
    def encoder_key(self) -> str:
        """Of the half of the VAE that a protection attacks."""
        state = self.model.autoencoder.network.state_dict()
        return digest(*((k, v.numpy().tobytes()) for k, v in state.items() if k.startswith("encoder.")))

    def attacker(self, text: str, seed: int = 0) -> Purifier:
        """What a thief does before customizing. Raises `AntiPureError` for what cannot be run."""
        return parse_purifier(text, load_denoisers() | {"demo": self.model}, seed)  # type: ignore[arg-type]

    def target(self, version: str) -> Target:
        """What a protection is made against."""
        bundled, sibling = (load_denoisers()[name] for name in ("bundled", "held_out"))
        if version in BASELINES:
            return self.model
        if version == BLIND:
            return combine(combine(bundled, sibling, "mean"), bundled_vae_targets(), "mean")
        if PRESETS[version].latent:
            vae = VaeTargets((self.model.autoencoder,))
            return combine(combine(bundled, sibling, "mean"), vae, "mean")
        return bundled

    def _attacked(self, version: str) -> str:
        """Of the weights of the demo model's that a protection is made against."""
        if version in BASELINES and BASELINES[version].needs != VAE:
            return self.key
        latent = version == MATCHED or (version in PRESETS and bool(PRESETS[version].latent))
        return self.encoder_key if latent or version in BASELINES else ""

    def _stage(self, kind: str, name: str, key: str, suffix: str, make: Callable[[], Tensor | dict]) -> Path:
        plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        path = self.work / kind / f"{plain}-{key}{suffix}"
        return stage(self.clock, kind, name, path, make)

    def clean(self, person: int) -> Tensor:
        return portraits(person, 0, TRAINED_ON)

    def protected(self, person: int, version: str, seed: int) -> Tensor:
        """The person's portraits under a protection, N×3×S×S, 8-bit."""
        clean = self.clean(person)
        if version == CLEAN:
            return clean
        preset = PRESETS.get(version.removesuffix("_blind"), None)
        against = self._attacked(version)
        of = chosen(PRESETS["robust"]) if version == MATCHED else chosen(preset)
        key = digest(picture_digest(clean), version, of, self.levels, self.protection_steps, seed, against)

        def make() -> Tensor:
            if version == MATCHED:
                made = self.protected(person, "robust", seed)
                pairs = zip(clean.split(1), made.split(1), strict=True)
                return strip(torch.cat([spectrum_matched(a, b, levels=self.levels, seed=seed) for a, b in pairs]))
            settings = AttackSettings(self.levels, self.protection_steps, seeds=seed)
            if version in CONTROLS:
                return strip(apply_protection(version, clean, None, settings))
            name = "robust" if version == BLIND else version
            target = self.target(version)
            with target.session():
                return strip(apply_protection(name, clean, target, settings))

        return unstripped(read(self._stage("protected", f"{person}-{version}-s{seed}", key, ".png", make)))

    def purified(self, name: str, pictures: Tensor, text: str, seed: int) -> Tensor:
        """What an attacker makes of pictures. name: person and version."""
        if text == NONE:
            return pictures
        key = digest(picture_digest(pictures), text, seed, self.key if "demo" in text else "")

        def make() -> Tensor:
            purifier = self.attacker(text, seed + 1000)
            with purifier.session():
                return strip(purifier(pictures))

        return unstripped(read(self._stage("purified", f"{name}-{text}-s{seed}", key, ".png", make)))

    def drawn(self, name: str, pictures: Tensor | None, seed: int) -> Tensor:
        """What the model draws when asked for the name, after learning it from these pictures (None: not at all)."""
        trained = NONE if pictures is None else (picture_digest(pictures), asdict(self.settings))
        key = digest(trained, seed, self.key, self.precision, self.samples, self.sampling_steps, GUIDANCE)

        def make() -> Tensor:
            with self.model.session():
                if pictures is None:
                    return strip(self._drawn(seed))
                with customized(self.model, pictures, self.settings, seed):
                    return strip(self._drawn(seed))

        return unstripped(read(self._stage("samples", name, key, ".png", make)))

    def _drawn(self, seed: int) -> Tensor:
        with self.model.guided(GUIDANCE):
            return round_8bit(generate(self.model, self.samples, seed=seed, steps=self.sampling_steps))

    @cached_property
    def _features(self) -> DenoiserFeatures:
        return DenoiserFeatures(load_denoisers()["bundled"], "bundled denoiser")

    def result(self, person: int, version: str, text: str, seed: int, trained: Tensor | None) -> Result:
        """Figures of one customization; version names those who were not customized at all, too."""
        samples = self.drawn(f"{person}-{version}-{text}-s{seed}", trained, seed)
        subject = portraits(person, 100, LOOKED_AT)
        key = digest(picture_digest(samples), picture_digest(subject), judge_key())

        def make() -> dict:
            known = ism(samples, subject, [portraits(other, 100, TRAINED_ON) for other in IMPOSTORS])
            both = torch.cat([self.clean(person), subject])
            kid, _ = kernel_distance(*(extract(x, self._features) for x in (samples, both)))
            return {
                "ism": known.ism,
                "impostor": known.impostor,
                "d_prime": known.d_prime,
                "fdfr": fdfr(samples),
                "kid": kid,
                "brisque": float(load_brisque()(samples).mean()),
            }

        path = self._stage("figures", f"{person}-{version}-{text}-s{seed}", key, ".json", make)
        figures = json.loads(path.read_text(encoding="utf-8"))
        clean = self.clean(person)
        distance = 99.0 if trained is None else min(float(psnr(clean, trained).mean()), 99.0)
        return Result(person, version, text, seed, distance, **figures)


@cache
def judge_key() -> str:
    return digest(JUDGE.read_bytes())


BASE = "base"  # the model as it is, not customized


def measure(
    run: DemoRun,
    persons: Iterable[int],
    versions: list[str],
    after: list[str],
    seeds: int,
    finished: Callable[[list[Result]], object] = lambda results: None,
) -> tuple[list[Result], dict[str, str]]:
    """All results, and the versions that the model does not take, with the reason.

    finished: called after every seed and attacker with the results that are there.
    """
    results: list[Result] = []
    left_out: dict[str, str] = {}
    for seed in range(seeds):
        for text in after:
            for person in persons:
                if text == after[0]:
                    results.append(run.result(person, BASE, NONE, seed, None))
                for version in [v for v in versions if v not in left_out]:
                    try:
                        pictures = run.protected(person, version, seed)
                    except AntiPureError as error:
                        print(f"{version} is left out: {error}", flush=True)
                        left_out[version] = str(error)
                        continue
                    trained = run.purified(f"{person}-{version}", pictures, text, seed)
                    results.append(run.result(person, version, text, seed, trained))
            finished(results)
    return results, left_out


def planned(persons: int, versions: list[str], after: list[str], seeds: int) -> Counter:
    each = persons * seeds
    cells = each * (len(versions) * len(after) + 1)
    return Counter(
        protected=each * (len(versions) - 1) * len(after),  # asked for once per attacker, made once
        purified=each * len(versions) * (len(after) - 1),
        samples=cells,
        figures=cells,
    )
