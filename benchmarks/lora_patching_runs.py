"""What the LoRA patching benchmark runs for long: reports ten faces at a time, and patches from either start."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from antipure.methods.figures.text_table import text_table
from antipure.methods.generators.generator import Generator
from antipure.methods.generators.loading import load_generator
from antipure.methods.generators.procedural_faces import HELD_OUT, draw_faces
from antipure.methods.lora_patching.defence_report import defence_report
from antipure.methods.lora_patching.defence_table import TRANSFERRED, DefenceReport, pooled
from antipure.methods.lora_patching.low_rank import INITIALISATIONS
from antipure.methods.lora_patching.patch import LoraPatch
from antipure.methods.lora_patching.save_and_load import load_patch, save_patch
from antipure.methods.lora_patching.training import TrainingConfig, train_patch
from antipure.methods.pictures import round_8bit
from torch import Tensor
from tqdm import tqdm

from .work import kept

AT_ONCE = 10
ROWS = ("Disrupting", "Disrupting, leaked patch")


class Bar:
    """A `Progress` with a bar."""

    def __init__(self, title: str):
        self.bar, self.title = None, title

    def __call__(self, done: int, total: int, picture: object = None, loss: object = None) -> None:
        self.bar = self.bar or tqdm(total=total, desc=self.title, mininterval=20)
        self.bar.update(done - self.bar.n)


def in_parts(
    generator: Generator, patch: LoraPatch, faces: Tensor, folder: Path | None, *, seed: int = 0, **settings
) -> DefenceReport:
    """`defence_report` over ten faces at a time, each part kept in the folder once it is there; without examples.

    The same figures as of all faces at once: a part's seed is that of its first face.
    """
    parts = []
    for start in tqdm(range(0, len(faces), AT_ONCE), desc="measuring, ten faces each", mininterval=20):

        def measure(start=start) -> dict:
            part = faces[start : start + AT_ONCE]
            return defence_report(generator, patch, part, seed=seed + start, batch=AT_ONCE, **settings).data()

        if folder is None:
            parts.append(measure())
        else:
            folder.mkdir(parents=True, exist_ok=True)
            parts.append(json.loads(kept(folder / f"{start}.json", measure).read_text(encoding="utf-8")))
    return pooled(parts)


def compare_initialisations(
    size: int,
    steps: int,
    seeds: int,
    held_out: int,
    precision: str,
    folder: Path | None,
    starts: Sequence[str] = INITIALISATIONS,
) -> dict[str, object]:
    """Evaluation patches from these starts, `seeds` of each, on the toy at `size` px; prints a table of their pools.

    Where there are several seeds, every patch is also held against Disrupting made against the next seed's patch.
    """
    generator = load_generator(size=size)
    count = steps * 4 // len(generator.edits)
    faces = round_8bit(draw_faces(range(HELD_OUT, HELD_OUT + held_out), side=size))
    found: dict[str, object] = {"size": size, "steps": steps, "seeds": seeds, "held_out": held_out}
    rows = []
    names = ROWS + (TRANSFERRED[:1] if seeds > 1 else ())
    for initialisation in starts:
        patches, parts = [], []
        for seed in range(seeds):
            settings = TrainingConfig(
                "evaluation", epochs=1, precision=precision, preview_every=0, seed=seed, initialisation=initialisation
            )
            training = draw_faces(range(seed * count, (seed + 1) * count), side=size)
            file = f"{initialisation}_{size}px_{steps}_{precision}_{seed}.safetensors"
            path = None if folder is None else folder / file
            patches.append(_timed(path, generator, training, settings))
        for seed, patch in enumerate(patches):
            other = patches[(seed + 1) % seeds] if seeds > 1 else None

            def one(seed=seed, patch=patch, other=other) -> dict:
                report = defence_report(
                    generator, patch, faces, seed=seed, strong=False, precision=precision, other=other
                )
                return {**report.data(), "seconds": patch.metadata["processor_seconds"]}

            if folder is None:
                parts.append(one())
            else:
                name = f"{initialisation}_{size}px_{steps}_{held_out}_{precision}_{seed}_of_{seeds}.json"
                parts.append(json.loads(kept(folder / name, one).read_text(encoding="utf-8")))
        report = pooled(parts)
        seconds = sum(part["seconds"] for part in parts) / seeds
        found[initialisation] = {**report.data(), "seconds": seconds}
        rows.append(
            [
                initialisation,
                *(_told(report, row) for row in names),
                *(_told(report, row, "against_original") for row in names),
                f"{report.psnr:.2f}",
                f"{seconds:.0f}",
            ]
        )
        print(f"{initialisation}: done", flush=True)
    head = ["start", *names, *(f"{row}, vs the original's edit" for row in names), "dB to the original", "CPU s"]
    print(
        f"{size} px, {steps} steps, {seeds} seeds, {held_out} held-out faces, {precision}; patched network, share "
        "(masked L2; 95 %)\n\n" + text_table(head, rows)
    )
    return found


def _timed(path: Path | None, generator: Generator, faces: Tensor, config: TrainingConfig) -> LoraPatch:
    """The patch in a file, or a new one that is saved there; its metadata has the processor seconds it took."""
    if path is not None and path.is_file():
        return load_patch(path)
    began = time.process_time()
    patch = train_patch(generator, faces, config).patch
    seconds = time.process_time() - began
    patch = replace(patch, metadata={**patch.metadata, "processor_seconds": seconds})
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_patch(patch, path)
    return patch


def _told(report: DefenceReport, name: str, column: str = "patched") -> str:
    row = report.row(name)
    low, high = row.interval(column)
    return f"{100 * getattr(row, column):.1f} % ({row.mean_l2[column]:.4f}; {100 * low:.1f}..{100 * high:.1f})"
