"""What the LoRA patching benchmark runs for long: reports ten faces at a time, and patches from either start."""

from __future__ import annotations

import json
import time
from pathlib import Path

from antipure.methods.figures.text_table import text_table
from antipure.methods.generators.generator import Generator
from antipure.methods.generators.loading import load_generator
from antipure.methods.generators.procedural_faces import HELD_OUT, draw_faces
from antipure.methods.lora_patching.defence_report import defence_report
from antipure.methods.lora_patching.defence_table import DefenceReport, pooled
from antipure.methods.lora_patching.low_rank import INITIALISATIONS
from antipure.methods.lora_patching.patch import LoraPatch
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
    size: int, steps: int, seeds: int, held_out: int, precision: str, folder: Path | None
) -> dict[str, object]:
    """Evaluation patches from either start, `seeds` of each, on the toy at `size` px; prints a table of their pools."""
    generator = load_generator(size=size)
    config = {"mode": "evaluation", "epochs": 1, "precision": precision, "preview_every": 0}
    count = steps * 4 // len(generator.edits)
    faces = round_8bit(draw_faces(range(HELD_OUT, HELD_OUT + held_out), side=size))
    found: dict[str, object] = {"size": size, "steps": steps, "seeds": seeds, "held_out": held_out}
    rows = []
    for initialisation in INITIALISATIONS:
        parts = []
        for seed in range(seeds):

            def one(seed=seed, initialisation=initialisation) -> dict:
                began = time.process_time()
                training = draw_faces(range(seed * count, (seed + 1) * count), side=size)
                settings = TrainingConfig(**config, seed=seed, initialisation=initialisation)
                patch = train_patch(generator, training, settings).patch
                seconds = time.process_time() - began
                report = defence_report(generator, patch, faces, seed=seed, strong=False, precision=precision)
                return {**report.data(), "seconds": seconds}

            if folder is None:
                parts.append(one())
            else:
                folder.mkdir(parents=True, exist_ok=True)
                name = f"{initialisation}_{size}px_{steps}_{held_out}_{precision}_{seed}.json"
                parts.append(json.loads(kept(folder / name, one).read_text(encoding="utf-8")))
        report = pooled(parts)
        seconds = sum(part["seconds"] for part in parts) / seeds
        found[initialisation] = {**report.data(), "seconds": seconds}
        rows.append(
            [
                initialisation,
                *(_told(report, row) for row in ROWS),
                *(_told(report, row, "against_original") for row in ROWS),
                f"{report.psnr:.2f}",
                f"{seconds:.0f}",
            ]
        )
        print(f"{initialisation}: done", flush=True)
    head = ["start", *ROWS, *(f"{row}, vs the original's edit" for row in ROWS), "dB to the original", "CPU s"]
    print(
        f"{size} px, {steps} steps, {seeds} seeds, {held_out} held-out faces, {precision}; patched network, share "
        "(masked L2; 95 %)\n\n" + text_table(head, rows)
    )
    return found


def _told(report: DefenceReport, name: str, column: str = "patched") -> str:
    row = report.row(name)
    low, high = row.interval(column)
    return f"{100 * getattr(row, column):.1f} % ({row.mean_l2[column]:.4f}; {100 * low:.1f}..{100 * high:.1f})"
