"""AdvDM (Liang et al., "Adversarial Example Does Good", ICML 2023, arXiv 2302.04578).

Maximises the diffusion model's own training loss over the picture, one timestep and noise per gradient step:

    E_{t ~ U(1, T), eps} || eps - eps_theta(x_t, t) ||^2

Budget here: 8 levels, the usual one. Steps (100) and step size (1 level) are our choice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.transfer import to_device
from ..attacks.loss import Loss
from ..attacks.tiled_loss import TiledLoss
from ..diffusion.denoiser import Denoiser
from ..diffusion.loss import noised_loss

LEVELS, STEPS, STEP_LEVELS = 8.0, 100, 1.0


def ddpm_terms(denoiser: Denoiser, tiles: Tensor, generators: list[torch.Generator]) -> Tensor:
    """L_ddpm of N×3×T×T pixels at timesteps drawn from all of the schedule: N values."""
    z = denoiser.encode(tiles)
    t = to_device(draw_timesteps(torch.arange(denoiser.timesteps), generators), z.device)
    return noised_loss(denoiser, z, t, generators)


def draw_timesteps(timesteps: Tensor, generators: list[torch.Generator]) -> Tensor:
    """One of the given timesteps for each generator."""
    return torch.cat([timesteps[torch.randint(len(timesteps), (1,), generator=g)] for g in generators])


def advdm_loss(denoiser: Denoiser, clean: Tensor) -> Loss:
    """The `Loss` for `attacks.pgd`. clean: 1×3×H×W pixels in [-1, 1]. Works for any denoiser."""
    return TiledLoss(denoiser, clean, lambda tiles, _, generators: ddpm_terms(denoiser, tiles, generators))
