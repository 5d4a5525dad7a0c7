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
from .errors import AntiPureError, both_sizes
from .pictures import check_picture, random_stream, round_8bit

BLOCK = 16
Control = Callable[[Tensor, float, torch.Generator], Tensor]  # clean picture, levels -> perturbation in levels
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


# What needs neither another picture nor another control: these are presets, too.
CONTROLS: dict[str, Control] = {
    "random": random_sign,
    "shift": uniform_shift,
    "blocks": blocks,
    "smooth": smooth,
}


def smooth_random(
    picture: Tensor,
    settings: AttackSettings = AttackSettings(),  # noqa: B008 (frozen)
) -> Tensor:
    """`smooth` and `random_sign` added, inside the budget; result and errors as `apply_control`.

    Where the blur changes nothing these are random signs; where it uses up the budget, every other sign is cut off.
    """
    return _applied(lambda *of: smooth(*of) + random_sign(*of), picture, settings)


def smooth_equal(picture: Tensor, like: Tensor) -> Tensor:
    """`picture` blurred to the PSNR of `like`: detail taken away at the cost of a protection, to set beside it.

    Both B×3×H×W in 0..1, `like` a changed `picture`; returns the 8-bit picture. The limit of `smooth` is looked for,
    and its Gaussian doubled as often as is needed to get there: it may use more levels than `like` (equal cost, not an
    equal ball). A picture without detail stays as it is. Raises `AntiPureError` for pictures that do not fit.
    """
    check_picture(picture)
    check_picture(like, "picture to equal")
    if picture.shape != like.shape:
        raise AntiPureError(f"The pictures differ in size, {both_sizes(picture.shape, like.shape)}: give equal.")
    clean, results = round_8bit(picture), []
    for one, other in zip(clean.split(1), round_8bit(like).split(1), strict=True):
        cost = float((one - other).square().mean())
        sigma, longest = SMOOTH_SIGMA, max(one.shape[-2:])
        away = gaussian_blur(one, sigma) - one
        while float((round_8bit(one + away) - one).square().mean()) < cost and sigma < longest:
            sigma *= 2
            away = gaussian_blur(one, sigma) - one
        low, high = 0.0, 255.0
        for _ in range(20):
            limit = (low + high) / 2
            found = round_8bit(one + away.clamp(-limit / 255, limit / 255))
            low, high = (limit, high) if float((found - one).square().mean()) < cost else (low, limit)
        # Rounding makes steps; of the pixels that the last one changes, as many are changed as the cost allows.
        ends = [round_8bit(one + away.clamp(-limit / 255, limit / 255)) for limit in (low, high)]
        costs = [float((end - one).square().mean()) for end in ends]
        share = (cost - costs[0]) / (costs[1] - costs[0]) if costs[1] > costs[0] else 0.0
        seen = one[:, :1] if is_grey(one) else one  # a grey picture stays grey
        drawn = torch.rand(seen.shape, generator=random_stream(0)).to(one.device)
        results.append(torch.where(drawn < share, ends[1], ends[0]))
    return torch.cat(results)


def apply_control(
    name: str,
    picture: Tensor,
    settings: AttackSettings = AttackSettings(),  # noqa: B008 (frozen)
) -> Tensor:
    """The picture under the control `name` of `CONTROLS`; result and errors as `attacks.pgd`. It takes no steps."""
    return _applied(CONTROLS[name], picture, settings)


def _applied(control: Control, picture: Tensor, settings: AttackSettings) -> Tensor:
    check_picture(picture)
    replace(settings, steps=1).check(picture)
    results = []
    for i, seed in enumerate(settings.seeds_of(len(picture))):
        part = slice(i, i + 1)
        clean = picture[part].float()
        budget = Budget(clean, settings.levels, settings.mask_of(part), settings.keep_grey, settings.visibility)
        seen = clean[:, :1] if budget.grey else clean
        delta = control(seen, settings.levels, random_stream(seed))
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
