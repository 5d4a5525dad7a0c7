"""Losses over tiles: the part that every loss of `attack.pgd` over a `Denoiser` shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...kernels.tiles import cut
from ..diffusion.denoiser import Denoiser
from ..pictures import pad_reflect, random_positions, random_stream
from .pgd import Loss

# terms(tiles, companions, generators): N×3×T×T tiles of the picture and of its companion, one random stream per tile;
# returns N values.
Terms = Callable[[Tensor, Tensor, list[torch.Generator]], Tensor]


def tiled_loss(denoiser: Denoiser, companion: Tensor, terms: Terms, *, forwards: int = 1, at_once: int = 1) -> Loss:
    """The mean of `terms` over random tiles, as a `Loss` for `attack.pgd`.

    companion: 1×3×H×W pixels as large as the picture (the clean one, or a target), cut at the same places.
    forwards, at_once: as in `Denoiser.batch_size`. Every step draws a new tile offset; tiles run in batches that fit
    `denoiser.memory_bytes`, each yielding its share of the mean.
    """
    tile = denoiser.tile_for(*companion.shape[-2:])
    height, width = (max(side, tile) for side in companion.shape[-2:])
    companion = pad_reflect(companion, height, width)

    def loss(pixels: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        positions = random_positions(height, width, tile, generator)
        root = int(torch.randint(2**62, (), generator=generator))
        for part in denoiser.batches(len(positions), tile, tile, forwards, at_once):
            generators = [random_stream(root, i) for i in range(part.start, part.stop)]
            # Padded anew in every batch: the batches are differentiated one by one and must not share a graph.
            padded = pad_reflect(pixels, height, width)
            tiles = cut(padded, positions[part], tile, gradient=pixels.grad if padded is pixels else None)
            yield terms(tiles, cut(companion, positions[part], tile), generators).sum() / len(positions)

    loss.shrink = denoiser.shrink
    return loss


def random_tile(denoiser: Denoiser, pixels: Tensor, generator: torch.Generator) -> Tensor:
    """One tile of 1×3×H×W pixels at a random place: 1×3×T×T."""
    tile = denoiser.tile_for(*pixels.shape[-2:])
    height, width = (max(side, tile) for side in pixels.shape[-2:])
    top, left = (int(torch.randint(side - tile + 1, (), generator=generator)) for side in (height, width))
    return cut(pad_reflect(pixels, height, width), [(top, left)], tile)
