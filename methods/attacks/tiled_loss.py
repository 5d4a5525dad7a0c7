"""Losses over tiles: the part that every loss of `attacks.pgd` over a `Denoiser` or a VAE shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...kernels.tiles import cut
from ..diffusion.autoencoder import Autoencoder
from ..diffusion.denoiser import Denoiser
from ..pictures import pad_reflect, random_positions, random_stream
from .loss import Loss

# terms(tiles, companions, generators): N×3×T×T tiles of the picture and of its companion, one random stream per tile;
# returns N values.
TileTerms = Callable[[Tensor, Tensor, list[torch.Generator]], Tensor]


class TiledLoss(Loss):
    """The mean of `terms` over random tiles.

    denoiser: the model whose tiles and memory these are: a denoiser or a VAE. companion: 1×3×H×W pixels as large as the
    picture (the clean one, or a target), cut at the same places.
    forwards, at_once: as in `Batching.size`. Every step draws a new tile offset; tiles run in batches that fit
    the session's memory, each yielding its share of the mean.
    share: of the tiles that a step looks at, other ones every time, at least one; above 0, at most 1.
    """

    def __init__(
        self,
        denoiser: Denoiser | Autoencoder,
        companion: Tensor,
        terms: TileTerms,
        *,
        forwards: int = 1,
        at_once: int = 1,
        share: float = 1.0,
    ):
        self.share = share
        self.denoiser, self.of_tiles, self.forwards, self.at_once = denoiser, terms, forwards, at_once
        self.tile = denoiser.tile_for(*companion.shape[-2:])
        self.height, self.width = (max(side, self.tile) for side in companion.shape[-2:])
        self.companion = pad_reflect(companion, self.height, self.width)

    def terms(self, pixels: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        tile = self.tile
        positions = random_positions(self.height, self.width, tile, generator)
        root = int(torch.randint(2**62, (), generator=generator))
        if self.share < 1:
            drawn = torch.randperm(len(positions), generator=random_stream(root, -1))
            positions = [positions[i] for i in drawn[: math.ceil(self.share * len(positions))].sort().values.tolist()]
        for part in self.denoiser.batching.batches(len(positions), tile, tile, self.forwards, self.at_once):
            generators = [random_stream(root, i) for i in range(part.start, part.stop)]
            # Padded anew in every batch: the batches are differentiated one by one and must not share a graph.
            padded = pad_reflect(pixels, self.height, self.width)
            tiles = cut(padded, positions[part], tile, gradient=pixels.grad if padded is pixels else None)
            companions = cut(self.companion, positions[part], tile)
            yield self.of_tiles(tiles, companions, generators).sum() / len(positions)
            self.partly(part.stop / len(positions))

    def shrink(self) -> bool:
        return self.denoiser.batching.shrink()


def random_tile(denoiser: Denoiser, pixels: Tensor, generator: torch.Generator) -> Tensor:
    """One tile of 1×3×H×W pixels at a random place: 1×3×T×T."""
    tile = denoiser.tile_for(*pixels.shape[-2:])
    height, width = (max(side, tile) for side in pixels.shape[-2:])
    top, left = (int(torch.randint(side - tile + 1, (), generator=generator)) for side in (height, width))
    return cut(pad_reflect(pixels, height, width), [(top, left)], tile)
