"""Structural similarity (Wang, Bovik, Sheikh & Simoncelli, IEEE TIP 2004) and its contrast-structure term."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .filters import gaussian_weights, separable

SIGMA = 1.5
RADIUS = 5  # 11×11 pixels, as published
K1, K2 = 0.01, 0.03


def ssim_terms(reference: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM and its mean contrast-structure term, B values each: 11×11 Gaussian window, sigma 1.5, data range 1.

    reference, picture: B×C×H×W floats in 0..1, H and W >= 6 (the window is mirrored at the borders, without repeating
    them). ssim is the mean over all pixels; contrast-structure, (2 cov + c2) / (var + var + c2), over those whose
    window lies inside the picture: both as torchmetrics has them. NaN for the latter where H or W is below 11.
    float32 for half precision too. Raises `ValueError` for shapes that differ or a side below 6.
    """
    if reference.shape != picture.shape:
        raise ValueError(f"pictures of one shape are needed, not {tuple(reference.shape)} and {tuple(picture.shape)}")
    h, w = reference.shape[-2:]
    if min(h, w) <= RADIUS:
        raise ValueError(f"a {h}x{w} picture is smaller than half the 11x11 window")
    dtype = torch.promote_types(reference.dtype, torch.float32)
    # One picture after another: ten maps of each are alive at once.
    both = [_terms_of_one(a.to(dtype), b.to(dtype)) for a, b in zip(reference, picture, strict=True)]
    ssim, contrast = zip(*both, strict=True)
    return torch.stack(ssim), torch.stack(contrast)


@functools.lru_cache(maxsize=4)
def gaussian_window(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The 11 weights of the window along one axis; their sum is 1."""
    with torch.inference_mode(False):
        return gaussian_weights(SIGMA, RADIUS).to(device=device, dtype=dtype)


def _terms_of_one(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    weights = gaussian_window(a.dtype, a.device)
    stacked = F.pad(torch.stack([a, b]), (RADIUS,) * 4, mode="reflect")
    a, b = stacked
    maps = torch.cat([stacked, torch.stack([a * a, b * b, a * b])])
    mean_a, mean_b, square_a, square_b, product = separable(maps, weights)
    means, mean_squares = mean_a * mean_b, mean_a.square() + mean_b.square()
    # Clamped one by one: rounding makes the variance of a flat window slightly negative.
    variances = (square_a - mean_a.square()).clamp(min=0) + (square_b - mean_b.square()).clamp(min=0)
    contrast = (2 * (product - means) + K2**2) / (variances + K2**2)
    ssim = (2 * means + K1**2) / (mean_squares + K1**2) * contrast
    inside = contrast[..., RADIUS : contrast.shape[-2] - RADIUS, RADIUS : contrast.shape[-1] - RADIUS]
    return ssim.mean(), inside.mean() if inside.numel() else ssim.new_tensor(math.nan)
