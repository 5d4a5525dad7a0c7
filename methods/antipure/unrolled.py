"""The paper's stated objective, || Pure(x + delta) - x ||, with a few purifier steps unrolled."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.transfer import to_device
from ..diffusion.denoiser import Denoiser, add_noise, predict_x0
from ..pictures import noises, to_pixels
from ..purification.random_cleaner import cleaned, random_cleaner
from ..purification.transforms import resized
from .objective import Objective


def high_pass(x: Tensor, window: int = 4) -> Tensor:
    """x without its local mean over window×window pixels (smaller at the borders).

    A wider window lets the perturbation move to middle frequencies, which survive a purifier whatever their phase;
    with 4 px more of the distortion is owed to the perturbation's structure than with 8 px.
    """
    before = (window - 1) // 2
    after = window - 1 - before
    ones = torch.ones_like(x[:1, :1])

    def local_sum(y: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(y, (before, after, before, after)), window, stride=1)

    return x - local_sum(x) / local_sum(ones)


def unrolled_purification(
    denoiser: Denoiser, tiles: Tensor, generators: list[torch.Generator], steps: int, timestep: int | Tensor
) -> Tensor:
    """`steps` short purifier steps, differentiable: noise to `timestep`, one-step x0_hat, clamp. N×3×T×T pixels.

    timestep: one for all tiles, or N of them.
    """
    z = denoiser.encode(tiles)
    before = timestep - 1
    t = before.expand(len(z)) if isinstance(before, Tensor) else torch.full((len(z),), before, device=z.device)
    abar_t = denoiser.alphas_cumprod[t]
    for eps in noises(steps, tuple(z.shape[1:]), generators, z.device):
        x_t = add_noise(z, eps, abar_t)
        z = denoiser.clamp(predict_x0(x_t, denoiser.predict_noise(x_t, t), abar_t))
    return denoiser.decode(z)


def random_orientation(pictures: list[Tensor], share: float, generators: list[torch.Generator]) -> list[Tensor]:
    """A share of the tiles in one of the 8 orientations of a square, drawn per tile and the same in all `pictures`.

    pictures: N×C×T×T each, the perturbed tiles and their clean companions. generators: one per tile.
    """
    orientations = [_orientation(share, generator) for generator in generators]
    return [torch.stack([_oriented(*pair) for pair in zip(p, orientations, strict=True)]) for p in pictures]


def _orientation(share: float, generator: torch.Generator) -> int:
    """0..7; 0 leaves a tile as it is."""
    drawn = torch.rand((), generator=generator) < share
    orientation = int(torch.randint(8, (), generator=generator))
    return orientation if drawn else 0


def _oriented(tile: Tensor, orientation: int) -> Tensor:
    tile = tile.rot90(orientation % 4, (-2, -1))
    return tile.flip(-1) if orientation >= 4 else tile


def random_half(pictures: list[Tensor], share: float, generators: list[torch.Generator]) -> list[Tensor]:
    """A share of the tiles resized to half and back, as many a picture is on its way; the same in all `pictures`.

    pictures: N×3×T×T pixels each. generators: one per tile.
    """
    chosen = [bool(torch.rand((), generator=generator) < share) for generator in generators]
    if not any(chosen):
        return pictures
    index = to_device(torch.tensor(chosen).nonzero()[:, 0], pictures[0].device)

    def halved(tiles: Tensor) -> Tensor:
        halves = to_pixels(resized((tiles[index] + 1) / 2, 0.5))
        return tiles.clone().index_put((index,), halves.to(tiles))

    return [halved(tiles) for tiles in pictures]


def randomly_cleaned(pictures: list[Tensor], share: float, generators: list[torch.Generator]) -> list[Tensor]:
    """A share of the tiles behind a cheap cleaner (`purification.random_cleaner`), the same in all `pictures`.

    pictures: N×3×T×T pixels each. generators: one per tile.
    """
    drawn = [random_cleaner(g) if float(torch.rand((), generator=g)) < share else None for g in generators]

    tiles = [tile for picture in pictures for tile in picture.split(1)]
    chosen = {i: cleaner for i, cleaner in enumerate(drawn * len(pictures)) if cleaner is not None}
    found = cleaned([((tiles[i] + 1) / 2).clamp(0, 1) for i in chosen], list(chosen.values()))
    for i, one in zip(chosen, found, strict=True):
        tiles[i] = to_pixels(one)
    return [torch.cat(tiles[first : first + len(drawn)]) for first in range(0, len(tiles), len(drawn))]


def unrolled_term(
    denoiser: Denoiser, tiles: Tensor, clean: Tensor, generators: list[torch.Generator], o: Objective
) -> Tensor:
    """Mean square of Pure(x + delta) - x after its low frequencies are removed, one value per tile.

    Without the high-pass a uniform shift would win: it survives purification and protects nothing. Timesteps,
    orientations and sizes are drawn anew for each tile: what works for all of them is less this network's own weakness
    (expectation over transformations, Athalye et al., ICML 2018), and half size makes it reach for coarser structure.
    """
    timestep: int | Tensor = o.unrolled_t
    if o.unrolled_t_low:
        drawn = [torch.randint(o.unrolled_t_low, o.unrolled_t + 1, (1,), generator=g) for g in generators]
        timestep = to_device(torch.cat(drawn), tiles.device)
    if o.turned:
        tiles, clean = random_orientation([tiles, clean], o.turned, generators)
    if o.halved:
        tiles, clean = random_half([tiles, clean], o.halved, generators)
    if o.tiles_cleaned:
        tiles, clean = randomly_cleaned([tiles, clean], o.tiles_cleaned, generators)
    pure = unrolled_purification(denoiser, tiles, generators, o.unrolled_steps, timestep)
    return high_pass(pure - clean).square().flatten(1).mean(1)
