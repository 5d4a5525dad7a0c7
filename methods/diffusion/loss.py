"""The denoising loss of DDPM (Ho et al., NeurIPS 2020, eq. 14), which customization minimises and attacks maximise."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pictures import noise
from .denoiser import Denoiser, add_noise


def l_ddpm(eps_hat: Tensor, eps: Tensor) -> Tensor:
    """|| eps - eps_theta(x_t, t) ||^2 as a mean, one value per sample."""
    return (eps_hat - eps).square().flatten(1).mean(1)


def noised_loss(
    denoiser: Denoiser, z: Tensor, t: Tensor, generators: list[torch.Generator], *, trainable: bool = False
) -> Tensor:
    """L_ddpm of z (N×C×h×w in model space) at 0-based timesteps t (N), each sample with noise of its own stream: N.

    trainable: gradients reach the network's weights, too.
    """
    eps = noise(tuple(z.shape[1:]), generators, z.device)
    x_t = add_noise(z, eps, denoiser.alphas_cumprod[t])
    return l_ddpm(denoiser.predict_trainable(x_t, t) if trainable else denoiser.predict_noise(x_t, t), eps)
