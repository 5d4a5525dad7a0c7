"""Patch-wise DCT and its closed form for Patch-wise Frequency Guidance (AntiPure, section "PFG").

Orthonormal 2-D DCT-II of s×s patches: DCT(P) = C P Cᵀ with C the s×s DCT matrix.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor


@functools.lru_cache(maxsize=32)
def _dct_matrix_cpu(size: int) -> Tensor:
    k = torch.arange(size, dtype=torch.float64)[:, None]
    n = torch.arange(size, dtype=torch.float64)[None, :]
    matrix = math.sqrt(2 / size) * torch.cos(math.pi * (2 * n + 1) * k / (2 * size))
    matrix[0] /= math.sqrt(2)
    return matrix


def dct_matrix(size: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """Orthonormal DCT-II matrix C, size×size: row k holds the k-th cosine."""
    # A copy: the cached one may be an inference tensor, and callers may write into theirs.
    return _dct_matrix_cpu(size).to(device=device, dtype=dtype, copy=True)


def patch_dct(x: Tensor, size: int = 8) -> Tensor:
    """Orthonormal 2-D DCT-II of every non-overlapping size×size patch: the plain reference.

    x: B×C×H×W. Rows and columns beyond the last whole patch are left out.
    Returns B×C×(H//size)×(W//size)×size×size coefficients, [..., m, n] with m the vertical frequency.
    """
    b, c, h, w = x.shape
    rows, cols = h // size, w // size
    if rows == 0 or cols == 0:
        raise ValueError(f"a {h}x{w} picture holds no {size}x{size} patch; use a smaller patch size")
    patches = x[..., : rows * size, : cols * size].reshape(b, c, rows, size, cols, size).transpose(3, 4)
    matrix = dct_matrix(size, dtype=x.dtype, device=x.device)
    return matrix @ patches @ matrix.T


def high_frequency_template(
    size: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """The size×size picture t tᵀ with ⟨t tᵀ, P⟩ = sum of DCT(P)[m, n] over m, n >= size/2.

    t is the sum of the last size/2 rows of the DCT matrix (METHODS: PFG is linear in the picture).
    """
    t = _dct_matrix_cpu(size)[size // 2 :].sum(0)
    return torch.outer(t, t).to(device=device, dtype=dtype)


def high_frequency_mean(x: Tensor, size: int = 8) -> Tensor:
    """Mean over patches and channels of (4/s²) · Σ_{m,n >= s/2} DCT(patch)[m, n], in closed form.

    One strided correlation with a fixed template: no transform, and the gradient is the template itself.
    Equal to `patch_dct(x, s)[..., s//2:, s//2:].sum((-2, -1)).mean((1, 2, 3)) * 4 / s**2`.

    x: B×C×H×W, H and W >= size. Returns B values, one per picture.
    """
    b, c, h, w = x.shape
    if h < size or w < size:
        raise ValueError(f"a {h}x{w} picture holds no {size}x{size} patch; use a smaller patch size")
    template = high_frequency_template(size, dtype=x.dtype, device=x.device) * (4 / size**2)
    responses = F.conv2d(x.reshape(b * c, 1, h, w), template[None, None], stride=size)
    return responses.reshape(b, -1).mean(1)


def high_frequency_energy(x: Tensor, size: int = 8) -> Tensor:
    """DCT energy at or above a quarter of the sampling rate in either direction: max(m, n) >= size/2.

    x: B×C×H×W. Returns B values: mean of the squared coefficients over patches, channels and those (m, n).
    """
    coefficients = patch_dct(x, size)
    index = torch.arange(size, device=x.device)
    high = torch.maximum(index[:, None], index[None, :]) >= size // 2
    return coefficients[..., high].square().flatten(1).mean(1)
