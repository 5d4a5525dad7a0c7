"""`frequency` in Triton: one read of the picture, one partial sum for each block, added up in a fixed order.

Grids have one axis: CUDA ends the others at 65,535.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .frequency import dct_matrix

ROWS, COLUMNS = 16, 128
PATCHES = 4  # for each program; × side³ numbers in registers


@triton.jit
def _bilinear(x, rows, columns, partial, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    across, down = tl.cdiv(width, COLUMNS), tl.cdiv(height, ROWS)
    y = tl.program_id(0) // across % down * ROWS + tl.arange(0, ROWS)
    z = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    plane = tl.program_id(0) // (across * down)
    of_row = tl.load(rows + y, mask=y < height, other=0.0)
    of_column = tl.load(columns + z, mask=z < width, other=0.0)
    inside = (y[:, None] < height) & (z[None, :] < width)
    place = (plane * height + y[:, None]) * width + z[None, :]
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    weighted = tl.sum(value * of_column[None, :], axis=1) * of_row
    tl.store(partial + tl.program_id(0), tl.sum(weighted, axis=0))


def bilinear(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Σ_c rowsᵀ x[b, c] columns, see `frequency.high_frequency_mean`: B float32 values."""
    b, c, h, w = x.shape
    blocks = triton.cdiv(w, COLUMNS) * triton.cdiv(h, ROWS) * c
    partial = torch.empty(b, blocks, dtype=torch.float32, device=x.device)
    _bilinear[(b * blocks,)](x.contiguous(), rows, columns, partial, h, w, ROWS=ROWS, COLUMNS=COLUMNS)
    return partial.sum(1)


@triton.jit
def _energy(
    x, matrix, partial, count, across, down, height, width,
    SIZE: tl.constexpr, SIDE: tl.constexpr, PATCHES: tl.constexpr,
):  # fmt: skip
    """count: patches of one picture, of all channels; SIDE: SIZE up to a power of 2, the rest masked to 0."""
    blocks = tl.cdiv(count, PATCHES)
    picture = tl.program_id(0) // blocks
    patch = tl.program_id(0) % blocks * PATCHES + tl.arange(0, PATCHES)
    channel, row, column = patch // (across * down), patch // across % down, patch % across
    channels = count // (across * down)
    start = ((picture * channels + channel) * height + row * SIZE) * width + column * SIZE
    i = tl.arange(0, SIDE)
    valid = (patch < count)[:, None, None] & (i < SIZE)[None, :, None] & (i < SIZE)[None, None, :]
    place = start[:, None, None] + i[None, :, None] * width + i[None, None, :]
    value = tl.load(x + place, mask=valid, other=0.0).to(tl.float32)
    square = (i < SIZE)[:, None] & (i < SIZE)[None, :]
    dct = tl.load(matrix + i[:, None] * SIZE + i[None, :], mask=square, other=0.0)
    rows = tl.sum(value[:, :, None, :] * dct[None, None, :, :], axis=3)  # patch, y, n
    both = tl.sum(rows[:, None, :, :] * dct[None, :, :, None], axis=2)  # patch, m, n
    high = (i[:, None] >= SIZE // 2) | (i[None, :] >= SIZE // 2)
    squares = tl.where(high[None, :, :], both * both, 0.0)
    total = tl.sum(tl.sum(tl.sum(squares, axis=2), axis=1), axis=0)
    tl.store(partial + tl.program_id(0), total)


def energy(x: Tensor, size: int) -> Tensor:
    """Sum of the squared high coefficients, see `frequency.high_frequency_energy`: B float32 values."""
    b, c, h, w = x.shape
    down, across = h // size, w // size
    count = c * down * across
    blocks = triton.cdiv(count, PATCHES)
    partial = torch.empty(b, blocks, dtype=torch.float32, device=x.device)
    matrix = dct_matrix(size, device=x.device)
    side = triton.next_power_of_2(size)
    _energy[(b * blocks,)](
        x.contiguous(), matrix, partial, count, across, down, h, w, SIZE=size, SIDE=side, PATCHES=PATCHES
    )
    return partial.sum(1)
