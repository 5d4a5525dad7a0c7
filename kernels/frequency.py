"""Patch-wise DCT and its closed form for Patch-wise Frequency Guidance (AntiPure, arXiv 2509.13922, "PFG").

Orthonormal 2-D DCT-II of s×s patches: DCT(P) = C P Cᵀ with C the s×s DCT matrix. Plain torch: Triton's versions of
both were slower on a GPU (benchmarks/results/2026-11-26-gpu.md).
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


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
    _check(size, h, w)
    rows, cols = h // size, w // size
    matrix = dct_matrix(size, dtype=x.dtype, device=x.device)
    whole = x[..., : rows * size, : cols * size]
    # Both products run over long contiguous rows; patch by patch they would be thousands of tiny ones.
    across = whole.reshape(b, c, rows, size * cols, size) @ matrix.T
    both = matrix @ across.view(b, c, rows, size, cols * size)
    return both.view(b, c, rows, size, cols, size).transpose(3, 4)


def _check(size: int, height: int, width: int) -> None:
    if height < size or width < size:
        raise ValueError(f"a {height}x{width} picture holds no {size}x{size} patch; use a smaller patch size")


@functools.lru_cache(maxsize=32)
def _axis_weights(size: int, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """t of the template t tᵀ once for every whole patch of an axis, zeros beyond the last: `length` values."""
    with torch.inference_mode(False):
        t = _dct_matrix_cpu(size)[size // 2 :].sum(0)
        weights = torch.zeros(length, dtype=torch.float64)
        weights[: length // size * size] = t.repeat(length // size)
        return weights.to(device=device, dtype=dtype)


def high_frequency_mean(x: Tensor, size: int = 8) -> Tensor:
    """Mean over patches and channels of (4/s²) · Σ_{m,n >= s/2} DCT(patch)[m, n], in closed form.

    With t the sum of the last s/2 rows of the DCT matrix, Σ DCT(P)[m, n] = ⟨t tᵀ, P⟩: one fixed template for every
    patch, no transform. The picture is read once; the gradient is the template times the upstream scalar, and reads
    nothing. Equal to `patch_dct(x, s)[..., s//2:, s//2:].sum((-2, -1)).mean((1, 2, 3)) * 4 / s**2`; within 1e-6 of
    the pixels' scale in float32.

    x: B×C×H×W, H and W >= size, any range. Returns B values, one per picture, float32 for half precision too.
    Raises `ValueError` for a picture smaller than a patch.
    """
    _check(size, *x.shape[-2:])
    return _HighFrequencyMean.apply(x, size)


class _HighFrequencyMean(torch.autograd.Function):
    """Linear in the picture: the backward needs its shape only."""

    @staticmethod
    def forward(ctx, x: Tensor, size: int) -> Tensor:
        c, h, w = x.shape[1:]
        dtype = torch.promote_types(x.dtype, torch.float32)
        ctx.shape = x.shape
        ctx.weights = [_axis_weights(size, side, dtype, x.device) for side in (h, w)]
        ctx.scale = 4 / size**2 / (c * (h // size) * (w // size))
        return _bilinear(x, *ctx.weights) * ctx.scale

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        rows, columns = ctx.weights
        scaled = (gradient * ctx.scale).view(-1, 1, 1, 1)
        return (scaled * torch.outer(rows, columns)).expand(ctx.shape), None


def _bilinear(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Σ_c rowsᵀ x[b, c] columns: B values in the dtype of the weights."""
    b, c, h, w = x.shape
    across = x.reshape(b * c * h, w).to(columns) @ columns
    return (across.view(b * c, h) @ rows).view(b, c).sum(1)


def high_frequency_energy(x: Tensor, size: int = 8) -> Tensor:
    """DCT energy at or above a quarter of the sampling rate in either direction: max(m, n) >= size/2.

    x: B×C×H×W. Returns B values: mean of the squared coefficients over patches, channels and those (m, n); float32
    for half precision too. Raises `ValueError` for a picture smaller than a patch.
    """
    c, h, w = x.shape[1:]
    _check(size, h, w)
    count = c * (h // size) * (w // size) * (size**2 - (size // 2) ** 2)
    return _energy(x, size) / count


def _energy(x: Tensor, size: int) -> Tensor:
    """Sum of those squared coefficients: B values."""
    coefficients = patch_dct(x.to(torch.promote_types(x.dtype, torch.float32)), size)
    half = size // 2
    # Two slices: picking by a mask would copy, and wait for the GPU to count.
    below, right = coefficients[..., half:, :], coefficients[..., :half, half:]
    return below.square().flatten(1).sum(1) + right.square().flatten(1).sum(1)
