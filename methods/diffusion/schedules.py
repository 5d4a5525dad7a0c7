"""Noise levels of foreign samplers as the `alphas_cumprod` of a variance-preserving process (DDPM).

Two conventions are in use, x0 the clean latent, n standard normal noise:

    variance exploding (eps, v-prediction, EDM)   x = x0 + sigma n
    flow (rectified flow, flow matching)          x = (1 - sigma) x0 + sigma n

Both are x = scale · x_t with x_t = sqrt(abar) x0 + sqrt(1 - abar) n: the same noise-to-signal ratio fixes abar.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TIMESTEPS = 1000


@dataclass(frozen=True)
class Schedule:
    """Three tables over the timesteps, float32.

    sigmas: the model's own noise levels, ascending. alphas_cumprod: abar of the equivalent DDPM step.
    scale: the model's input is scale · x_t.
    """

    sigmas: Tensor
    alphas_cumprod: Tensor
    scale: Tensor


def thousand_levels(sigmas: Tensor) -> Tensor:
    """The levels of timesteps 1..1000 from a table of any length: timestep k is k/1000 of the model's own schedule."""
    k = torch.arange(1, TIMESTEPS + 1, device=sigmas.device)
    return sigmas[(k * len(sigmas)).div(TIMESTEPS, rounding_mode="floor").clamp(min=1) - 1].float()


def variance_exploding(sigmas: Tensor) -> Schedule:
    """abar = 1 / (1 + sigma²), x = sqrt(1 + sigma²) x_t."""
    total = 1 + sigmas.double().square()
    return Schedule(sigmas, (1 / total).float(), total.sqrt().float())


def flow(sigmas: Tensor, noise_scale: float = 1.0) -> Schedule:
    """abar = (1 - sigma)² / ((1 - sigma)² + sigma²), x = sqrt((1 - sigma)² + sigma²) x_t.

    noise_scale: standard deviation of the model's noise, where it is not 1. abar never reaches 0, where x0 would
    not be defined.
    """
    clean, noise = (1 - sigmas.double()).square(), (noise_scale * sigmas.double()).square()
    return Schedule(sigmas, (clean / (clean + noise)).clamp(min=1e-8).float(), (clean + noise).sqrt().float())
