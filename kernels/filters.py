"""Classical picture filters, differentiable, on any device: Gaussian, median, bilateral.

x is B×C×H×W float of any range; filters keep the size and continue the picture by its border pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .transfer import to_device


def _extended(x: Tensor, radius: int) -> Tensor:
    return F.pad(x, (radius,) * 4, mode="replicate")


def gaussian_weights(sigma: float, radius: int) -> Tensor:
    """A Gaussian of `sigma` pixels along one axis, 2 radius + 1 weights that sum to 1: float64 on the CPU."""
    weights = (-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2).exp()
    return weights / weights.sum()


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian of `sigma` pixels, cut off at 4 sigma (scipy's `gaussian_filter`, mode "nearest")."""
    radius = int(4 * sigma + 0.5)
    if radius == 0:
        return x
    return separable(_extended(x, radius), to_device(gaussian_weights(sigma, radius), x.device, x.dtype))


def separable(x: Tensor, weights: Tensor) -> Tensor:
    """x filtered by the same K weights along rows and columns, where the window lies inside: B×C×(H-K+1)×(W-K+1).

    All pictures and channels as the channels of one: for that CPUs have a fast convolution, for many pictures of one
    channel they have none.
    """
    maps = x.flatten(0, 1)[None].contiguous(memory_format=torch.channels_last)
    count = maps.shape[1]
    maps = F.conv2d(maps, weights.view(1, 1, 1, -1).expand(count, 1, 1, -1), groups=count)
    maps = F.conv2d(maps, weights.view(1, 1, -1, 1).expand(count, 1, -1, 1), groups=count)
    return maps[0].unflatten(0, x.shape[:2])


def median(x: Tensor, window: int) -> Tensor:
    """Median over window×window pixels of each channel, window odd. Takes window² times the picture's memory."""
    h, w = x.shape[-2:]
    extended = _extended(x, window // 2)
    shifted = [extended[..., i : i + h, j : j + w] for i in range(window) for j in range(window)]
    values = torch.stack(shifted)
    if x.device.type != "cpu" and torch.are_deterministic_algorithms_enabled():
        return values.sort(dim=0, stable=True).values[len(shifted) // 2]  # CUDA has no median in a fixed order
    return values.median(0).values


def bilateral(x: Tensor, sigma_range: float, sigma_space: float = 2.0) -> Tensor:
    """Bilateral filter: weights fall with the distance in space and in colour (all channels together).

    w = exp(-d² / 2 sigma_space²) exp(-|x_i - x_j|² / 2 sigma_range²) over a window of 2 sigma_space each way
    (Tomasi & Manduchi 1998). sigma_space in pixels, sigma_range in the units of x.
    """
    radius = math.ceil(2 * sigma_space)
    h, w = x.shape[-2:]
    extended = _extended(x, radius)
    total, norm = torch.zeros_like(x), torch.zeros_like(x[:, :1])
    for i in range(-radius, radius + 1):
        for j in range(-radius, radius + 1):
            other = extended[..., radius + i : radius + i + h, radius + j : radius + j + w]
            distance = (other - x).square().sum(1, keepdim=True)
            weight = (-(i * i + j * j) / (2 * sigma_space**2) - distance / (2 * sigma_range**2)).exp()
            total, norm = total + weight * other, norm + weight
    return total / norm
