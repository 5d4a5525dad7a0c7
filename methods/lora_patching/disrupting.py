"""Disrupting: perturb a picture so that a face-editing network spoils it.

Ruiz et al., "Disrupting Deepfakes: Adversarial Attacks Against Conditional Image Translation Networks and Facial
Manipulation Systems", ECCV Workshops 2020, eq. 2; numbers as in LoRA Patching (arXiv 2510.03747, Section IV).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..attacks.loss import FunctionLoss, Loss
from ..attacks.pgd import pgd
from ..attacks.settings import AttackSettings
from ..errors import AntiPureError
from ..generators.generator import Generator
from ..pictures import check_shape, to_picture, to_pixels

LEVELS = 0.05 * 127.5  # eps 0.05 on [-1, 1], in 8-bit levels
STEP_LEVELS = 0.01 * 127.5
STEPS = 10
DISRUPTING = AttackSettings(levels=LEVELS, steps=STEPS)


def disruption_loss(edits: Sequence[Callable[[Tensor], Tensor]], clean: Tensor) -> Loss:
    """sum_e MSE(G(x_adv, e), G(x, e)) as a `Loss`, summed over pictures too: none weighs less in a larger batch.

    edits: the network under each edit, pixels B×3×H×W in [-1, 1] to the same; pictures do not influence each other.
    clean: the pixels before the attack.
    """
    with torch.no_grad():
        undisturbed = [edit(clean) for edit in edits]
    return FunctionLoss(
        lambda pixels, _: (
            (edit(pixels) - target).square().flatten(1).mean(1).sum()
            for edit, target in zip(edits, undisturbed, strict=True)
        )
    )


def disrupt(
    generator: Generator,
    picture: Tensor,
    edits: Sequence[str] | None = None,
    settings: AttackSettings = DISRUPTING,
    *,
    step_levels: float = STEP_LEVELS,
    together: bool = False,
) -> Tensor:
    """Maximise sum_e MSE(G(x_adv, e), G(x, e)) over the L-infinity ball: constant steps from a random start.

    picture: B×3×H×W in 0..1, on the generator's device; other sizes than the generator's are attacked through the
    resizing that an editing tool does (`edit_picture`). edits: those to disrupt, all with one perturbation (None: all
    the generator has); the literature attacks one at a time. settings, together: as for `pgd`.
    step_levels: in 8-bit levels.
    Returns the protected 8-bit-rounded picture, B×3×H×W in 0..1; rounding happens inside the ball, so of the default
    6.375 levels 6 are used. Every picture is attacked by itself; together, in one batch, only its random start differs.
    Raises `AntiPureError` for bad pictures, budgets or edits.
    """
    check_shape(picture)  # pgd looks at the values
    names = generator.edits if edits is None else tuple(edits)
    if not names:
        raise AntiPureError(f"No edit to disrupt was given; choose some of {', '.join(generator.edits)}.")
    for edit in names:
        generator.check(picture, edit)
    if generator.own is not None and not together and len(picture) > 1:
        return _each(generator, picture, names, settings, step_levels)

    def apply(pixels: Tensor, edit: str) -> Tensor:
        if min(pixels.shape[-2:]) == generator.size:
            return generator.edit(pixels, edit)
        return to_pixels(generator.edit_any_size(to_picture(pixels), edit))

    return pgd(
        picture,
        partial(disruption_loss, [partial(apply, edit=edit) for edit in names]),
        settings,
        step_levels=step_levels,
        decay=False,
        random_start=True,
        together=together,
    )


def _each(
    generator: Generator, picture: Tensor, edits: Sequence[str], settings: AttackSettings, step_levels: float
) -> Tensor:
    """Pictures with labels of their own, one after another: `pgd` takes them apart, and knows of no labels."""
    assert generator.own is not None
    if len(generator.own) != len(picture):
        raise AntiPureError(
            f"There are labels for {len(generator.own)} pictures, not for {len(picture)}; give one each."
        )
    results = []
    for i, seed in enumerate(settings.seeds_of(len(picture))):

        def progress(done: float, total: int, *told: object, i: int = i) -> None:
            settings.progress(i * total + done, len(picture) * total, *told)  # type: ignore[arg-type]

        one = replace(settings, seeds=seed, mask=settings.mask_of(slice(i, i + 1)), progress=progress)
        part = slice(i, i + 1)
        results.append(
            disrupt(generator.labelled(generator.own[part]), picture[part], edits, one, step_levels=step_levels)
        )
    return torch.cat(results)
