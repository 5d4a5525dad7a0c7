"""The whole loop protect → purify → customize → generate → measure: `python -m benchmarks.customization`.

Every version of every subject (clean, controls, baselines, presets) is customized on after every attacker of --after
(texts of `methods/purification/purifiers.py`; "none": as it is), and judged by

* the customization gap: denoising loss on clean crops of the subject, less that of customizing on the clean picture
  with the same seed (`methods/customization/gap.py`), at timesteps 20-100 (fine structure) and 100-400 (coarse); the
  base model's stands beside it, and the worst attacker's, picture by picture and seed by seed. Where an attacker
  leaves pictures at another size, so do the crops and the clean picture that its customization is compared with;
* with --samples, samples against the clean crops: sliced Wasserstein distance of 8-px patches, KID in the feature
  space of the bundled denoiser (uncustomized), distance of the radial spectra in dB. From pure noise the bundled model
  makes texture in arbitrary colours; its samples therefore start from the colours of clean crops (means of 16-px
  blocks, noised to timestep 500), the same for every version, and what they judge is the detail that the weights put
  in.

A seed is that of protection, purifier, customization and samples together. The table has means and 95 % confidence
intervals (Student's t), over the seeds' means and over pictures × seeds. Anti-DreamBooth FSMG gets what its paper
asks for, a surrogate customized on the clean picture. Versions that the model does not take (Mist's textural mode
needs a VAE) are named and left out.

Every stage is kept under --work, named by the settings it depends on, and an interrupted run goes on from there, also
with more versions, attackers or seeds; after a change of the algorithms themselves give another folder. The tables
are written anew after every finished column of the first seed, and after every further seed.

Protections work against the bundled denoiser. `--after judge:gridpure10` purifies with one that none is made against,
and --customize judge customizes that one. --pipeline FOLDER customizes a local Stable Diffusion model and not the
bundled one; the baselines then protect against that model, the presets against the bundled purifier.

--model demo takes the bundled latent model, which draws, and persons in place of pictures (`customization_demo.py`):
tables of ISM, FDFR, KID and BRISQUE, and a sheet of what was drawn.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from antipure.methods.antipure.objective import PRESETS
from antipure.methods.baselines import BASELINES
from antipure.methods.controls import CONTROLS
from antipure.methods.customization.demo_denoiser import DEMO_SETTINGS
from antipure.methods.customization.dreambooth_lora import CustomizationSettings
from antipure.methods.customization.pipeline import PIPELINE_SETTINGS
from antipure.methods.errors import AntiPureError
from antipure.methods.metrics.image import psnr
from torch import Tensor

from . import customization_demo as demo
from . import customization_demo_report as demo_report
from . import sets
from .customization_report import BASE, CLEAN, NONE, REFERENCE, Result, markdown, sheet
from .customization_run import MATCHED, Run, attacker
from .precision import AUTO, CHOICES, precision_for_cpu
from .work import DENOISERS, PICTURES, Clock, machine, read, write

SUBJECTS = ("hopper", "painting_portrait")
AFTER = (NONE, "gridpure10", "judge:gridpure10")
VERSIONS = (
    CLEAN,
    "random",
    MATCHED,
    "advdm",
    "mist_textural",
    "anti_dreambooth_fsmg",
    "anti_dreambooth_aspl",
    "simac",
    *sorted(PRESETS, key=lambda name: (name != "paper", name != "strong")),
)
Shown = dict[str, dict[str, Tensor]]


def measure(
    run: Run,
    subjects: dict[str, Tensor],
    versions: list[str],
    after: list[str],
    seeds: int,
    finished: Callable[[list[Result]], object] = lambda results: None,
) -> tuple[list[Result], Shown, dict[str, str]]:
    """All results; per subject the pictures of the first seed by name; and the versions left out, with the reason.

    finished: called with what can be tabled already, after every column of the first seed and every further seed.
    """
    results: list[Result] = []
    left_out: dict[str, str] = {}
    shown: Shown = {subject: {"original": clean} for subject, clean in subjects.items()}

    def add(subject: str, version: str, text: str, seed: int, picture: Tensor | None, seen: Tensor) -> None:
        viewed = seen is not subjects[subject]
        figures, samples = run.result(f"{subject}-{version}-{text}-s{seed}", picture, seen, seed)
        distance = None if picture is None else min(float(psnr(seen, picture)), 99.0)
        values = {name: figures.get(name) for name in (*Result.LOSSES, *Result.SAMPLES)}
        results.append(Result(subject, version, text, seed, text if viewed else "", distance, **values))
        if seed == 0 and samples is not None and version != REFERENCE:
            if picture is not None:
                shown[subject][f"{version}, {text}"] = picture
            shown[subject][f"{version}, {text}: samples"] = samples

    def protected(subject: str, version: str, seed: int) -> Tensor | None:
        try:
            return run.protected(subject, subjects[subject], version, seed)
        except AntiPureError as error:
            print(f"{version} is left out: {error}", flush=True)
            left_out[version] = str(error)
            each = seeds * len(subjects)
            run.clock.planned["protected"] -= each
            run.clock.planned["purified"] -= each * sum(text != NONE for text in after)
            run.clock.planned["customized"] -= each * len(after)
            return None

    for seed in range(seeds):
        for text in after:
            for subject, clean in subjects.items():
                seen = run.view(clean, text)
                if seen.shape == clean.shape and torch.equal(seen, clean):
                    seen = clean
                if text == after[0] or seen is not clean:
                    add(subject, BASE, text, seed, None, seen)
                if seen is not clean:
                    add(subject, REFERENCE, text, seed, seen, seen)
                for version in versions:
                    picture = None if version in left_out else protected(subject, version, seed)
                    if picture is not None:
                        name = f"{subject}-{version}-{text.replace(':', '_').replace('/', '_')}-s{seed}"
                        add(subject, version, text, seed, run.purified(name, picture, text, seed), seen)
            if seed == 0 and text != after[-1]:
                finished(results)
        finished(results)
    return results, shown, left_out


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="denoiser", choices=("denoiser", "demo"), help="demo: a model that draws")
    parser.add_argument("--persons", nargs="+", type=int, default=list(demo.PERSONS[:3]), help="of --model demo")
    parser.add_argument("--pictures", nargs="+", default=list(SUBJECTS), help="of benchmarks/pictures, or files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--versions", nargs="+", help="protections, controls, clean")
    parser.add_argument("--after", nargs="+", help="attackers, as in methods/purification/purifiers.py")
    parser.add_argument("--levels", type=float, default=8, help="budget of every protection")
    parser.add_argument("--protection-steps", type=int, default=40, help="PGD steps of every protection")
    parser.add_argument("--customize", default="bundled", choices=list(DENOISERS), help="the denoiser customized")
    parser.add_argument("--steps", type=int, help="of customization")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--samples", type=int, default=16, help="0: none, and 4 or more else")
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--probe-crops", type=int, default=128)
    parser.add_argument("--precision", default=AUTO, choices=CHOICES, help="of the customized model")
    parser.add_argument("--pipeline", type=Path, help="customize this local Stable Diffusion folder")
    parser.add_argument("--prompt", default="a photo of sks subject", help="instance prompt of --pipeline")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("customization-work"), help="folder for finished stages")
    parser.add_argument("--out", type=Path, help="folder for the sheets of pictures and results.json")
    parser.add_argument("--markdown", type=Path, help="write the tables there, too")
    args = parser.parse_args()
    defaults = (demo.VERSIONS, demo.AFTER) if args.model == "demo" else (VERSIONS, AFTER)
    args.versions, args.after = args.versions or list(defaults[0]), args.after or list(defaults[1])
    if args.samples < 0 or 0 < args.samples < 4:
        parser.error("--samples takes 0, or 4 and more: a sheet shows four.")
    return args


def read_subjects(names: list[str]) -> dict[str, Tensor]:
    """Pictures by name: of the sets, of benchmarks/pictures, or files. Ends the program where there is none."""
    known, found = sets.load(), {}
    for name in names:
        file = Path(name) if Path(name).is_file() else PICTURES / f"{name}.png"
        if name not in known and not file.is_file():
            raise SystemExit(f"There is no picture {file}.")
        found[name if name in known else file.stem] = known[name].read() if name in known else read(file)
    return found


def run_demo(args: argparse.Namespace) -> None:
    """The same with the demo model: tables and, with --out, a sheet per person."""
    settings = chosen_settings(args, DEMO_SETTINGS)
    versions = list(dict.fromkeys([CLEAN, *args.versions]))
    after = list(dict.fromkeys([NONE, *args.after]))
    known = [CLEAN, MATCHED, *CONTROLS, *BASELINES, *PRESETS, demo.BLIND]
    check_versions(versions, known)
    run = demo.DemoRun(
        work=args.work,
        levels=args.levels,
        protection_steps=args.protection_steps,
        settings=settings,
        samples=args.samples or 16,
        sampling_steps=args.sampling_steps,
        precision=precision_for_cpu(args.precision),
        clock=Clock(demo.planned(len(args.persons), versions, after, args.seeds)),
    )
    for text in after:
        run.attacker(text)
    head = (
        f"{machine()}. Persons {', '.join(map(str, args.persons))}; {demo.TRAINED_ON} portraits each; {args.levels:g} "
        f"levels, {args.protection_steps} PGD steps; demo model {run.key}, {run.precision}, rank {settings.rank}, "
        f"{settings.steps} steps of {settings.batch} pictures at {settings.learning_rate:g}; {run.samples} samples in "
        f"{args.sampling_steps} steps at CFG {demo.GUIDANCE:g}."
    )

    def table(results: list[demo.Result]) -> str:
        seeds, columns = 1 + max(r.seed for r in results), len({r.after for r in results})
        text = f"{head} {seeds} of {args.seeds} seeds, {columns} attackers.\n\n{demo_report.markdown(results)}"
        if args.markdown:
            args.markdown.write_text(text + "\n", encoding="utf-8")
        if args.out:
            write(args.out / "results.json", {"settings": head, "results": [asdict(result) for result in results]})
        return text

    results, left_out = demo.measure(run, args.persons, versions, after, args.seeds, table)
    head += "".join(f" Left out: `{version}` ({reason})" for version, reason in left_out.items())
    print(f"\n{table(results)}")
    versions = [version for version in versions if version not in left_out]
    if args.out:
        for person in args.persons:
            write(args.out / f"person-{person}.png", demo_report.sheet(run, person, versions, after[:2]))


def chosen_settings(args: argparse.Namespace, defaults: CustomizationSettings) -> CustomizationSettings:
    changes = {"steps": args.steps, "learning_rate": args.learning_rate}
    return replace(defaults, **{k: v for k, v in changes.items() if v is not None})


def check_versions(versions: list[str], known: list[str]) -> None:
    """Ends the program where a version is none."""
    unknown = [v for v in versions if v not in known]
    if unknown:
        raise SystemExit(f"There is no version '{unknown[0]}'; choose from {', '.join(known)}.")


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    if args.model == "demo":
        run_demo(args)
        return
    settings = chosen_settings(args, PIPELINE_SETTINGS if args.pipeline else CustomizationSettings())
    # The references that the figures are read against are always there.
    versions = list(dict.fromkeys([CLEAN, *args.versions]))
    after = list(dict.fromkeys([NONE, *args.after]))
    check_versions(versions, [CLEAN, MATCHED, *CONTROLS, *BASELINES, *PRESETS])
    subjects = read_subjects(args.pictures)
    each = args.seeds * len(subjects)
    planned = Counter(
        protected=each * (len(versions) - 1),
        purified=each * len(versions) * (len(after) - 1),
        customized=each * (len(versions) * len(after) + 1),
    )
    run = Run(
        work=args.work,
        levels=args.levels,
        protection_steps=args.protection_steps,
        settings=settings,
        samples=args.samples,
        sampling_steps=args.sampling_steps,
        probe_crops=args.probe_crops,
        precision=precision_for_cpu(args.precision),
        customize=args.customize,
        pipeline=args.pipeline,
        prompt=args.prompt,
        clock=Clock(planned),
    )
    for text in after:  # what cannot be run is said before anything is
        attacker(text)
    head = (
        f"{machine()}. "
        f"{', '.join(subjects)}; {args.levels:g} levels, {args.protection_steps} PGD steps; "
        f"customization: {'pipeline' if args.pipeline else f'{args.customize} denoiser'}, "
        f"rank {settings.rank}, {settings.steps} steps of {settings.batch} crops at {settings.learning_rate:g}, "
        f"{run.precision}; probes of {args.probe_crops} crops"
    )
    head += f"; {args.samples} samples in {args.sampling_steps} DDIM steps." if args.samples else "; no samples."

    def table(results: list[Result]) -> str:
        done = 1 + max(r.seed for r in results)
        text = f"{head} {done} of {args.seeds} seeds.\n\n{markdown(results)}"
        if args.markdown:
            args.markdown.write_text(text + "\n", encoding="utf-8")
        if args.out:
            write(args.out / "results.json", {"settings": head, "results": [asdict(result) for result in results]})
        return text

    results, shown, left_out = measure(run, subjects, versions, after, args.seeds, table)
    head += "".join(f" Left out: `{version}` ({reason})" for version, reason in left_out.items())
    print(f"\n{table(results)}")
    if args.out and args.samples:
        for subject, pictures in shown.items():
            write(args.out / f"{subject}.png", sheet(pictures))


if __name__ == "__main__":
    main()
