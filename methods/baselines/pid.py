"""PID (Li, Mo, Li and Wang, "PID: Prompt-Independent Data Protection Against Latent Diffusion Models", ICML 2024).

arXiv 2406.15305. Moves the distribution that the VAE's encoder gives, whatever text the picture is trained with:

    maximise  mean (mu(x + delta) - mu(x))^2 + mean (log var(x + delta) - log var(x))^2

Latents are the VAE's own, before a diffusion model scales them. A VAE without a variance, such as TAESD, has the first
term alone; our choice, since the paper knows none.
Budget: the released 12.75 levels in 1000 steps of 1 level that do not decay, from a random start in the ball.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..attacks.loss import Loss
from ..attacks.tiled_loss import TiledLoss
from ..diffusion.autoencoder import Autoencoder
from ..diffusion.denoiser import Denoiser
from .photoguard import check_latent

LEVELS, STEPS, STEP_LEVELS = 12.75, 1000, 1.0


def moments_distance(encoder: Autoencoder | Denoiser, tiles: Tensor, clean: Tensor) -> Tensor:
    """The squared differences of mean and log variance, each a mean over the latent. Both N×3×T×T pixels; N values."""
    with torch.no_grad():
        still = encoder.moments(clean)
    moved = encoder.moments(tiles)
    value = (moved[0] - still[0]).square().flatten(1).mean(1)
    if moved[1] is not None and still[1] is not None:
        value = value + (moved[1] - still[1]).square().flatten(1).mean(1)
    return value


def pid_loss(encoder: Autoencoder | Denoiser, clean: Tensor) -> Loss:
    """The `Loss` for `attacks.pgd`. clean: 1×3×H×W pixels in [-1, 1].

    Raises `AntiPureError` for a denoiser that is not latent.
    """
    check_latent(encoder, "PID")
    return TiledLoss(encoder, clean, lambda tiles, still, _: moments_distance(encoder, tiles, still))
