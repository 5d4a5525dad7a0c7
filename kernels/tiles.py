"""Tiles cut out of a picture, and put together again (GrIDPure: Zhao et al., CVPR 2024, section 3.3).

Besides plain tiles GrIDPure has one composite tile: the picture's four corner blocks side by side. Corners of the
picture lie in a single plain tile each; the composite shows them a second time, in other company.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import run

Positions = list[tuple[int, int]]


def cut(x: Tensor, positions: Positions, tile: int, *, corners: bool = False, gradient: Tensor | None = None) -> Tensor:
    """Tiles of a picture at (y, x) positions: N×C×tile×tile, differentiable.

    x: 1×C×H×W, tile <= H, W. corners: one tile more, last: the four corner blocks of tile/2 (tile - tile/2 at the far
    sides, when tile is odd). The gradient adds up where tiles overlap, in one pass over the tiles; autograd through
    slices would make a picture for each tile.
    gradient: shaped like x; the backward pass adds the tiles' gradient to it in place, and hands none on to x. So a
    large picture taken apart in many batches costs no picture-sized gradient in each of them. Not with corners.
    Raises `ValueError` for a tile that is not inside the picture, and for a gradient that does not fit.
    """
    _check(positions, tile, *x.shape[-2:])
    if gradient is not None and (corners or gradient.shape != x.shape):
        raise ValueError(f"a gradient of shape {tuple(gradient.shape)} cannot take in tiles of {tuple(x.shape)}")
    return _Cut.apply(x, positions, tile, corners, gradient)


def average_tiles(tiles: Tensor, positions: Positions, height: int, width: int, *, corners: bool = False) -> Tensor:
    """The inverse of `cut`: 1×C×height×width, the mean over the tiles wherever they overlap; no gradient passes.

    tiles: N×C×tile×tile as `cut` returns them, for the same positions and corners. NaN where no tile lies.
    Raises `ValueError` when the tiles are not as many as the positions (and corners), or not inside.
    """
    _check(positions, tiles.shape[-1], height, width)
    if len(tiles) != len(positions) + corners:
        raise ValueError(f"{len(tiles)} tiles for {len(positions)} positions and {int(corners)} composite of corners")
    return run("tiles.merge", _merge_torch, tiles.detach(), positions, height, width, corners, True)


def _check(positions: Positions, tile: int, height: int, width: int) -> None:
    for y, x in positions:
        if not (0 <= y <= height - tile and 0 <= x <= width - tile):
            raise ValueError(f"a {tile}-px tile at {(y, x)} is not inside a {height}x{width} picture")
    if tile > min(height, width):
        raise ValueError(f"a {height}x{width} picture has no corners for a {tile}-px tile")


class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, positions: Positions, tile: int, corners: bool, total: Tensor | None) -> Tensor:
        ctx.positions, ctx.corners, ctx.size, ctx.total = positions, corners, x.shape[-2:], total
        return run("tiles.gather", _gather_torch, x, positions, tile, corners)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.total is not None:
            run("tiles.add", _add_torch, ctx.total, gradient, ctx.positions)
            return None, None, None, None, None
        merged = run("tiles.merge", _merge_torch, gradient, ctx.positions, *ctx.size, ctx.corners, False)
        return merged, None, None, None, None


def _corner_blocks(tile: int, height: int, width: int) -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Where each corner block stands in the picture, and where in the composite tile."""
    near, far = tile // 2, tile - tile // 2
    rows = ((slice(0, near), slice(0, near)), (slice(height - far, height), slice(near, tile)))
    columns = ((slice(0, near), slice(0, near)), (slice(width - far, width), slice(near, tile)))
    return [((row[0], column[0]), (row[1], column[1])) for row in rows for column in columns]


def _gather_torch(x: Tensor, positions: Positions, tile: int, corners: bool) -> Tensor:
    tiles = x.new_empty(len(positions) + corners, x.shape[1], tile, tile)
    for piece, (top, left) in zip(tiles, positions, strict=False):
        piece.copy_(x[0, :, top : top + tile, left : left + tile])
    if corners:
        for (rows, columns), (to_rows, to_columns) in _corner_blocks(tile, *x.shape[-2:]):
            tiles[-1, :, to_rows, to_columns] = x[0, :, rows, columns]
    return tiles


def _merge_torch(tiles: Tensor, positions: Positions, height: int, width: int, corners: bool, average: bool) -> Tensor:
    """The sum of the tiles at their places, over their number if `average`: 1×C×height×width."""
    tile = tiles.shape[-1]
    total = tiles.new_zeros(1, tiles.shape[1], height, width)
    count = tiles.new_zeros(1, 1, height, width) if average else None
    places = [
        ((slice(y, y + tile), slice(x, x + tile)), piece) for (y, x), piece in zip(positions, tiles, strict=False)
    ]
    if corners:
        blocks = _corner_blocks(tile, height, width)
        places += [(place, tiles[-1, :, rows, columns]) for place, (rows, columns) in blocks]
    for (rows, columns), piece in places:
        total[0, :, rows, columns] += piece
        if count is not None:
            count[..., rows, columns] += 1
    return total if count is None else total.div_(count)


def _add_torch(total: Tensor, tiles: Tensor, positions: Positions) -> Tensor:
    """The tiles added to `total` (1×C×H×W) at their places, in place."""
    tile = tiles.shape[-1]
    for (y, x), piece in zip(positions, tiles, strict=True):
        total[0, :, y : y + tile, x : x + tile] += piece
    return total
