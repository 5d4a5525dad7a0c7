"""`tiles` in Triton: each element of the result is computed by itself, without atomics, the same in every run.

Grids have one axis: CUDA ends the others at 65,535, and a large picture has more tiles times channels.
"""

# Annotations stay objects: as text, Triton 3.0's interpreter does not see which parameters are constants.
import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import Positions
from .transfer import to_device

BLOCK = 1024
ROWS, COLUMNS = 16, 64


@triton.jit
def _gather(
    x, tops, lefts, out, plain, channels, height, width, s_c, s_h, s_w, TILE: tl.constexpr, BLOCK: tl.constexpr
):
    blocks: tl.constexpr = (TILE * TILE + BLOCK - 1) // BLOCK
    plane = tl.program_id(0) // blocks
    number, channel = plane // channels, plane % channels
    index = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = index < TILE * TILE
    row, column = index // TILE, index % TILE
    y, z = row, column
    if number < plain:
        y += tl.load(tops + number)
        z += tl.load(lefts + number)
    else:  # the composite: what stands past its middle comes from the far side
        y += tl.where(row < TILE // 2, 0, height - TILE)
        z += tl.where(column < TILE // 2, 0, width - TILE)
    value = tl.load(x + channel * s_c + y * s_h + z * s_w, mask=inside)
    # 64 bits: the tiles of a picture may hold more numbers than 32 count, the picture does not.
    tl.store(out + plane.to(tl.int64) * TILE * TILE + index, value, mask=inside)


@triton.jit
def _merge(
    tiles, tops, lefts, begins, ends, out, plain, channels, height, width, s_c, s_h, s_w,
    TILE: tl.constexpr, CORNERS: tl.constexpr, AVERAGE: tl.constexpr, ADD: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    across, down = tl.cdiv(width, COLUMNS), tl.cdiv(height, ROWS)
    first_x = tl.program_id(0) % across * COLUMNS
    first_y = tl.program_id(0) // across % down * ROWS
    channel = tl.program_id(0) // (across * down)
    y = first_y + tl.arange(0, ROWS)[:, None]
    x = first_x + tl.arange(0, COLUMNS)[None, :]
    inside = (y < height) & (x < width)
    own = out + channel * s_c + y * s_h + x * s_w
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    if ADD:
        total += tl.load(own, mask=inside, other=0.0).to(tl.float32)
    count = tl.zeros((ROWS, COLUMNS), tl.float32)
    band = tl.program_id(0) // across % down
    for number in range(tl.load(begins + band), tl.load(ends + band)):
        top, left = tl.load(tops + number), tl.load(lefts + number)
        # Some of the band's tiles are elsewhere: one test for the whole block.
        near = (top < first_y + ROWS) & (top + TILE > first_y) & (left < first_x + COLUMNS) & (left + TILE > first_x)
        if near:
            here = (y >= top) & (y < top + TILE) & (x >= left) & (x < left + TILE)
            place = ((number * channels + channel) * TILE + y - top) * TILE + x - left
            total += tl.load(tiles + place, mask=here, other=0.0).to(tl.float32)
            count += here.to(tl.float32)
    if CORNERS:
        half: tl.constexpr = TILE // 2
        far_y, far_x = height - (TILE - half), width - (TILE - half)
        row = tl.where(y < half, y, y - (height - TILE))
        column = tl.where(x < half, x, x - (width - TILE))
        here = ((y < half) | (y >= far_y)) & ((x < half) | (x >= far_x)) & (y < height) & (x < width)
        place = ((plain * channels + channel) * TILE + row) * TILE + column
        total += tl.load(tiles + place, mask=here, other=0.0).to(tl.float32)
        count += here.to(tl.float32)
    if AVERAGE:
        total = tl.math.div_rn(total, tl.where(inside, count, 1.0))
    tl.store(own, total, mask=inside)


def _on(device: torch.device, positions: Positions) -> tuple[Tensor, Tensor]:
    both = to_device(torch.tensor(positions, dtype=torch.int32).reshape(-1, 2).T.contiguous(), device)
    return both[0], both[1]


def bands(positions: Positions, tile: int, height: int) -> np.ndarray:
    """For each band of `ROWS` rows, the first tile that reaches into it and the one after the last: 2×bands, int32.

    Tiles in between may lie elsewhere. Of a grid's tiles, which come row by row, few do.
    """
    count = -(-height // ROWS)
    begins, ends = np.full(count, len(positions), np.int32), np.zeros(count, np.int32)
    numbers, tops = np.arange(len(positions), dtype=np.int32), np.array([top for top, _ in positions], np.int32)
    first, last = tops // ROWS, (tops + tile - 1) // ROWS
    for further in range((tile - 1) // ROWS + 2):
        reaches = first + further <= last
        np.minimum.at(begins, (first + further)[reaches], numbers[reaches])
        np.maximum.at(ends, (first + further)[reaches], numbers[reaches] + 1)
    return np.stack([np.minimum(begins, ends), ends])


def gather(x: Tensor, positions: Positions, tile: int, corners: bool) -> Tensor:
    """See `tiles.cut`."""
    channels, height, width = x.shape[1:]
    out = x.new_empty(len(positions) + corners, channels, tile, tile)
    grid = (triton.cdiv(tile * tile, BLOCK) * len(out) * channels,)
    starts = _on(x.device, positions)
    _gather[grid](x, *starts, out, len(positions), channels, height, width, *x.stride()[1:], TILE=tile, BLOCK=BLOCK)
    return out


def merge(tiles: Tensor, positions: Positions, height: int, width: int, corners: bool, average: bool) -> Tensor:
    """See `tiles.average_tiles`; without `average` the sum, which is the gradient of `tiles.cut`."""
    out = tiles.new_empty(1, tiles.shape[1], height, width)
    _put(out, tiles, positions, CORNERS=corners, AVERAGE=average, ADD=False)
    return out


def add(total: Tensor, tiles: Tensor, positions: Positions) -> Tensor:
    """See `tiles.cut` with a gradient. Only the rows that the tiles lie in are read and written."""
    top = min(y for y, _ in positions)
    band = total[:, :, top : max(y for y, _ in positions) + tiles.shape[-1]]
    _put(band, tiles, [(y - top, x) for y, x in positions], CORNERS=False, AVERAGE=False, ADD=True)
    return total


def _put(out: Tensor, tiles: Tensor, positions: Positions, **options: bool) -> None:
    channels, height, width = out.shape[1:]
    ranges = to_device(torch.from_numpy(bands(positions, tiles.shape[-1], height)), tiles.device)
    grid = (triton.cdiv(width, COLUMNS) * triton.cdiv(height, ROWS) * channels,)
    _merge[grid](
        tiles.contiguous(), *_on(tiles.device, positions), *ranges, out, len(positions), channels, height, width,
        *out.stride()[1:], TILE=tiles.shape[-1], ROWS=ROWS, COLUMNS=COLUMNS, **options,
    )  # fmt: skip
