"""The forward process of diffusion (Ho et al., NeurIPS 2020, eq. 4): noise of a timestep into a picture."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import run


def add_noise(x0: Tensor, eps: Tensor, abar_t: Tensor) -> Tensor:
    """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps.

    x0: N×C×H×W in model space (pixels -1..1, or latents). eps: standard normal, of the same shape. abar_t: one value
    per sample (N, or one for all), 0..1, no gradient. Returns N×C×H×W of x0's dtype; gradients reach x0 and eps. The
    noise is always given, never drawn here: results must not depend on the device (`pictures.random_stream`).

    Triton and torch agree to one rounding of the sum. Raises `ValueError` for shapes that differ.
    """
    if x0.shape != eps.shape:
        raise ValueError(f"x0 and its noise must have one shape, not {tuple(x0.shape)} and {tuple(eps.shape)}")
    # At least float32: in half precision 1 - abar of the first timesteps would be 0, and no noise at all.
    abar = abar_t.to(torch.promote_types(abar_t.dtype, x0.dtype)).view(-1, 1, 1, 1)
    return _AddNoise.apply(x0, eps.to(x0), abar.sqrt().to(x0), (1 - abar).sqrt().to(x0))


class _AddNoise(torch.autograd.Function):
    """Keeps the two coefficients for the backward, and no picture."""

    @staticmethod
    def forward(ctx, x0: Tensor, eps: Tensor, signal: Tensor, spread: Tensor) -> Tensor:
        ctx.save_for_backward(signal, spread)
        return run("noising.combine", _combine_torch, x0, eps, signal, spread)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        signal, spread = ctx.saved_tensors
        of_x0, of_eps = ctx.needs_input_grad[:2]
        return gradient * signal if of_x0 else None, gradient * spread if of_eps else None, None, None


def _combine_torch(x0: Tensor, eps: Tensor, signal: Tensor, spread: Tensor) -> Tensor:
    return (signal * x0).add_(spread * eps)
