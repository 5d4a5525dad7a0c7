"""CMUA-Watermark: one perturbation for all pictures, against several face-editing networks at once.

Huang et al., "CMUA-Watermark: A Cross-Model Universal Adversarial Watermark for Combating Deepfakes", AAAI 2022;
numbers and order of its published code. Batch by batch, network by network and edit by edit, ten steps of PGD on the
batch that carries the watermark W; after each step the pictures' perturbations are averaged (image level) and mixed
into it (model level):

    W <- momentum * W + (1 - momentum) * mean_i clamp(x_i + W + a sign(grad_i) - x_i, -eps, eps)

A run starts at a random point around each picture, as theirs does. What is left out: the search for each network's step
factor, which is 1 in their settings, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ..attacks.budget import Budget
from ..attacks.loss import Loss
from ..attacks.pgd import pgd
from ..attacks.settings import AttackSettings
from ..errors import AntiPureError, sizes
from ..generators.generator import Generator
from ..pictures import check_picture
from .disrupting import LEVELS, STEP_LEVELS, STEPS, disruption_loss

MOMENTUM = 0.5
BATCH = 64


class _Watermark:
    """W in 8-bit levels, 3×H×W, None before the first step, and how `pgd` is made to mend it."""

    def __init__(self, momentum: float):
        self.momentum = momentum
        self.value: Tensor | None = None
        self._stepped = False

    def loss(self, edits: Sequence[Callable[[Tensor], Tensor]], clean: Tensor) -> Loss:
        return _Watched(disruption_loss(edits, clean), self._step)

    def _step(self) -> None:
        self._stepped = True

    def constrain(self, perturbation: Tensor) -> Tensor:
        """The pictures' perturbations to the one watermark; `pgd` may ask several times after a step."""
        if self._stepped or self.value is None:
            mean = perturbation.mean(0)
            self.value = mean if self.value is None else self.momentum * self.value + (1 - self.momentum) * mean
            self._stepped = False
        return self.value.expand_as(perturbation)


class _Watched(Loss):
    """A loss that says when a step was done."""

    def __init__(self, inner: Loss, told: Callable[[], None]):
        self.inner, self.told = inner, told

    def terms(self, pixels: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        return self.inner.terms(pixels, generator)

    def stepped(self) -> None:
        self.told()


def universal_watermark(
    generators: Sequence[Generator],
    faces: Tensor,
    edits: Sequence[str] | None = None,
    settings: AttackSettings | None = None,
    *,
    step_levels: float = STEP_LEVELS,
    momentum: float = MOMENTUM,
    batch: int = BATCH,
) -> Tensor:
    """The watermark, 1×3×H×W in 8-bit levels within the budget, for `with_watermark`.

    generators: one or several of one size. faces: N×3×H×W in 0..1 at that size, to make it from; those it protects are
    others. edits: those of them that a generator has (None: all of each). settings: levels, steps for each batch and
    edit, one seed, progress; a mask has no meaning here. momentum: how much of the watermark a step keeps.
    Raises `AntiPureError` for no generators, faces of another size, or edits that none has.
    """
    settings = settings or AttackSettings(levels=LEVELS, steps=STEPS)
    check_picture(faces, "set of faces")
    runs = list(_runs(generators, faces, edits, batch))
    watermark = _Watermark(momentum)
    for i, (generator, edit, part) in enumerate(runs):

        def progress(done: float, total: int, *told: object, i: int = i) -> None:
            settings.progress(i * total + done, len(runs) * total, *told)  # type: ignore[arg-type]

        pgd(
            faces[part],
            partial(watermark.loss, [partial(generator.edit, edit=edit)]),
            AttackSettings(
                settings.levels, settings.steps, seeds=settings.seeds_of(1)[0] + i, progress=progress, keep_grey=False
            ),
            step_levels=step_levels,
            decay=False,
            constrain=watermark.constrain,
            random_start=True,
            rounded=False,
            together=True,
        )
    assert watermark.value is not None
    return watermark.value[None].clamp(-settings.levels, settings.levels)


def with_watermark(picture: Tensor, watermark: Tensor, levels: float = LEVELS, mask: Tensor | None = None) -> Tensor:
    """Pictures B×3×H×W in 0..1 that carry the watermark, of 8 bits, each within the budget of `levels`.

    watermark: 1×3×H×W in 8-bit levels. mask: B×1×H×W in 0..1, where it may be. Raises `AntiPureError` for other sizes.
    """
    check_picture(picture)
    if picture.shape[1:] != watermark.shape[1:]:
        height, width = watermark.shape[-2:]
        raise AntiPureError(
            f"The watermark is {width}×{height}, the picture {picture.shape[-1]}×{picture.shape[-2]}; resize the "
            "picture."
        )
    budget = Budget(picture.float(), levels, mask, keep_grey=False)
    # Whole levels first: which way a half goes must not depend on the picture.
    return budget.quantise(budget.project(budget.original + watermark.to(picture).round()))


def _runs(
    generators: Sequence[Generator], faces: Tensor, edits: Sequence[str] | None, batch: int
) -> Iterator[tuple[Generator, str, slice]]:
    """Batches × generators × edits, in that order."""
    if not generators:
        raise AntiPureError("A watermark needs a network to be made against; give one or several generators.")
    side = generators[0].size
    if any(generator.size != side for generator in generators) or tuple(faces.shape[-2:]) != (side, side):
        wanted = ", ".join(f"{generator.name} {generator.size}×{generator.size}" for generator in generators)
        raise AntiPureError(
            f"The faces are {sizes(faces.shape[-2:][::-1])}; the watermark wants one size for {wanted}."
        )
    chosen = [[e for e in generator.edits if edits is None or e in edits] for generator in generators]
    if unknown := next((e for e in edits or () if not any(e in names for names in chosen)), None):
        raise AntiPureError(f"No generator has the edit '{unknown}'; write some of {', '.join(generators[0].edits)}.")
    if not any(chosen):
        raise AntiPureError(f"No edit to disrupt was given; choose some of {', '.join(generators[0].edits)}.")
    for start in range(0, len(faces), batch):
        for generator, names in zip(generators, chosen, strict=True):
            for edit in names:
                yield generator, edit, slice(start, start + batch)
