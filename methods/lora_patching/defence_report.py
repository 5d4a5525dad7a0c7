"""What a proactive defence against face editing is worth, before and after the network is patched.

The protocol of LoRA Patching (arXiv 2510.03747, Section IV) with the rows an honest table needs: the picture as it is,
random noise of the same size, JPEG alone, Disrupting made against the original network and, "leakage", against the
patched one, each also after JPEG.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..attacks.settings import AttackSettings
from ..controls import apply_control
from ..errors import AntiPureError
from ..figures.text_table import text_table
from ..generators.generator import Generator
from ..metrics.image import psnr, ssim
from ..pictures import check_picture, round_8bit, to_picture, to_pixels
from ..progress import Progress, silent
from ..purification.transforms import jpeg
from .defence_metrics import SUCCESS_THRESHOLD, masked_l2, success_rate
from .disrupting import LEVELS, STEPS, disrupt
from .patch import LoraPatch, patched
from .warning import share_visible, visibility

INPUTS = (
    "picture as it is",
    "random noise",
    "JPEG",
    "Disrupting",
    "Disrupting + JPEG",
    "Disrupting, leaked patch",
    "Disrupting, leaked patch + JPEG",
)


@dataclass(frozen=True)
class Row:
    """One kind of input, over all faces and edits.

    original, patched: share of edits that the input disrupts in each network: masked L2 to the same network's edit of
    the plain picture above 0.05. How far patched edits are from the original's is another question, and answered by
    `DefenceReport.psnr` and `ssim`. visible, visible_jpeg: share of the patched network's edits that show the
    warning (correlation of at least 0.5 with it, less the original's edit of the plain picture), and that still do
    after the edit is saved as JPEG; NaN for a patch without a warning.
    """

    input: str
    original: float
    patched: float
    visible: float
    visible_jpeg: float


@dataclass(frozen=True)
class DefenceReport:
    """rows: see `Row`. psnr, ssim: patched edits of plain pictures against the original network's, means.

    examples: for the first face and edit, pictures 1×3×H×W in 0..1 by name.
    """

    rows: list[Row]
    psnr: float
    ssim: float
    faces: int
    edits: tuple[str, ...]
    quality: int
    examples: dict[str, Tensor]

    def markdown(self) -> str:
        """The table, percentages of the edits; a dash where nothing can be said."""
        warns = any(not math.isnan(row.visible) for row in self.rows)
        head = ["input", "disrupted, original", "disrupted, patched"]
        head += ["warning visible", f"after JPEG {self.quality}"] if warns else []
        rows = []
        for row in self.rows:
            values = [row.original, row.patched] + ([row.visible, row.visible_jpeg] if warns else [])
            name = row.input.replace("JPEG", f"JPEG {self.quality}")
            rows.append([name, *map(_percent, values)])
        return (
            f"{text_table(head, rows)}\n\n"
            f"{self.faces} faces, edits {', '.join(self.edits)}; patched against original edits of plain pictures: "
            f"{self.psnr:.2f} dB, SSIM {self.ssim:.4f}."
        )

    def row(self, name: str) -> Row:
        """The row of an input."""
        return next(row for row in self.rows if row.input == name)


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"


@torch.no_grad()
def defence_report(
    generator: Generator,
    patch: LoraPatch | None,
    faces: Tensor,
    *,
    edits: Sequence[str] | None = None,
    strength: float = 1.0,
    warning: Tensor | None = None,
    levels: float = LEVELS,
    quality: int = 75,
    seed: int = 0,
    batch: int = 10,
    progress: Progress = silent,
) -> DefenceReport:
    """Every input of `INPUTS` through the original and the patched network.

    generator: not patched. patch: None compares the network with itself. faces: N×3×H×W in 0..1, at the generator's
    size. edits: all by default; Disrupting is made for one edit at a time, as in the literature. warning: 1×3×H×W in
    [-1, 1], the one the patch was trained with; None leaves its columns empty. levels: of noise and Disrupting.
    batch: pictures at a time. Raises `AntiPureError` for bad faces, edits, or a patch that does not fit.
    """
    check_picture(faces)
    edits = tuple(generator.edits if edits is None else edits)
    if not edits:
        raise AntiPureError(f"No edit was given; choose some of {', '.join(generator.edits)}.")
    faces = round_8bit(faces.to(generator.device))
    distances: dict[str, tuple[list[Tensor], list[Tensor]]] = {name: ([], []) for name in INPUTS}
    correlations: dict[str, tuple[list[Tensor], list[Tensor]]] = {name: ([], []) for name in INPUTS}
    fidelity: list[tuple[Tensor, Tensor]] = []
    examples: dict[str, Tensor] = {}
    parts = [slice(i, min(i + batch, len(faces))) for i in range(0, len(faces), batch)]
    done, total = 0, len(parts) * len(edits)
    for edit in edits:
        for part in parts:
            plain = faces[part]
            inputs = _inputs(generator, patch, strength, plain, edit, levels, quality, seed + part.start)
            outputs = {name: _edit(generator, picture, edit) for name, picture in inputs.items()}
            with patched(generator, patch, strength):
                patched_outputs = {name: _edit(generator, picture, edit) for name, picture in inputs.items()}
            original, benign = outputs[INPUTS[0]], patched_outputs[INPUTS[0]]
            for name in INPUTS:
                for collected, made in zip(distances[name], (outputs, patched_outputs), strict=True):
                    undisturbed = made[INPUTS[0]]
                    collected.append(masked_l2(to_pixels(made[name]), to_pixels(undisturbed), to_pixels(plain)))
                if warning is not None:
                    saved = jpeg(patched_outputs[name], quality)
                    for collected, output in zip(correlations[name], (patched_outputs[name], saved), strict=True):
                        # Less the edit as it should be. What the original makes of a protected picture is broken,
                        # is not in the patched output, and would be all that is seen in the difference.
                        collected.append(visibility(to_pixels(output), to_pixels(original), warning.to(output)))
            fidelity.append((psnr(original, benign).clamp(max=100), ssim(original, benign)))
            if not examples:
                examples = _examples(inputs, outputs, patched_outputs)
            done += 1
            progress(done, total, benign[:1])
    rows = []
    for name in INPUTS:
        visible = [share_visible(torch.cat(v)) if v else math.nan for v in correlations[name]]
        rates = [success_rate(torch.cat(v), SUCCESS_THRESHOLD) for v in distances[name]]
        rows.append(Row(name, *rates, *visible))
    psnrs, ssims = (float(torch.cat(values).mean()) for values in zip(*fidelity, strict=True))
    return DefenceReport(rows, psnrs, ssims, len(faces), edits, quality, examples)


def _edit(generator: Generator, picture: Tensor, edit: str) -> Tensor:
    """The edit as it is saved: 0..1, 8 bits."""
    return round_8bit(to_picture(generator.edit(to_pixels(picture), edit)))


def _inputs(
    generator: Generator,
    patch: LoraPatch | None,
    strength: float,
    plain: Tensor,
    edit: str,
    levels: float,
    quality: int,
    seed: int,
) -> dict[str, Tensor]:
    attack = AttackSettings(levels=levels, steps=STEPS, seeds=seed)
    protected = disrupt(generator, plain, [edit], attack, together=True)
    with patched(generator, patch, strength):
        leaked = disrupt(generator, plain, [edit], attack, together=True)
    noise = apply_control("random", plain, replace(attack, seeds=list(range(seed, seed + len(plain)))))
    pictures = (plain, noise, jpeg(plain, quality), protected, jpeg(protected, quality), leaked, jpeg(leaked, quality))
    return dict(zip(INPUTS, pictures, strict=True))


def _examples(inputs: dict, outputs: dict, patched_outputs: dict) -> dict[str, Tensor]:
    plain, protected, leaked = INPUTS[0], INPUTS[3], INPUTS[5]
    return {
        "picture": inputs[plain][:1],
        "edited": outputs[plain][:1],
        "edited, patched": patched_outputs[plain][:1],
        "protected": inputs[protected][:1],
        "protected, edited": outputs[protected][:1],
        "protected, edited, patched": patched_outputs[protected][:1],
        "leaked patch, edited, patched": patched_outputs[leaked][:1],
    }
