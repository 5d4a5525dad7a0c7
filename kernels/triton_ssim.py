"""`ssim` in Triton: window sums, both terms and their partial sums in one kernel, no map in memory."""

# Annotations stay objects: as text, Triton 3.0's interpreter does not see which parameters are constants.
import torch
import triton
import triton.language as tl
from torch import Tensor

from .ssim import K1, K2, RADIUS, gaussian_window

ROWS, COLUMNS = 8, 64


@triton.jit
def _terms(
    a, b, window, ssim, contrast, height, width,
    C1: tl.constexpr, C2: tl.constexpr, RADIUS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    # One axis: CUDA ends the others at 65,535.
    across, down = tl.cdiv(width, COLUMNS), tl.cdiv(height, ROWS)
    y = tl.program_id(0) // across % down * ROWS + tl.arange(0, ROWS)[:, None]
    x = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    valid = (y < height) & (x < width)
    plane = tl.program_id(0) // (across * down) * height * width
    mean_a = tl.zeros((ROWS, COLUMNS), tl.float32)
    mean_b = tl.zeros((ROWS, COLUMNS), tl.float32)
    square_a = tl.zeros((ROWS, COLUMNS), tl.float32)
    square_b = tl.zeros((ROWS, COLUMNS), tl.float32)
    product = tl.zeros((ROWS, COLUMNS), tl.float32)
    for i in range(2 * RADIUS + 1):
        row = tl.abs(y + i - RADIUS)
        row = tl.where(row < height, row, 2 * (height - 1) - row)
        of_row = tl.load(window + i)
        for j in range(2 * RADIUS + 1):
            column = tl.abs(x + j - RADIUS)
            column = tl.where(column < width, column, 2 * (width - 1) - column)
            weight = of_row * tl.load(window + j)
            place = plane + row * width + column
            value_a = tl.load(a + place, mask=valid, other=0.0).to(tl.float32)
            value_b = tl.load(b + place, mask=valid, other=0.0).to(tl.float32)
            mean_a += weight * value_a
            mean_b += weight * value_b
            square_a += weight * value_a * value_a
            square_b += weight * value_b * value_b
            product += weight * value_a * value_b
    variances = tl.maximum(square_a - mean_a * mean_a, 0.0) + tl.maximum(square_b - mean_b * mean_b, 0.0)
    structure = (2 * (product - mean_a * mean_b) + C2) / (variances + C2)
    whole = (2 * mean_a * mean_b + C1) / (mean_a * mean_a + mean_b * mean_b + C1) * structure
    inside = (y >= RADIUS) & (y < height - RADIUS) & (x >= RADIUS) & (x < width - RADIUS)
    tl.store(ssim + tl.program_id(0), tl.sum(tl.sum(tl.where(valid, whole, 0.0), axis=1), axis=0))
    tl.store(contrast + tl.program_id(0), tl.sum(tl.sum(tl.where(inside, structure, 0.0), axis=1), axis=0))


def terms(reference: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
    """See `ssim.ssim_terms`."""
    b, c, h, w = reference.shape
    blocks = triton.cdiv(w, COLUMNS) * triton.cdiv(h, ROWS) * c
    ssim, contrast = torch.empty(2, b, blocks, dtype=torch.float32, device=reference.device)
    window = gaussian_window(torch.float32, reference.device)
    _terms[(b * blocks,)](
        reference.contiguous(), picture.contiguous(), window, ssim, contrast, h, w,
        C1=K1**2, C2=K2**2, RADIUS=RADIUS, ROWS=ROWS, COLUMNS=COLUMNS,
    )  # fmt: skip
    interior = c * max(h - 2 * RADIUS, 0) * max(w - 2 * RADIUS, 0)
    return ssim.sum(1) / (c * h * w), contrast.sum(1) / interior if interior else torch.full_like(ssim[:, 0], torch.nan)
