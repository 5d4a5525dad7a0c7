"""What a proactive defence against face editing is worth, before and after the network is patched.

The protocol of LoRA Patching (arXiv 2510.03747, Section IV) with the rows an honest table needs: the picture as it is,
random noise of the same size, JPEG alone, Disrupting made against the original network and, "leakage", against the
patched one, a strong defender who attacks both at once (`strong_defender`), each also after JPEG. Two references: an
output is compared with the same network's edit of the plain picture, and with the original network's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from ..attacks.settings import AttackSettings
from ..controls import apply_control
from ..errors import AntiPureError
from ..generators.generator import Generator
from ..metrics.image import psnr, ssim
from ..pictures import check_picture, round_8bit, to_picture, to_pixels
from ..precision import autocast
from ..progress import Progress, silent
from ..purification.transforms import jpeg
from .cmua import with_watermark
from .defence_metrics import SUCCESS_THRESHOLD, masked_l2, success_rate, valid_cases
from .defence_table import INPUTS, STRONG, TRANSFERRED, UNIVERSAL, DefenceReport, Row
from .disrupting import LEVELS, STEPS, disrupt
from .patch import LoraPatch, check_patch, patched, patched_copy
from .strong_defender import strong_disrupt
from .warning import painted_over, share_visible, visibility


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
    strong: bool = True,
    precision: str = "fp32",
    labels: Tensor | None = None,
    watermark: Tensor | None = None,
    usual: Tensor | None = None,
    other: LoraPatch | None = None,
    progress: Progress = silent,
) -> DefenceReport:
    """Every input of `INPUTS` through the original and the patched network.

    generator: not patched. patch: None compares the network with itself. faces: N×3×H×W in 0..1, at the generator's
    size. edits: all by default; Disrupting is made for one edit at a time, as in the literature. warning: 1×3×H×W in
    [-1, 1], the one the patch was trained with; None leaves its columns empty. levels: of noise and Disrupting; the
    strong defender has twice as many. batch: pictures at a time. strong: False leaves the rows of the strong defender
    out, which take most of the time. precision: "fp32", or "bf16" for the attacks' gradients; outputs are judged in
    fp32 either way. labels: what each face has, N×attributes, as for `Generator.labelled`; every edit then flips its
    attribute, as in the paper's protocol. watermark: of `cmua.universal_watermark`, made from other faces; adds its
    rows. usual: 1×3×H×W, the warning where an attacker expects it and paints (None: where it is). other: another patch
    of this network at its full strength; adds the rows of Disrupting made against that one. Raises `AntiPureError` for
    bad faces, edits, labels, a watermark or a patch that does not fit.
    """
    check_picture(faces)
    edits = tuple(generator.edits if edits is None else edits)
    if not edits:
        raise AntiPureError(f"No edit was given; choose some of {', '.join(generator.edits)}.")
    if labels is not None and len(labels) != len(faces):
        raise AntiPureError(f"There are labels for {len(labels)} pictures, not for {len(faces)}; give one each.")
    faces = round_8bit(faces.to(generator.device))
    names = INPUTS + (STRONG if strong else ()) + (() if watermark is None else UNIVERSAL)
    names += () if other is None else TRANSFERRED
    if other is not None:
        check_patch(generator, other)
    found = {name: _Collected() for name in names}
    both = [generator] if patch is None else [generator, cast(Generator, patched_copy(generator, patch, strength))]
    fidelity: list[tuple[Tensor, Tensor]] = []
    examples: dict[str, Tensor] = {}
    parts = [slice(i, min(i + batch, len(faces))) for i in range(0, len(faces), batch)]
    done, total = 0, len(parts) * len(edits)
    for edit in edits:
        for part in parts:
            plain = faces[part]
            known_to = both if labels is None else [network.labelled(labels[part]) for network in both]
            known, attackers = known_to[0], [_in_precision(network, precision) for network in known_to]
            inputs = _inputs(attackers[0], patch, strength, plain, edit, levels, quality, seed + part.start)
            if strong:
                attacked = strong_disrupt(attackers, plain, edit, levels=min(2 * levels, 255), seed=seed + part.start)
                inputs |= dict(zip(STRONG, (attacked, jpeg(attacked, quality)), strict=True))
            if watermark is not None:
                marked = with_watermark(plain, watermark, levels)
                inputs |= dict(zip(UNIVERSAL, (marked, jpeg(marked, quality)), strict=True))
            if other is not None:
                with patched(generator, other):
                    transferred = _disrupted(attackers[0], plain, edit, levels, seed + part.start)
                inputs |= dict(zip(TRANSFERRED, (transferred, jpeg(transferred, quality)), strict=True))
            outputs = {name: _edit(known, picture, edit) for name, picture in inputs.items()}
            with patched(generator, patch, strength):
                patched_outputs = {name: _edit(known, picture, edit) for name, picture in inputs.items()}
            original, benign = outputs[INPUTS[0]], patched_outputs[INPUTS[0]]
            for name, collected in found.items():
                collected.disruption(plain, (outputs[name], original), (patched_outputs[name], benign))
                if warning is not None:
                    pasted = warning if usual is None else usual
                    collected.warning(inputs[name], patched_outputs[name], original, warning, pasted, quality)
            fidelity.append((psnr(original, benign).clamp(max=100), ssim(original, benign)))
            if not examples:
                examples = _examples(inputs, outputs, patched_outputs)
            done += 1
            progress(done, total, benign[:1])
    psnrs, ssims = (float(torch.cat(values).mean()) for values in zip(*fidelity, strict=True))
    rows = [collected.row(name) for name, collected in found.items()]
    return DefenceReport(rows, psnrs, ssims, len(faces), edits, quality, examples)


def _in_precision(generator: Generator, precision: str) -> Generator:
    """The generator, or a twin on the same network whose edits run in half precision where that is faster."""
    if precision == "fp32":
        return generator
    twin: Any = copy.copy(generator)

    def run(pixels: Tensor, edit: str) -> Tensor:
        with autocast(generator.device, torch.bfloat16):
            output = generator.edit(pixels, edit)
        return output.float()

    twin.edit = run
    return twin


class _Collected:
    """What one input did, edit by edit and batch by batch."""

    def __init__(self) -> None:
        self.l2: dict[str, list[Tensor]] = {"original": [], "patched": [], "against_original": []}
        self.seen: dict[str, list[Tensor]] = {"visible": [], "visible_jpeg": [], "visible_painted": []}

    def disruption(self, plain: Tensor, original: tuple[Tensor, Tensor], patched: tuple[Tensor, Tensor]) -> None:
        """original, patched: what each network makes of the input, and of the plain picture."""
        pairs = {"original": original, "patched": patched, "against_original": (patched[0], original[1])}
        for name, (output, undisturbed) in pairs.items():
            self.l2[name].append(masked_l2(to_pixels(output), to_pixels(undisturbed), to_pixels(plain)))

    def warning(
        self, picture: Tensor, output: Tensor, original: Tensor, warning: Tensor, pasted: Tensor, quality: int
    ) -> None:
        # Less the edit as it should be. What the original makes of a protected picture is broken, is not in the
        # patched output, and would be all that is seen in the difference.
        warning = warning.to(output)
        shown = (output, jpeg(output, quality), round_8bit(painted_over(output, picture, pasted.to(output))))
        for collected, each in zip(self.seen.values(), shown, strict=True):
            collected.append(visibility(to_pixels(each), to_pixels(original), warning))

    def row(self, name: str) -> Row:
        l2 = {key: torch.cat(values) for key, values in self.l2.items()}
        seen = {key: torch.cat(values) for key, values in self.seen.items() if values}
        shares = {key: success_rate(values, SUCCESS_THRESHOLD) for key, values in l2.items()}
        shares |= {key: share_visible(seen[key]) if key in seen else math.nan for key in self.seen}
        cases = {key: valid_cases(values) for key, values in l2.items()} | {key: len(v) for key, v in seen.items()}
        means = {key: float(values.nanmean()) for key, values in l2.items()}
        return Row(name, cases=cases, mean_l2=means, **shares)


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
    protected = _disrupted(generator, plain, edit, levels, seed)
    with patched(generator, patch, strength):
        leaked = _disrupted(generator, plain, edit, levels, seed)
    noise = apply_control("random", plain, replace(attack, seeds=list(range(seed, seed + len(plain)))))
    pictures = (plain, noise, jpeg(plain, quality), protected, jpeg(protected, quality), leaked, jpeg(leaked, quality))
    return dict(zip(INPUTS, pictures, strict=True))


def _disrupted(generator: Generator, plain: Tensor, edit: str, levels: float, seed: int) -> Tensor:
    """Disrupting against the generator as it is now, patched or not."""
    attack = AttackSettings(levels=levels, steps=STEPS, seeds=seed)
    return disrupt(generator, plain, [edit], attack, together=True)


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
