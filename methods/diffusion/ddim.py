"""Deterministic sampling: DDIM (Song et al., ICLR 2021)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import AntiPureError, sizes
from ..pictures import check_picture, noise, random_stream, to_picture, to_pixels
from ..progress import Progress, silent
from .denoiser import Denoiser, add_noise, predict_x0


@torch.no_grad()
def generate(
    denoiser: Denoiser,
    count: int,
    size: int | None = None,
    seed: int = 0,
    *,
    steps: int = 40,
    start: Tensor | None = None,
    timestep: int | None = None,
    progress: Progress = silent,
) -> Tensor:
    """Pictures from noise, by deterministic DDIM (Song et al., ICLR 2021, eq. 12 with sigma = 0).

    count: how many. size: side in pixels (None: the denoiser's tile), a multiple of `denoiser.multiple`. seed: every
    picture has its own stream, so more pictures do not change the first ones.
    steps: forwards per picture, timesteps evenly spaced from `timestep` (None: all of the schedule) down to 0.
    start: B×3×size×size in 0..1, taken in turn, noised to `timestep` and sampled back (SDEdit); None: pure noise.

    The bundled model is a denoiser more than a generator: from pure noise it makes texture in arbitrary colours, and
    once customized texture with the subject's strokes, not the subject. A start gives it the colours; to compare
    versions, give all of them the same start.
    Returns count×3×size×size in 0..1. Raises `AntiPureError` for bad counts, sizes and timesteps.
    """
    total = denoiser.timesteps if timestep is None else timestep
    if not 1 <= total <= denoiser.timesteps:
        raise AntiPureError(f"The timestep is {total}; it must lie in 1..{denoiser.timesteps} for this denoiser.")
    if count < 1 or not 1 <= steps <= total:
        raise AntiPureError(f"{count} pictures in {steps} steps: at least 1 picture is needed, and 1..{total} steps.")
    size = (denoiser.tile or denoiser.multiple) if size is None else size
    if size < 1 or size % denoiser.multiple:
        raise AntiPureError(f"The size is {size}; it must be a multiple of {denoiser.multiple} for this denoiser.")
    blank = torch.full((1, 3, size, size), 0.5)
    if start is not None:
        check_picture(start, "start")
        if start.shape[-2:] != blank.shape[-2:]:
            raise AntiPureError(f"The start is {sizes(start.shape[-2:])} pixels; give it {size}×{size}.")
    abar = denoiser.alphas_cumprod
    times = torch.linspace(total - 1, 0, steps, dtype=torch.float64).round().long().tolist()
    scheduler = _respaced(abar[times])
    results, done = [], 0
    for part in denoiser.batching.batches(count, size, size):
        numbers = range(part.start, part.stop)
        source = blank.expand(len(numbers), -1, -1, -1) if start is None else start[[i % len(start) for i in numbers]]
        x = denoiser.encode(to_pixels(source.float()).to(denoiser.device))
        eps = noise(tuple(x.shape[1:]), [random_stream(seed, i) for i in numbers], x.device)
        x = eps if start is None else add_noise(x, eps, abar[times[0]].expand(len(x)))
        for place, t in zip(scheduler.timesteps, times, strict=True):
            eps = denoiser.predict_noise(x, torch.full((len(x),), t, device=x.device))
            x0 = denoiser.clamp(predict_x0(x, eps, abar[t].expand(len(x))))
            x = scheduler.step(x0, place, x).prev_sample
            done += len(x)
            progress(done, count * steps)
        results.append(to_picture(denoiser.decode(x)).cpu())
    return torch.cat(results)


def _respaced(alphas_cumprod: Tensor) -> Any:
    """diffusers' scheduler over a process of these timesteps only, highest noise first.

    It takes x0_hat: the direction of the next step is then the one that goes with the clamped x0_hat, so that x_t
    stays what the model knows. Its last step ends at x0_hat.
    """
    from diffusers import DDIMScheduler

    steps = len(alphas_cumprod)
    scheduler: Any = DDIMScheduler(steps, prediction_type="sample", clip_sample=False, set_alpha_to_one=True)
    scheduler.alphas_cumprod = alphas_cumprod.flip(0)
    scheduler.set_timesteps(steps)
    return scheduler
