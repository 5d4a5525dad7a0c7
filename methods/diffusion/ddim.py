"""Deterministic sampling: DDIM (Song et al., ICLR 2021)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import AntiPureError
from ..pictures import check_picture, noise, random_stream, to_picture, to_pixels
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
    on_step: Callable[[int, int], None] = lambda done, total: None,
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
            raise AntiPureError(f"The start is {tuple(start.shape[-2:])} pixels; give it {size}×{size}.")
    abar = denoiser.alphas_cumprod
    times = torch.linspace(total - 1, 0, steps, dtype=torch.float64).round().long().tolist()
    results, done = [], 0
    for part in denoiser.batching.batches(count, size, size):
        numbers = range(part.start, part.stop)
        source = blank.expand(len(numbers), -1, -1, -1) if start is None else start[[i % len(start) for i in numbers]]
        x = denoiser.encode(to_pixels(source.float()).to(denoiser.device))
        eps = noise(tuple(x.shape[1:]), [random_stream(seed, i) for i in numbers], x.device)
        x = eps if start is None else add_noise(x, eps, abar[times[0]].expand(len(x)))
        for t, following in zip(times, [*times[1:], None], strict=True):
            abar_t = abar[t].expand(len(x))
            eps = denoiser.predict_noise(x, torch.full((len(x),), t, device=x.device))
            x0 = denoiser.clamp(predict_x0(x, eps, abar_t))
            if following is not None:
                # The direction that goes with the clamped x0, so that x_t stays what the model knows.
                eps = (x - abar[t].sqrt() * x0) / (1 - abar[t]).sqrt()
                x0 = add_noise(x0, eps, abar[following].expand(len(x)))
            x = x0
            done += len(x)
            on_step(done, count * steps)
        results.append(to_picture(denoiser.decode(x)).cpu())
    return torch.cat(results)
