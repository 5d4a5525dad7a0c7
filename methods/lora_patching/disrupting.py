"""Disrupting: perturb a picture so that a face-editing network spoils it.

Ruiz et al., "Disrupting Deepfakes: Adversarial Attacks Against Conditional Image Translation Networks and Facial
Manipulation Systems", ECCV Workshops 2020, eq. 2; numbers as in LoRA Patching (arXiv 2510.03747, Section IV).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attacks.pgd import Callback, pgd
from ..errors import AntiPureError
from ..generators.generator import Generator
from ..pictures import check_picture, to_picture, to_pixels

LEVELS = 0.05 * 127.5  # eps 0.05 on [-1, 1], in 8-bit levels
STEP_LEVELS = 0.01 * 127.5
STEPS = 10


def disrupt(
    generator: Generator,
    picture: Tensor,
    edits: Sequence[str] | None = None,
    *,
    levels: float = LEVELS,
    steps: int = STEPS,
    step_levels: float = STEP_LEVELS,
    mask: Tensor | None = None,
    seeds: int | list[int] = 0,
    callback: Callback | None = None,
    together: bool = False,
) -> Tensor:
    """Maximise sum_e MSE(G(x_adv, e), G(x, e)) over the L-infinity ball: constant steps from a random start.

    picture: B×3×H×W in 0..1, on the generator's device; other sizes than the generator's are attacked through the
    resizing that an editing tool does (`edit_picture`). edits: those to disrupt, all with one perturbation (None: all
    the generator has); the literature attacks one at a time. levels, step_levels: in 8-bit levels.
    mask, seeds, callback, together: as for `pgd`.
    Returns the protected 8-bit-rounded picture, B×3×H×W in 0..1; rounding happens inside the ball, so of the default
    6.375 levels 6 are used. Every picture is attacked by itself; together, in one batch, only its random start differs.
    Raises `AntiPureError` for bad pictures, budgets or edits.
    """
    check_picture(picture)
    edits = generator.edits if edits is None else tuple(edits)
    if not edits:
        raise AntiPureError(f"No edit to disrupt was given; choose some of {', '.join(generator.edits)}.")
    for edit in edits:
        generator.check(picture, edit)

    def apply(pixels: Tensor, edit: str) -> Tensor:
        if min(pixels.shape[-2:]) == generator.size:
            return generator.edit(pixels, edit)
        return to_pixels(generator.edit_picture(to_picture(pixels), edit))

    def make_loss(clean: Tensor) -> Callable[[Tensor, torch.Generator], Iterator[Tensor]]:
        with torch.no_grad():
            undisturbed = {edit: apply(clean, edit) for edit in edits}

        def loss(pixels: Tensor, _: torch.Generator) -> Iterator[Tensor]:
            # Summed over the pictures, so that none weighs less in a larger batch.
            return (F.mse_loss(apply(pixels, edit), target) * len(pixels) for edit, target in undisturbed.items())

        return loss

    return pgd(
        picture,
        make_loss,
        levels=levels,
        steps=steps,
        step_levels=step_levels,
        decay=False,
        random_start=True,
        mask=mask,
        seeds=seeds,
        callback=callback,
        together=together,
    )
