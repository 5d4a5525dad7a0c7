"""GrIDPure (Zhao et al., CVPR 2024)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels.tiles import average_tiles, cut
from ..diffusion.denoiser import Denoiser
from ..memory import is_out_of_memory
from ..pictures import (
    check_picture,
    grid_positions,
    pad_reflect,
    random_stream,
    round_8bit,
    to_picture,
    to_pixels,
)
from ..progress import Progress, silent
from .ddpm import sdedit
from .settings import check_purifier, nan_if_infinite


@torch.no_grad()
def gridpure(
    picture: Tensor,
    denoiser: Denoiser,
    *,
    timestep: int = 10,
    iterations: int = 20,
    gamma: float = 0.1,
    seed: int = 0,
    progress: Progress = silent,
    substeps: int = 0,
) -> Tensor:
    """GrIDPure: purify overlapping tiles at a low timestep, average, blend with the input, repeat.

    Tiles of the model's size T at stride T/2, the last row and column flush with the border, and one composite
    tile of the four T/2 corner blocks; overlaps are averaged, corners included; then
    (1 - gamma) · pure + gamma · input, rounded to 8 bits.

    picture: B×3×H×W in 0..1, any size (smaller ones are mirrored up to one tile). substeps: at how many of the
    timesteps the network runs in each iteration, 0: at all; see `respaced_timesteps`. Returns the same shape, rounded
    to 8 bits.
    Raises `AntiPureError` for bad pictures and settings.
    """
    check_picture(picture)
    check_purifier(denoiser, timestep, iterations, gamma, substeps)
    h, w = picture.shape[-2:]
    tile = denoiser.tile_for(h, w)
    height, width = max(h, tile), max(w, tile)
    positions = grid_positions(height, width, tile, max(tile // 2, 1))
    count = len(positions) + 1
    total, done = len(picture) * iterations * count * (substeps or timestep), 0  # in steps of single tiles

    def purified(tiles: Tensor, generators: list[torch.Generator]) -> Tensor:
        nonlocal done
        before = done

        def on_step() -> None:
            nonlocal done
            done += len(tiles)
            progress(done, total)

        try:
            z = denoiser.encode(tiles)
            pixels = denoiser.decode(sdedit(denoiser, z, timestep, generators, on_step, substeps))
            return nan_if_infinite(pixels, pixels)
        except BaseException:
            done = before
            raise

    results = []
    for single in picture.float().split(1):
        x = pad_reflect(to_pixels(single), height, width)
        for iteration in range(iterations):
            tiles = cut(x, positions, tile, corners=True)
            in_batches(denoiser, purified, tiles, lambda i: random_stream(seed, iteration, i))  # noqa: B023
            merged = average_tiles(tiles, positions, height, width, corners=True)
            x = to_pixels(round_8bit(to_picture((1 - gamma) * merged + gamma * x)))
            progress(done, total, to_picture(x[..., :h, :w]))
        results.append(round_8bit(to_picture(x[..., :h, :w])))
    return torch.cat(results)


def in_batches(
    denoiser: Denoiser,
    work: Callable[[Tensor, list[torch.Generator]], Tensor],
    tiles: Tensor,
    stream: Callable[[int], torch.Generator],
) -> None:
    """Replace the tiles by work(tiles, their random streams), in batches that fit.

    A batch that does not fit is tried again in smaller ones. Raises the out-of-memory error itself when it was a
    single tile that did not fit.
    """
    start = 0
    while start < len(tiles):
        size = next(denoiser.batching.batches(len(tiles) - start, *tiles.shape[-2:])).stop
        part = range(start, start + size)
        try:
            tiles[part.start : part.stop] = work(tiles[part.start : part.stop], [stream(i) for i in part])
            start = part.stop
            continue
        except Exception as error:
            if not is_out_of_memory(error) or not denoiser.batching.shrink():
                raise
        # Outside the handler: only here the failed attempt's tensors are gone.
        torch.cuda.empty_cache()
