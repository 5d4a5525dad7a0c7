"""DiffPure (Nie et al., ICML 2022)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.denoiser import Denoiser
from ..errors import AntiPureError
from ..pictures import (
    check_picture,
    pad_reflect,
    random_stream,
    round_8bit,
    round_up,
    to_picture,
    to_pixels,
)
from ..progress import Progress, silent
from .ddpm import sdedit
from .settings import check_purifier, nan_if_infinite


@torch.no_grad()
def diffpure(
    picture: Tensor,
    denoiser: Denoiser,
    *,
    timestep: int = 100,
    iterations: int = 1,
    resize: bool = False,
    seed: int = 0,
    progress: Progress = silent,
    substeps: int = 0,
) -> Tensor:
    """DiffPure: noise the whole picture to `timestep`, sample back; `iterations` times over.

    picture: B×3×H×W in 0..1. timestep: 1..T (150 in the paper's ImageNet setting, 100 usual against protections).
    resize: bring the picture to the model's native square and back, as published; otherwise the fully
    convolutional network takes it at its own size.
    substeps: at how many of the timesteps the network runs, 0: at all; see `respaced_timesteps`.
    Returns 8-bit-rounded B×3×H×W in 0..1. Raises `AntiPureError` for bad pictures and settings.
    """
    check_picture(picture)
    check_purifier(denoiser, timestep, iterations, substeps=substeps)
    side = denoiser.tile if resize else None
    if resize and side is None:
        raise AntiPureError("This denoiser has no native size to resize to; use 'diffpure' at the picture's own size.")
    total, done = len(picture) * iterations * (substeps or timestep), 0

    def on_step() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    results = []
    for single in picture.float().split(1):
        h, w = single.shape[-2:]
        pixels = to_pixels(single)
        if side is not None:
            pixels = F.interpolate(pixels, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
        else:
            pixels = pad_reflect(pixels, round_up(h, denoiser.multiple), round_up(w, denoiser.multiple))
        z = denoiser.encode(pixels)
        for iteration in range(iterations):
            z = sdedit(denoiser, z, timestep, [random_stream(seed, iteration)], on_step, substeps)
        decoded = denoiser.decode(z)
        pixels = nan_if_infinite(decoded, decoded)
        if resize:
            pixels = F.interpolate(pixels, (h, w), mode="bicubic", antialias=True)
        results.append(round_8bit(to_picture(pixels[..., :h, :w])))
        progress(done, total, results[-1])
    return torch.cat(results)
