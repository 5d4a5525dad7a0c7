"""Projected gradient ascent in an L-infinity ball: the one loop behind every protection of this pack.

Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018. Budgets
are 8-bit levels: `levels=8` means 8/255 of the 0..1 range.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ...kernels.ascent import ascend
from ..errors import AntiPureError, sizes
from ..gradients.differentiation import overflowed, overflows_noted
from ..gradients.malloc import freed_memory_kept
from ..memory import is_out_of_memory, out_of_memory
from ..pictures import check_picture, random_stream, to_pixels
from ..progress import Progress
from .budget import Budget
from .loss import Loss, MakeLoss
from .settings import AttackSettings

# The host looks at the gradients in the first step and then every so many: each look waits for the GPU.
CHECK_EVERY = 10
# How often `constrain` and the ball are imposed in turn after a step, and after the last one.
CONSTRAINED, CONSTRAINED_LAST = 1, 20


def pgd(
    picture: Tensor,
    make_loss: MakeLoss,
    settings: AttackSettings = AttackSettings(),  # noqa: B008 (frozen)
    *,
    step_levels: float | None = None,
    decay: bool = True,
    precondition: Callable[[Tensor], Tensor] | None = None,
    constrain: Callable[[Tensor], Tensor] | None = None,
    random_start: bool = False,
    start: Tensor | None = None,
    rounded: bool = True,
    together: bool = False,
) -> Tensor:
    """Maximise a loss over the L-infinity ball around each picture.

    picture: B×3×H×W in 0..1. make_loss: from the clean pixels (1×3×H×W in [-1, 1]) to the `Loss` to maximise.
    step_levels: first step in 8-bit levels, decaying linearly to 0 (default levels / 8; with fewer than 16 steps more,
        so that the border of the ball stays in reach). decay: whether it decays; else every step is the first.
    precondition: of the gradient, 1×3×H×W to the same, before its sign is taken; None leaves it as it is. It weighs
        colours against each other, so that of grey pictures that stay grey it is not asked.
    constrain: of the perturbation in levels, 1×3×H×W to the same, after every step: towards a set that it is to lie in
        beside the ball, whose projection this is. The two are imposed in turn, at the end until both hold nearly.
    random_start: begin at a random point of the ball, for losses whose gradient is 0 at the clean picture.
    start: B×3×H×W in 0..1, where to begin instead of at the picture; brought to the nearest point of the ball.
    rounded: False keeps the result unrounded, for attacks that live inside a training loop.
    together: one loop over the whole batch, under one seed. The loss gets B×3×H×W and must be a sum or mean over
        pictures that do not influence each other.

    Returns the 8-bit-rounded result, B×3×H×W in 0..1: |result - picture| <= levels/255 everywhere, and exactly
    the input where the mask is 0; of grey pictures it is grey, unless the settings say otherwise. Each picture's
    result does not depend on the others.
    Raises `AntiPureError` for bad pictures and settings, and when a gradient was not finite (noticed within
    `CHECK_EVERY` steps).
    """
    check_picture(picture)
    settings.check(picture)
    if start is not None:
        check_picture(start, "start")
        if start.shape != picture.shape:
            raise AntiPureError(f"The start has shape {sizes(start.shape)}, the picture {sizes(picture.shape)}.")
    levels, steps = settings.levels, settings.steps
    runs = 1 if together else len(picture)
    per_run = len(picture) // runs
    first = levels * max(1 / 8, 2 / steps) if step_levels is None else step_levels
    results = []
    for i, seed in enumerate(settings.seeds_of(runs)):
        # ComfyUI runs prompts in inference mode; clones made outside it are ordinary tensors.
        with torch.inference_mode(False), torch.enable_grad(), freed_memory_kept(picture.device):
            part = slice(i * per_run, (i + 1) * per_run)
            clean = picture[part].float().clone()
            budget = Budget(clean, levels, settings.mask_of(part), settings.keep_grey, settings.visibility)
            loss = make_loss(to_pixels(clean))
            values = budget.original if start is None else budget.project(start[part].float().clone() * 255)
            if random_start:
                values = budget.scatter(values, random_stream(seed, -1))
            finite = torch.ones((), dtype=torch.bool, device=clean.device)
            overflows = False
            for step in range(steps):
                loss.partly = partial(_partly, settings.progress, values, i * steps + step, runs * steps)
                value, gradient, overflows = _value_and_gradient(loss, values, seed, step, overflows)
                loss.stepped()
                finite &= torch.isfinite(gradient).all()
                if step % CHECK_EVERY == 0 or step + 1 == steps:
                    _check_finite(finite)
                gradient = budget.direction(gradient, precondition)
                size = first * (1 - step / steps) if decay else first
                values = ascend(values, gradient, size, budget.lower, budget.upper)
                del gradient  # before the next one is made
                if budget.apart is not None:  # `ascend` knows the ball alone
                    values = budget.project(values)
                if constrain is not None:
                    rounds = CONSTRAINED if step + 1 < steps else CONSTRAINED_LAST
                    for _ in range(rounds):
                        values = budget.project(budget.original + constrain(values - budget.original))
                settings.progress(i * steps + step + 1, runs * steps, values / 255, value)
            results.append(budget.quantise(values) if rounded else values / 255)
    return torch.cat(results) if runs > 1 else results[0]


def _partly(progress: Progress, values: Tensor, before: int, total: int, share: float) -> None:
    """Progress within a step, with the picture as the step found it."""
    if 0 < share < 1:
        progress(before + share, total, values / 255)


def _value_and_gradient(
    loss: Loss, values: Tensor, seed: int, step: int, overflows: bool
) -> tuple[Tensor, Tensor, bool]:
    """Also whether half precision overflows, as this step or one before found: then every segment looks itself."""
    while True:
        try:
            pixels = values / 127.5 - 1
            loss.prepare(pixels, random_stream(seed, step))
            with overflows_noted(not overflows) as noted:
                found = loss.value_and_gradient(pixels.requires_grad_(), random_stream(seed, step))
            if not overflowed(noted):
                return *found, overflows
            overflows = True
            return *loss.value_and_gradient(pixels, random_stream(seed, step)), overflows
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if not loss.shrink():
                raise out_of_memory(
                    error,
                    "the gradient of a single tile",
                    "close other programs, or use a smaller model or lower precision",
                ) from error
        # Outside the handler: only here the failed attempt's tensors are gone.
        torch.cuda.empty_cache()


def _check_finite(finite: Tensor) -> None:
    if not finite:
        raise AntiPureError("The gradient is not finite; use a higher precision or another denoiser.")
