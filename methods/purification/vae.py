"""The VAE round trip: the weakest purifier of a latent model."""

from __future__ import annotations

import torch
from torch import Tensor

from ..diffusion.autoencoder import Autoencoder
from ..diffusion.denoiser import Denoiser
from ..errors import AntiPureError
from ..pictures import (
    check_picture,
    pad_reflect,
    round_8bit,
    round_up,
    to_picture,
    to_pixels,
)
from ..progress import Progress, silent
from .settings import check_purifier, nan_if_infinite


@torch.no_grad()
def vae_round_trip(
    picture: Tensor, vae: Denoiser | Autoencoder, *, iterations: int = 1, progress: Progress = silent
) -> Tensor:
    """Through the VAE and back, `iterations` times over: the weakest purifier of a latent model, without noise.

    picture: B×3×H×W in 0..1, any size (mirrored up to the VAE's multiple, never cropped). vae: one, or a denoiser that
    has one. Returns 8-bit-rounded B×3×H×W in 0..1. Raises `AntiPureError` for bad pictures and for denoisers without
    a VAE.
    """
    check_picture(picture)
    if isinstance(vae, Denoiser):
        check_purifier(vae, 1, iterations)
        if not vae.latent:
            raise AntiPureError("This denoiser works on pixels and has no VAE; use 'gridpure' or 'diffpure' with it.")
    elif iterations < 1:
        raise AntiPureError(f"The purifier is to run {iterations} iterations; at least 1 is needed.")
    h, w = picture.shape[-2:]
    results = []
    for i, single in enumerate(picture.float().split(1)):
        for iteration in range(iterations):
            pixels = to_pixels(single)
            pixels = pad_reflect(pixels, round_up(h, vae.multiple), round_up(w, vae.multiple))
            decoded = vae.decode(vae.encode(pixels))
            pixels = nan_if_infinite(decoded, decoded)
            single = round_8bit(to_picture(pixels[..., :h, :w]))
            progress(i * iterations + iteration + 1, len(picture) * iterations, single)
        results.append(single)
    return torch.cat(results)
