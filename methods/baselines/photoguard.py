"""PhotoGuard, encoder attack (Salman et al., "Raising the Cost of Malicious AI-Powered Image Editing", ICML 2023).

Pulls the picture's latent towards that of a grey one, so that an editor sees nothing to edit:

    minimise || E(x + delta) - E(target) ||^2

Budget: the released 0.06 of the [-1, 1] range, 7.65 levels; first step 0.02 (2.55 levels), decaying, from a random
start in the ball. 100 steps are our choice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..attacks.loss import Loss
from ..attacks.tiled_loss import TiledLoss
from ..diffusion.autoencoder import Autoencoder
from ..diffusion.denoiser import Denoiser
from .targets import VAE, served

LEVELS, STEPS, STEP_LEVELS = 7.65, 100, 2.55


def check_latent(encoder: Autoencoder | Denoiser, name: str) -> None:
    """Raise `AntiPureError` for a denoiser without a latent space."""
    if isinstance(encoder, Denoiser) and not encoder.latent:
        served(name, VAE, encoder)


def latent_distance(encoder: Autoencoder | Denoiser, tiles: Tensor, target: Tensor) -> Tensor:
    """|| E(tiles) - E(target) ||^2, summed over the latent. Both N×3×T×T pixels; N values."""
    with torch.no_grad():
        z_target = encoder.encode(target)
    return (encoder.encode(tiles) - z_target).square().flatten(1).sum(1)


def photoguard_loss(encoder: Autoencoder | Denoiser, clean: Tensor, target: Tensor | None = None) -> Loss:
    """The `Loss` for `attacks.pgd`: minus the distance to the target's latent.

    clean, target: 1×3×H×W pixels in [-1, 1]; the target is mid-grey where none is given.
    Raises `AntiPureError` for a denoiser that is not latent.
    """
    check_latent(encoder, "PhotoGuard")
    target = torch.zeros_like(clean) if target is None else target
    return TiledLoss(encoder, target, lambda tiles, aim, _: -latent_distance(encoder, tiles, aim))
