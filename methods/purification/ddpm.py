"""Ancestral DDPM sampling from a noised picture back to a clean one: the engine of every diffusion purifier."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..diffusion.denoiser import Denoiser, add_noise, predict_x0
from ..pictures import noises
from .settings import nan_if_infinite


def ddpm_step(
    denoiser: Denoiser,
    x_t: Tensor,
    eps: Tensor,
    t: int,
    step_noise: Tensor | None,
    variance: Tensor | None = None,
    before: int | None = None,
) -> Tensor:
    """One ancestral step x_t -> x_before, 0-based t: posterior mean with x0_hat clamped to [-1, 1] (DDPM, eq. 7).

    step_noise: standard normal, or None for the step to the clean picture, where none is added.
    variance: the learned fraction v in [-1, 1] (Improved DDPM, eq. 15), or None for the fixed small beta_tilde.
    before: the timestep to go to, t - 1 by default; -1 is the clean picture. A longer step is DDIM's with eta = 1
        (Song et al., ICLR 2021, eq. 12 and 16), which is the ancestral step of the respaced process: whatever the
        spacing, x_before given x0 has the forward process's own distribution.
    """
    abar = denoiser.alphas_cumprod
    abar_t = abar[t]
    before = t - 1 if before is None else before
    abar_prev = abar[before] if before >= 0 else torch.ones_like(abar_t)
    alpha_t = abar_t / abar_prev
    beta_t = 1 - alpha_t
    x0_hat = denoiser.clamp(predict_x0(x_t, eps, abar_t))
    mean = (abar_prev.sqrt() * beta_t * x0_hat + alpha_t.sqrt() * (1 - abar_prev) * x_t) / (1 - abar_t)
    if before < 0 or step_noise is None:
        return mean
    log_small = ((1 - abar_prev) / (1 - abar_t) * beta_t).clamp(min=1e-20).log()
    if variance is None:
        log_variance = log_small
    else:
        fraction = (variance + 1) / 2
        log_variance = fraction * beta_t.log() + (1 - fraction) * log_small
    return mean + (0.5 * log_variance).exp() * step_noise


def sdedit(
    denoiser: Denoiser,
    z: Tensor,
    timestep: int,
    generators: list[torch.Generator],
    on_step: Callable[[], None] = lambda: None,
    substeps: int = 0,
) -> Tensor:
    """Noise z to `timestep`, then sample back with `timestep` ancestral steps (SDEdit, Meng et al., ICLR 2022, alg. 1).

    z: N×C×H×W in model space, one generator per sample. Returns N×C×H×W. on_step runs after every forward.
    substeps: as in `respaced_timesteps`.
    """
    shape = tuple(z.shape[1:])
    timesteps = respaced_timesteps(timestep, substeps)
    drawn = noises(len(timesteps), shape, generators, z.device)  # at the start, and after all steps but the last
    x = add_noise(z, next(drawn), denoiser.alphas_cumprod[timestep - 1])
    for t, before in zip(timesteps, [*timesteps[1:], -1], strict=True):
        eps, variance = denoiser.predict(x, torch.full((len(x),), t, device=x.device))
        step_noise = next(drawn) if before >= 0 else None
        x = nan_if_infinite(ddpm_step(denoiser, x, eps, t, step_noise, variance, before), eps)
        on_step()
    return x


def respaced_timesteps(timestep: int, substeps: int = 0) -> list[int]:
    """The timesteps (0-based) at which `sdedit` runs the network: `substeps` of them, evenly spaced, highest first
    (the respaced process of Nichol and Dhariwal, ICML 2021, sec. 4).

    0: all, timestep - 1 down to 0. The first is always timestep - 1, where the noised picture is.
    """
    count = substeps or timestep
    return [-(-(count - i) * timestep // count) - 1 for i in range(count)]
