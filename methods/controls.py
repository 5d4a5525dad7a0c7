"""Controls: perturbations of the same budget with no adversarial structure. A protection has to beat them all.

All take B×3×H×W pictures in 0..1 and return 8-bit-rounded pictures inside the same `Budget` as PGD's. Of a grey
picture they see one channel, 1×1×H×W.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..kernels.filters import gaussian_blur
from .attacks.budget import Budget, is_grey
from .attacks.settings import AttackSettings
from .pictures import check_picture, random_stream

BLOCK = 16
SMOOTH_SIGMA = 2.0  # pixels


def random_sign(clean: Tensor, levels: float, generator: torch.Generator) -> Tensor:
    """±levels per pixel and channel, by coin toss."""
    return (torch.randint(2, clean.shape, generator=generator) * 2.0 - 1).to(clean.device) * levels


def uniform_shift(clean: Tensor, levels: float, generator: torch.Generator) -> Tensor:
    """The whole picture `levels` brighter (darker, where brighter would clip more pixels)."""
    brighter = (clean * 255 > 255 - levels).sum() <= (clean * 255 < levels).sum()
    return torch.full_like(clean, levels if brighter else -levels)


def blocks(clean: Tensor, levels: float, generator: torch.Generator) -> Tensor:
    """±levels per 16×16 block, by coin toss, the same in all channels."""
    h, w = clean.shape[-2:]
    signs = torch.randint(2, (1, 1, -(-h // BLOCK), -(-w // BLOCK)), generator=generator) * 2.0 - 1
    pattern = signs.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)[..., :h, :w]
    return pattern.to(clean.device).expand_as(clean) * levels


def smooth(clean: Tensor, levels: float, generator: torch.Generator) -> Tensor:
    """The picture blurred (Gaussian, 2 pixels) as far as the budget reaches: detail taken away, no network asked.

    A purifier smooths what is left, so that this, too, ends with less detail than the clean picture: the control for
    measures that reward lost detail.
    """
    return (gaussian_blur(clean, SMOOTH_SIGMA) - clean) * 255


CONTROLS: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "random": random_sign,
    "shift": uniform_shift,
    "blocks": blocks,
    "smooth": smooth,
}


def apply_control(
    name: str,
    picture: Tensor,
    settings: AttackSettings = AttackSettings(),  # noqa: B008 (frozen)
) -> Tensor:
    """The picture under the control `name` of `CONTROLS`; result and errors as `attacks.pgd`. It takes no steps."""
    check_picture(picture)
    replace(settings, steps=1).check(picture)
    results = []
    for i, seed in enumerate(settings.seeds_of(len(picture))):
        part = slice(i, i + 1)
        clean = picture[part].float()
        budget = Budget(clean, settings.levels, settings.mask_of(part), settings.keep_grey)
        seen = clean[:, :1] if budget.grey else clean
        delta = CONTROLS[name](seen, settings.levels, random_stream(seed))
        results.append(budget.quantise(budget.project(budget.original + delta)))
    return torch.cat(results)


def spectrum_matched(clean: Tensor, protected: Tensor, *, levels: float, seed: int = 0, rounds: int = 30) -> Tensor:
    """The perturbation's own spectrum with random phases, inside the same ball: same energy, no structure.

    The phases of one white noise picture are added to every channel, so that the channels stay correlated as they
    were. Random phases overshoot the ball; amplitude spectrum and ball are imposed in turn (`rounds` times, as in
    surrogate-data tests: Schreiber & Schmitz 1996), ending inside the ball. Where both pictures are grey it is grey.
    """
    results = []
    for i in range(len(clean)):
        x = clean[i : i + 1].float()
        budget = Budget(x, levels, keep_grey=bool(is_grey(protected[i : i + 1])))
        original = budget.original
        spectrum = torch.fft.rfft2(protected[i : i + 1].float() * 255 - original)
        white = torch.randn(x[:, :1].shape, generator=random_stream(seed)).to(x.device)
        white = torch.fft.rfft2(white)
        current = spectrum * white / white.abs().clamp(min=1e-12)
        for _ in range(rounds):
            values = torch.fft.irfft2(current, s=x.shape[-2:])
            inside = budget.project(original + values) - original
            imposed = torch.fft.rfft2(inside)
            current = spectrum.abs() * imposed / imposed.abs().clamp(min=1e-12)
        results.append(budget.quantise(budget.project(original + inside)))
    return torch.cat(results)
