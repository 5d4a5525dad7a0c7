"""The paper's three terms: L_ddpm, Patch-wise Frequency Guidance and Erroneous Timestep Guidance (arXiv 2509.13922)."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.frequency import high_frequency_mean
from ...kernels.transfer import to_device
from ..diffusion.denoiser import Denoiser, add_noise, predict_x0
from ..diffusion.loss import l_ddpm
from ..pictures import noise
from .objective import Objective


def l_fre(x0_hat: Tensor, patch_size: int) -> Tensor:
    """Patch-wise Frequency Guidance: sigmoid of the mean signed high-frequency DCT coefficient, per sample."""
    return torch.sigmoid(high_frequency_mean(x0_hat, patch_size))


def l_errt(eps_err: Tensor, eps_hat: Tensor) -> Tensor:
    """Erroneous Timestep Guidance: -|| eps_theta(x_t, t_err) - eps_theta(x_t, t) ||^2 as a mean, per sample.

    A mean, because exp() of a sum over a picture underflows to 0 and leaves no gradient.
    """
    return -(eps_err - eps_hat).square().flatten(1).mean(1)


def paper_terms(denoiser: Denoiser, tiles: Tensor, generators: list[torch.Generator], o: Objective) -> Tensor:
    """L_ddpm + l1 exp(abar_t - 1) L_fre + l2 exp(L_errt), one value per tile (N×3×T×T pixels).

    Each tile draws its own t and eps. One forward on x_t serves all three terms; ETG adds the second timestep
    to the same batch.
    """
    z = denoiser.encode(tiles)
    t = to_device(torch.cat([torch.randint(o.t_p, (1,), generator=g) for g in generators]), z.device)
    eps = noise(tuple(z.shape[1:]), generators, z.device)
    abar_t = denoiser.alphas_cumprod[t]
    x_t = add_noise(z, eps, abar_t)
    if o.etg:
        t_err = torch.full_like(t, o.t_err - 1)
        eps_hat, eps_err = denoiser.predict_noise(torch.cat([x_t, x_t]), torch.cat([t, t_err])).chunk(2)
    else:
        eps_hat = denoiser.predict_noise(x_t, t)
    loss = o.ddpm * l_ddpm(eps_hat, eps)
    if o.pfg:
        x0_hat = denoiser.decode(predict_x0(x_t, eps_hat, abar_t))
        loss = loss + o.pfg * torch.exp(abar_t - 1) * l_fre(x0_hat, o.patch_size)
    if o.etg:
        loss = loss + o.etg * torch.exp(l_errt(eps_err, eps_hat))
    return loss
