"""Sliced Wasserstein distance between sets of vectors or of picture patches.

Rabin et al., "Wasserstein Barycenter and its Application to Texture Mixing" (2011); on patches as in Karras et al.,
"Progressive Growing of GANs" (ICLR 2018), here on pixels at full size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import AntiPureError, sizes
from ..pictures import check_picture, random_stream


def wasserstein_1d(first: Tensor, second: Tensor) -> Tensor:
    """W1 of two samples on a line, for every column: the area between their quantile functions.

    first: N×K, second: M×K, each at least 1×K; weights are equal within a sample, N and M need not be.
    Returns K values, float64.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or not len(first) or not len(second):
        shapes = f"{sizes(first.shape)} and {sizes(second.shape)}"
        raise AntiPureError(f"The samples have shapes {shapes}; give N×K and M×K with at least one row each.")
    a, b = first.double().sort(0).values, second.double().sort(0).values
    n, m = len(a), len(b)
    if n == m:
        return (a - b).abs().mean(0)
    # Both quantile functions are constant between neighbouring multiples of 1/n and 1/m; whole numbers of 1/(n m).
    edges = torch.cat([torch.arange(n + 1) * m, torch.arange(m + 1) * n]).unique()
    widths, start = edges.diff().double().to(a.device) / (n * m), edges[:-1].to(a.device)
    return ((a[start // m] - b[start // n]).abs() * widths[:, None]).sum(0)


def sliced_wasserstein(first: Tensor, second: Tensor, *, directions: int = 128, seed: int = 0) -> float:
    """Mean W1 over random unit directions of the projected samples.

    first: N×D, second: M×D, float. Directions are the same for a seed; the unit is that of the coordinates.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1:] != second.shape[1:]:
        shapes = f"{sizes(first.shape)} and {sizes(second.shape)}"
        raise AntiPureError(f"The samples have shapes {shapes}; give N×D and M×D.")
    if directions < 1:
        raise AntiPureError(f"{directions} directions; at least 1 is needed.")
    drawn = torch.randn(first.shape[1], directions, generator=random_stream(seed), dtype=torch.float64)
    axes = F.normalize(drawn, dim=0).to(first.device)
    return float(wasserstein_1d(first.double() @ axes, second.double() @ axes).mean())


def picture_patches(pictures: Tensor, side: int = 8, stride: int = 8) -> Tensor:
    """All side×side patches of B×3×H×W pictures on a grid: N×(3 side²)."""
    check_picture(pictures)
    if side < 1 or stride < 1 or min(pictures.shape[-2:]) < side:
        raise AntiPureError(f"Patches of {side} px do not fit into pictures of {sizes(pictures.shape[-2:])}.")
    return F.unfold(pictures.float(), side, stride=stride).transpose(1, 2).flatten(0, 1)


def patch_distance(first: Tensor, second: Tensor, *, side: int = 8, stride: int = 8, seed: int = 0) -> float:
    """Sliced Wasserstein distance of the patches of two sets of pictures (B×3×H×W in 0..1).

    Means over directions of lengths in the 3·side² dimensions of a patch: two flat grey sets that differ by d are
    about 0.8 d apart, whatever the side.
    """
    return sliced_wasserstein(picture_patches(first, side, stride), picture_patches(second, side, stride), seed=seed)
