"""Mist (Liang and Wu, "Mist: Towards Improved Adversarial Examples for Diffusion Models", 2023, arXiv 2305.12683).

    textural    minimise || E(x + delta) - E(target) ||^2, the target a picture of high contrast
    semantic    maximise L_ddpm (AdvDM's loss)
    fused       maximise rate * L_ddpm - || E(x + delta) - E(target) ||^2

As released, the distance is a *sum* over the latent, L_ddpm a mean, and the rate of 1e4 multiplies L_ddpm. With smaller
latents than the released 4×64×64 the sum weighs less.
Budget: version 1, 16 levels in 100 steps of 1 level (version 2 of the tool: 4 levels). The target is a pattern of our
own, not the released one.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from ...kernels.rings import rings
from ..attacks.loss import Loss
from ..attacks.tiled_loss import TiledLoss
from ..diffusion.autoencoder import Autoencoder
from ..diffusion.denoiser import Denoiser
from ..errors import AntiPureError
from .advdm import ddpm_terms
from .photoguard import check_latent, latent_distance

LEVELS, STEPS, STEP_LEVELS = 16.0, 100, 1.0
RATE = 1e4
RING = 32  # pixels from one ring of the target to the next of its colour


def target_pattern(height: int, width: int) -> Tensor:
    """`kernels.rings` with Mist's period. 1×3×H×W, -1 or 1."""
    return rings(height, width, RING)


def mist_loss(encoder: Autoencoder | Denoiser, clean: Tensor, mode: str = "fused", rate: float = RATE) -> Loss:
    """The `Loss` for `attacks.pgd`. clean: 1×3×H×W pixels in [-1, 1]. mode: "fused", "textural" or "semantic".

    Raises `AntiPureError` for a denoiser that is not latent, except in the semantic mode, and for a VAE, except in the
    textural mode.
    """
    if mode != "semantic":
        check_latent(encoder, "Mist")
    if mode != "textural" and not isinstance(encoder, Denoiser):
        raise AntiPureError("Mist's denoising loss is one of a diffusion model; take its textural mode for a VAE.")
    target = target_pattern(*clean.shape[-2:]).to(clean)

    def terms(tiles: Tensor, aim: Tensor, generators: list[torch.Generator]) -> Tensor:
        if mode == "textural":
            return -latent_distance(encoder, tiles, aim)
        semantic = ddpm_terms(cast(Denoiser, encoder), tiles, generators)
        return semantic if mode == "semantic" else rate * semantic - latent_distance(encoder, tiles, aim)

    return TiledLoss(encoder, target, terms)
