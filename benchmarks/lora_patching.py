"""LoRA patching on the bundled toy generator and held-out faces, in one table: `python -m benchmarks.lora_patching`.

Trains an evaluation patch (rank 8, 1 epoch of 1,000 faces) and a defensive one (rank 16, 5 epochs), unless --patches
names a folder that has them already, and prints:

* how often Disrupting (made against the original network, or against the patched one), noise and JPEG disrupt edits;
* how near patched edits come to the truth (the same face drawn with the other attributes) and to the original's;
* how often the defensive patch's warning is visible, and after JPEG;
* both references, valid cases and Wilson's intervals, and a strong defender against original and patched network;
* with --other, how Disrupting made against another patch (of another seed, say) fares against this one;
* the ablation of gates and of feature alignment, parameter overheads, and what merging costs and changes;
* the processor time of every stage and thread, which other work on the machine changes less than the wall clock.

Without pretrained encoders at hand the alignment's backbone is the bundled denoiser's middle block. Hours on a CPU for
all of it; --faces, --epochs, --ablation-faces and --held-out make it smaller, and the figures then say so. With
--patches whatever is finished is kept there, ten faces at a time, and the same command goes on. --out writes the
reports as JSON. `--only initialisation --size 32 --steps 60 --seeds 5` compares how patches start, and holds every one
against the next seed's; `--only transfer` does so with one start alone.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import time
from pathlib import Path
from statistics import median

import torch
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.diffusion.checkpoints import load_denoiser
from antipure.methods.figures.inspection_sheet import labelled_sheet
from antipure.methods.figures.text_table import text_table
from antipure.methods.generators.attgan import AttGANNetwork
from antipure.methods.generators.hisd import HiSDNetwork
from antipure.methods.generators.loading import load_generator
from antipure.methods.generators.procedural_faces import HELD_OUT, draw_edited, draw_faces
from antipure.methods.generators.stargan import StarGANNetwork
from antipure.methods.lora_patching.cmua import universal_watermark
from antipure.methods.lora_patching.defence_report import defence_report
from antipure.methods.lora_patching.defence_table import INPUTS, DefenceReport
from antipure.methods.lora_patching.disrupting import LEVELS, STEPS
from antipure.methods.lora_patching.low_rank import GATES, INITIALISATIONS, STRONGER, PatchConfig
from antipure.methods.lora_patching.mmfa import MMFA
from antipure.methods.lora_patching.patch import LoraPatch, apply_patch, merge_patch, parameter_overhead, patched
from antipure.methods.lora_patching.save_and_load import load_patch, patch_bytes, save_patch
from antipure.methods.lora_patching.training import TrainingConfig, train_patch
from antipure.methods.lora_patching.warning import PLACEMENTS, text_warning, tiled_warning
from antipure.methods.metrics.distribution import DenoiserFeatures
from antipure.methods.metrics.image import psnr, ssim
from antipure.methods.pictures import round_8bit, to_picture, to_pixels, to_uint8
from PIL import Image
from torch import Tensor

from .lora_patching_runs import Bar, compare_initialisations, in_parts
from .precision import AUTO, CHOICES, precision_for_cpu
from .processor_time import ProcessorTime
from .work import digest, write

QUALITY = 75
OVER_SEEDS = ("initialisation", "transfer")


@torch.no_grad()
def against_truth(generator, patch: LoraPatch | None, seeds: range) -> tuple[float, float]:
    """PSNR and SSIM of benign edits against the truth, means over edits and faces."""
    values = []
    faces = round_8bit(draw_faces(seeds))
    with patched(generator, patch):
        for edit in generator.edits:
            truth = round_8bit(draw_edited(seeds, edit))
            output = torch.cat([generator.edit(part, edit) for part in to_pixels(faces).split(10)])
            output = round_8bit(to_picture(output))
            values.append(torch.stack([psnr(truth, output), ssim(truth, output)]))
    return tuple(float(v) for v in torch.cat(values, 1).mean(1))


def trained(
    path: Path | None, generator, faces: Tensor, config: TrainingConfig, mmfa: MMFA | None = None, **given
) -> LoraPatch:
    """The patch in a file, or a new one that is saved there."""
    if path is not None and path.is_file():
        return load_patch(path)
    began = time.time()
    state = None if path is None else path.with_suffix(".state")
    title = path.stem if path is not None else config.mode
    result = train_patch(generator, faces, config, mmfa=mmfa, progress=Bar(title), state_file=state, **given)
    print(f"{title}: {len(result.history)} steps in {(time.time() - began) / 60:.1f} min", flush=True)
    if path is not None:
        save_patch(result.patch, path)
        state.unlink(missing_ok=True)
    return result.patch


def overheads() -> None:
    with torch.device("meta"):
        networks = {"StarGAN": StarGANNetwork(), "AttGAN": AttGANNetwork(), "HiSD": HiSDNetwork()}
    rows = []
    for name, network in networks.items():
        count = sum(p.numel() for p in network.parameters()) / 1e6
        rows.append((name, f"{count:.2f} M", f"{100 * parameter_overhead(network, PatchConfig(8)):.2f} %"))
    print("\n" + text_table(("network", "parameters", "overhead at rank 8, scalar gates"), rows))


@torch.no_grad()
def merging(generator, patch: LoraPatch, faces: Tensor, repeats: int = 15) -> None:
    """Time of an edit against the unpatched network's, interleaved, and the largest difference in the output."""
    pixels, edit = to_pixels(faces[:4]), generator.edits[0]
    times: dict[str, list[float]] = {"original": [], "patched": [], "merged": []}
    outputs = {}
    for _ in range(repeats):
        for name, apply in (("original", None), ("patched", apply_patch), ("merged", merge_patch)):
            applied = apply(generator, patch) if apply else None
            began = time.perf_counter()
            outputs[name] = generator.edit(pixels, edit)
            times[name].append(time.perf_counter() - began)
            if applied:
                applied.remove()
    base = median(times["original"])
    rows = []
    for name in ("patched", "merged"):
        difference = float((outputs[name] - outputs["patched"]).abs().max())
        rows.append((name, f"{median(times[name]) / base:.3f}", f"{difference:.1e}"))
    head = ("", "time of an edit over the original's", "largest difference to the unmerged output")
    print("\n" + text_table(head, rows))


def table(report: DefenceReport, title: str) -> None:
    print(f"\n**{title}**\n\n{report.markdown()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=1000, help="training faces")
    parser.add_argument("--epochs", type=int, help="of the defensive patch (default: the paper's 5)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of the defensive patch (the paper's)")
    parser.add_argument("--held-out", type=int, default=50, help="faces to measure on")
    parser.add_argument(
        "--ablation-faces", type=int, default=200, help="training faces of the ablation; 0: no ablation"
    )
    parser.add_argument("--precision", default=AUTO, choices=CHOICES)
    parser.add_argument("--patches", type=Path, help="folder to keep trained patches in, and to take them from")
    parser.add_argument("--sheet", type=Path, help="write a picture of the defensive patch's examples")
    parser.add_argument("--only", choices=["evaluation", "defensive", *OVER_SEEDS])
    parser.add_argument("--initialisation", default=STRONGER, choices=INITIALISATIONS)
    parser.add_argument("--placement", default=PLACEMENTS[0], choices=PLACEMENTS, help="of the defensive warning")
    parser.add_argument("--edits", help="names separated by commas, to train and measure; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of training and measuring")
    parser.add_argument("--seeds", type=int, default=5, help="of --only initialisation, transfer: patches per start")
    parser.add_argument("--size", type=int, default=32, help="there: side of the faces")
    parser.add_argument("--steps", type=int, default=60, help="there: training steps")
    parser.add_argument(
        "--watermark-faces", type=int, default=64, help="training faces that CMUA-Watermark is made from; 0: without"
    )
    parser.add_argument("--other", type=Path, help="a patch of the toy: adds the rows of Disrupting made against it")
    parser.add_argument("--no-strong", action="store_true", help="without the strong defender, most of a report's time")
    parser.add_argument("--out", type=Path, help="write the reports' figures as JSON")
    args = parser.parse_args()
    args.precision = precision_for_cpu(args.precision)
    if args.only in OVER_SEEDS:
        starts = INITIALISATIONS if args.only == OVER_SEEDS[0] else (args.initialisation,)
        given = (args.size, args.steps, args.seeds, args.held_out, args.precision, args.patches)
        found = compare_initialisations(*given, starts)
        if args.out:
            write(args.out, found)
        return

    generator = load_generator()
    other = load_patch(args.other) if args.other else None
    spent = ProcessorTime()
    edits = tuple(name.strip() for name in args.edits.split(",")) if args.edits else generator.edits
    figures: dict[str, object] = {}
    seeds = range(HELD_OUT, HELD_OUT + args.held_out)
    with spent.stage("drawing faces"):
        train_faces = draw_faces(range(args.faces))
        faces = round_8bit(draw_faces(seeds))
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; "
        f"{args.faces} training and {args.held_out} held-out faces, {len(edits)} edits, {args.precision}"
    )

    def path(name: str) -> Path | None:
        return args.patches / f"{name}.safetensors" if args.patches else None

    def config(**settings) -> TrainingConfig:
        common = {"precision": args.precision, "seed": args.seed, "initialisation": args.initialisation}
        return TrainingConfig(**common, **settings)

    def measured(name: str, patch: LoraPatch, **given: Tensor) -> DefenceReport:
        against = () if other is None else (hashlib.sha256(patch_bytes(other)).hexdigest(),)
        against += ("no strong defender",) if args.no_strong else ()
        shape = digest(args.held_out, args.seed, args.precision, args.watermark_faces, edits, args.placement, *against)
        folder = args.patches / f"{name} {shape}" if args.patches else None
        settings = {"quality": QUALITY, "seed": args.seed, "edits": edits, "precision": args.precision, **given}
        settings |= {"other": other, "strong": not args.no_strong}
        if args.watermark_faces:
            with spent.stage("CMUA-Watermark"):
                made_from = round_8bit(train_faces[: args.watermark_faces])
                attack = AttackSettings(levels=LEVELS, steps=STEPS, seeds=args.seed, progress=Bar("CMUA-Watermark"))
                settings["watermark"] = universal_watermark([generator], made_from, edits, attack)
        with spent.stage(f"report, {name}"):
            report = in_parts(generator, patch, faces, folder, **settings)
        figures[name] = report.data()
        return report

    def train(
        name: str, faces: Tensor = train_faces, mmfa: MMFA | None = None, warning: Tensor | None = None, **settings
    ) -> LoraPatch:
        with spent.stage(f"training, {name}"):
            return trained(path(name), generator, faces, config(**settings), mmfa, edits=edits, warning=warning)

    if args.only != "defensive":
        evaluation = train("evaluation", mode="evaluation")
        table(measured("evaluation", evaluation), "Evaluation")
        rows = []
        with spent.stage("against the truth, merging"):
            for name, patch in (("original", None), ("patched", evaluation)):
                psnr, ssim = against_truth(generator, patch, seeds)
                rows.append((name, f"{psnr:.2f}", f"{ssim:.4f}"))
            print("\n" + text_table(("edits of plain faces against the truth", "PSNR", "SSIM"), rows), flush=True)
            merging(generator, evaluation, faces)
        overheads()
        if args.ablation_faces:
            ablation(generator, train, train_faces[: args.ablation_faces], faces, seeds)
    if args.only != "evaluation":
        usual = warning = text_warning(*faces.shape[-2:])
        if args.placement == "tiled":
            warning = tiled_warning(text_warning, *faces.shape[-2:], args.seed)
        settings = {"mode": "defensive", "epochs": args.epochs, "learning_rate": args.learning_rate}
        defensive = train("defensive", warning=warning, **settings)
        table(measured("defensive", defensive, warning=warning, usual=usual), "Defensive")
        if args.sheet:
            report = defence_report(generator, defensive, faces[:1], warning=warning, quality=QUALITY, strong=False)
            Image.fromarray(to_uint8(labelled_sheet(report.examples))[0]).save(args.sheet)
    print("\n" + spent.table())
    if args.out:
        figures["processor_time"] = spent.data()
        write(args.out, {"settings": {k: str(v) for k, v in vars(args).items()}, **figures})


def ablation(generator, train, train_faces: Tensor, faces: Tensor, seeds: range) -> None:
    """Gates, and feature alignment, all trained on the same few faces."""
    print(f"\n**Ablation**, evaluation patches trained on {len(train_faces)} faces\n")
    rows = []
    cases = [(gate, None) for gate in GATES] + [
        ("scalar", MMFA(DenoiserFeatures(load_denoiser(), "bundled denoiser"), None))
    ]
    for gate, mmfa in cases:
        name = f"ablation_{gate}{'_mmfa' if mmfa else ''}"
        patch = train(name, train_faces, mmfa, mode="evaluation", gate=gate)
        report = defence_report(generator, patch, faces, quality=QUALITY, strong=False)
        disrupted, leaked = (100 * report.row(INPUTS[i]).patched for i in (3, 5))
        truth, _ = against_truth(generator, patch, seeds)
        aligned = "denoiser's middle block" if mmfa else "none"
        shares = [f"{disrupted:.1f} %", f"{leaked:.1f} %"]
        rows.append((gate, aligned, *shares, f"{report.psnr:.2f}", f"{truth:.2f}"))
    head = ("gate", "alignment", "disrupted", "leaked patch", "PSNR to original", "PSNR to truth")
    print(text_table(head, rows, text_columns=2))


if __name__ == "__main__":
    main()
