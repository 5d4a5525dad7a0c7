"""The whole loop protect → purify → customize → generate → measure: `python -m benchmarks.customization`.

Every version of every subject (clean, controls, baselines, presets; as it is, and after --purifier, GrIDPure on the
bundled denoiser by default) is customized on, and judged by

* the customization gap: denoising loss on clean crops of the subject, less that of customizing on the clean picture
  with the same seed (`methods/customization/gap.py`); the base model's stands beside it;
* samples against the clean crops: sliced Wasserstein distance of 8-px patches, KID in the feature space of the bundled
  denoiser (uncustomized), distance of the radial spectra in dB. From pure noise the bundled model makes texture in
  arbitrary colours; its samples therefore start from the colours of clean crops (means of 16-px blocks, noised to
  timestep 500), the same for every version, and what they judge is the detail that the weights put in.

A seed is that of protection, purifier, customization and samples together. The table has means and 95 % confidence
intervals (Student's t), over the seeds' means and over pictures × seeds. Anti-DreamBooth FSMG gets what its paper
asks for, a surrogate customized on the clean picture. Versions that the model does not take (Mist's textural mode
needs a VAE) are named and left out.

Every stage is kept under --work, named by the settings it depends on, and an interrupted run goes on from there; after
a change of the algorithms themselves give another folder.

Protections work against the bundled denoiser. --purifier held_out:gridpure10@15 purifies with one they have not seen,
and --customize held_out customizes that one. --pipeline FOLDER customizes a local Stable Diffusion model
and not the bundled one; the baselines then protect against that model, the presets against the bundled purifier.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from antipure.methods.antipure.objective import PRESETS
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.baselines import BASELINES
from antipure.methods.controls import CONTROLS, spectrum_matched
from antipure.methods.customization.dreambooth_lora import CustomizationSettings, customized
from antipure.methods.customization.gap import Probe, judge_samples, make_probe, probe_loss
from antipure.methods.customization.pipeline import PIPELINE_SETTINGS, load_pipeline
from antipure.methods.diffusion.checkpoints import load_denoiser
from antipure.methods.diffusion.ddim import generate
from antipure.methods.diffusion.pixel import PixelDenoiser
from antipure.methods.errors import AntiPureError
from antipure.methods.metrics.distribution import DenoiserFeatures
from antipure.methods.metrics.image import psnr
from antipure.methods.pictures import round_8bit
from antipure.methods.protections import apply_protection
from antipure.methods.purification.purifiers import parse_purifier
from torch import Tensor

from .customization_report import Result, markdown, sheet
from .work import DENOISERS, PICTURES, Clock, digest, kept, load_denoisers, machine, picture_digest, read, write

SUBJECTS = ("hopper", "raccoon")
MATCHED = "matched"
BASE = "base"  # the model as it is, not customized
VERSIONS = (
    "clean",
    "random",
    MATCHED,
    "advdm",
    "mist_textural",
    "anti_dreambooth_fsmg",
    "anti_dreambooth_aspl",
    "simac",
    *sorted(PRESETS, key=lambda name: (name != "paper", name != "strong")),
)
SAMPLES = 16
START_BLOCK, START_TIMESTEP = 16, 500


@dataclass
class Run:
    """All stages of one run, each taken from the work folder when it is there."""

    work: Path
    levels: float
    protection_steps: int
    purifier: str
    settings: CustomizationSettings
    sampling_steps: int
    probe_crops: int
    precision: str
    customize: str
    pipeline: Path | None
    prompt: str
    clock: Clock

    @property
    def surrogate(self) -> PixelDenoiser:
        """The bundled denoiser in fp32: it protects, and gives the features."""
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

    def _stage(self, kind: str, name: str, key: str, suffix: str, make) -> Path:
        path = self.work / kind / f"{name}-{key}{suffix}"
        there, began = path.is_file(), time.time()
        kept(path, make)
        self.clock.done(kind, name, None if there else time.time() - began)
        return path

    def protected(self, subject: str, clean: Tensor, version: str, seed: int) -> Tensor:
        """The picture under a protection. Raises `AntiPureError` where the model does not take it."""
        if version == "clean":
            return clean
        key = digest(
            picture_digest(clean), version, repr(PRESETS.get(version)), self.levels, self.protection_steps, seed,
            self.model_key("bundled") if version in BASELINES else "",
            (self.settings if version == "anti_dreambooth_fsmg" else ""),
            repr(PRESETS["strong"]) if version == MATCHED else "",
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
            return apply_protection(
                version, clean, model, AttackSettings(self.levels, self.protection_steps, seeds=seed)
            )

    def purified(self, name: str, picture: Tensor, seed: int) -> Tensor:
        purifier = parse_purifier(self.purifier, load_denoisers(), seed)
        key = digest(picture_digest(picture), str(purifier), seed)
        return read(self._stage("purified", name, key, ".png", lambda: purifier(picture)))

    def result(self, name: str, picture: Tensor | None, clean: Tensor, seed: int) -> tuple[dict, Tensor]:
        """Figures and a 2×2 picture of samples after customizing on a picture (None: not at all)."""
        trained = "base" if picture is None else (picture_digest(picture), asdict(self.settings))
        key = digest(
            trained,
            picture_digest(clean),
            (START_BLOCK, START_TIMESTEP),
            self.sampling_steps,
            self.probe_crops,
            seed,
            self.model_key(self.customize),
        )
        samples = self.work / "samples" / f"{name}-{key}.png"

        def make() -> dict:
            probe = self._probe(clean)
            began = time.time()
            with nullcontext() if picture is None else customized(self.model, picture, self.settings, seed) as c:
                trained_in = time.time() - began
                loss = probe_loss(self.model, probe)
                found = round_8bit(self._generate(probe, seed))
            crops = probe.pictures[:: max(1, len(probe.crops) // 64)]
            features = DenoiserFeatures(self.surrogate, "bundled denoiser")
            write(samples, torch.cat([torch.cat(list(found[i : i + 2]), -1) for i in (0, 2)], -2)[None])
            losses = [] if picture is None else [sum(p) / len(p) for p in (c.losses[:20], c.losses[-20:])]
            return {
                "loss": loss,
                **judge_samples(found, crops, features),
                "training_loss_first_and_last_20": losses,
                "training_seconds": trained_in,
            }

        path = self._stage("customized", name, key, ".json", make)
        return json.loads(path.read_text(encoding="utf-8")), read(samples)

    def _probe(self, clean: Tensor) -> Probe:
        return make_probe(self.model, clean, count=self.probe_crops, resize=self.settings.resize)

    def _generate(self, probe: Probe, seed: int) -> Tensor:
        if self.pipeline is None:
            crops = probe.pictures
            crops = crops[[i % len(crops) for i in range(SAMPLES)]]
            start = F.interpolate(F.avg_pool2d(crops, START_BLOCK), crops.shape[-2:], mode="bilinear")
            settings = {"start": start, "timestep": START_TIMESTEP, "steps": self.sampling_steps}
            return generate(self.model, SAMPLES, seed=seed, **settings)
        return self.model.generate(SAMPLES, seed, steps=self.sampling_steps)


def measure(run: Run, subjects: dict[str, Tensor], versions: list[str], seeds: int) -> tuple[list[Result], dict, dict]:
    """All results; per subject the pictures of the first seed by name; and the versions left out, with the reason."""
    results: list[Result] = []
    left_out: dict[str, str] = {}
    shown: dict[str, dict[str, Tensor]] = {subject: {"original": clean} for subject, clean in subjects.items()}

    def add(subject: str, version: str, purified: bool, seed: int, picture: Tensor | None) -> None:
        clean = subjects[subject]
        name = f"{subject}-{version}{'-purified' if purified else ''}-s{seed}"
        figures, samples = run.result(name, picture, clean, seed)
        distance = None if picture is None else min(float(psnr(clean, picture)), 99.0)
        results.append(Result(subject, version, purified, seed, distance, **{k: figures[k] for k in Result.FIGURES}))
        if seed == 0:
            title = f"{version}{', purified' if purified else ''}"
            if picture is not None:
                shown[subject][title] = picture
            shown[subject][f"{title}: samples"] = samples

    for seed in range(seeds):
        for subject, clean in subjects.items():
            add(subject, BASE, False, seed, None)
            for version in versions:
                if version in left_out:
                    continue
                try:
                    picture = run.protected(subject, clean, version, seed)
                except AntiPureError as error:
                    print(f"{version} is left out: {error}", flush=True)
                    left_out[version] = str(error)
                    for kind, times in (("protected", 1), ("purified", 1), ("customized", 2)):
                        run.clock.planned[kind] -= times * seeds * len(subjects)
                    continue
                add(subject, version, False, seed, picture)
                name = f"{subject}-{version}-s{seed}"
                add(subject, version, True, seed, run.purified(name, picture, seed))
    return results, shown, left_out


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", nargs="+", default=list(SUBJECTS), help="names in benchmarks/pictures, or files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--versions", nargs="+", default=list(VERSIONS))
    parser.add_argument("--levels", type=float, default=8, help="budget of every protection")
    parser.add_argument("--protection-steps", type=int, default=40, help="PGD steps of every protection")
    parser.add_argument("--purifier", default="gridpure10", help="as in methods/purification/purifiers.py")
    parser.add_argument("--customize", default="bundled", choices=list(DENOISERS), help="the denoiser customized")
    parser.add_argument("--steps", type=int, help="of customization")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--probe-crops", type=int, default=128)
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"], help="of the customized model")
    parser.add_argument("--pipeline", type=Path, help="customize this local Stable Diffusion folder")
    parser.add_argument("--prompt", default="a photo of sks subject", help="instance prompt of --pipeline")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("customization-work"), help="folder for finished stages")
    parser.add_argument("--out", type=Path, help="folder for the sheets of pictures and results.json")
    parser.add_argument("--markdown", type=Path, help="write the tables there, too")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    settings = PIPELINE_SETTINGS if args.pipeline else CustomizationSettings()
    changes = {"steps": args.steps, "learning_rate": args.learning_rate}
    settings = replace(settings, **{k: v for k, v in changes.items() if v is not None})
    # The references that the figures are read against are always there.
    versions = ["clean", *(v for v in dict.fromkeys(args.versions) if v != "clean")]
    unknown = [v for v in versions if v not in {"clean", MATCHED, *CONTROLS, *BASELINES, *PRESETS}]
    if unknown:
        known = ", ".join(["clean", MATCHED, *CONTROLS, *BASELINES, *PRESETS])
        raise SystemExit(f"There is no version '{unknown[0]}'; choose from {known}.")
    files = [Path(p) if Path(p).is_file() else PICTURES / f"{p}.png" for p in args.pictures]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise SystemExit(f"There is no picture {missing[0]}.")
    subjects = {file.stem: read(file) for file in files}
    each = args.seeds * len(subjects)
    planned = Counter(
        protected=each * (len(versions) - 1),
        purified=each * len(versions),
        customized=each * (2 * len(versions) + 1),
    )
    run = Run(
        work=args.work,
        levels=args.levels,
        protection_steps=args.protection_steps,
        purifier=args.purifier,
        settings=settings,
        sampling_steps=args.sampling_steps,
        probe_crops=args.probe_crops,
        precision=args.precision,
        customize=args.customize,
        pipeline=args.pipeline,
        prompt=args.prompt,
        clock=Clock(planned),
    )
    parse_purifier(run.purifier, load_denoisers())  # what cannot be run is said before anything is
    results, shown, left_out = measure(run, subjects, versions, args.seeds)
    head = (
        f"{machine()}. "
        f"{', '.join(subjects)}; {args.seeds} seeds; {args.levels:g} levels, {args.protection_steps} PGD steps; "
        f"purified by {args.purifier}; customization: {'pipeline' if args.pipeline else f'{args.customize} denoiser'}, "
        f"rank {settings.rank}, {settings.steps} steps of {settings.batch} crops at {settings.learning_rate:g}, "
        f"{args.precision}; {SAMPLES} samples in {args.sampling_steps} DDIM steps."
    )
    head += "".join(f" Left out: `{version}` ({reason})" for version, reason in left_out.items())
    text = f"{head}\n\n{markdown(results, BASE)}"
    print(f"\n{text}")
    if args.markdown:
        args.markdown.write_text(text + "\n", encoding="utf-8")
    if args.out:
        write(args.out / "results.json", {"settings": head, "results": [asdict(result) for result in results]})
        for subject, pictures in shown.items():
            write(args.out / f"{subject}.png", sheet(pictures))


if __name__ == "__main__":
    main()
