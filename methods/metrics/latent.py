"""Latent shift: how far a change of a picture moves what a VAE makes of it, which is all that trainers see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.autoencoder import Autoencoder
from ..errors import AntiPureError, both_sizes
from ..memory import is_out_of_memory
from ..pictures import check_picture, random_stream, round_8bit, round_up, to_pixels
from ..progress import Progress, silent

TILE = 4  # side of the tiles that are drawn anew, in places of the latent: 32 pixels of most VAEs
COVERED = 0.95
DRAWS = 1000


@dataclass(frozen=True)
class LatentShift:
    """value: B. low, high: B, the bootstrap's 95 % interval over tiles of the latent; NaN where there is one tile only.

    groups: B×groups, of each group of channels by itself.
    """

    value: Tensor
    low: Tensor
    high: Tensor
    groups: Tensor

    def __str__(self) -> str:
        return "\n".join(
            f"{value:.3f}" + (f" ({low:.3f}..{high:.3f})" if low == low else "")
            for value, low, high in zip(self.value.tolist(), self.low.tolist(), self.high.tolist(), strict=True)
        )


@torch.no_grad()
def latent_shift(
    reference: Tensor,
    picture: Tensor,
    autoencoder: Autoencoder,
    *,
    view: Callable[[Tensor], Tensor] | None = None,
    groups: int = 1,
    draws: int = DRAWS,
    seed: int = 0,
    progress: Progress = silent,
) -> LatentShift:
    """rms(E(picture) - E(reference)) / std(E(reference)), E the encoder's latent mean; 0 for equal pictures.

    reference, picture: B×3×H×W in 0..1 of one size, rounded to 8 bits first, mirrored up to the VAE's multiple and
        never cropped.
    view: a transform that both go through, such as the resize of a trainer; it may change their size.
    groups: into how many runs of equally many channels the latent is cut for `LatentShift.groups`; `value` is of all.
    draws, seed: of the bootstrap, in which tiles of `TILE`×`TILE` places of the latent are drawn with replacement, the
        same tiles for all pictures.
    About 1: the change is as large as what tells one place of the picture from another. A flat picture's latent hardly
    varies, so its shift is large for any change.
    Raises `AntiPureError` for pictures and groups that make no sense, and what running out of memory raises where a
    single picture does not fit.
    """
    check_picture(reference, "reference")
    check_picture(picture)
    if reference.shape != picture.shape:
        raise AntiPureError(
            f"The pictures differ in size, {both_sizes(reference.shape, picture.shape)}: compare equal ones."
        )
    if not 1 <= groups <= autoencoder.channels or autoencoder.channels % groups:
        raise AntiPureError(
            f"{autoencoder.channels} latent channels cannot be cut into {groups} groups; give a divisor of the number."
        )
    if draws < 1:
        raise AntiPureError(f"The bootstrap is to draw {draws} times; at least 1 is needed.")
    seen = [x if view is None else view(round_8bit(x)) for x in (reference, picture)]
    pairs = torch.stack(seen, 1).flatten(0, 1)  # one after the other: a batch of two is a picture and its reference
    latents = latents_of(pairs, autoencoder, progress).unflatten(0, (-1, 2))
    return shift_of_latents(latents[:, 0], latents[:, 1], groups=groups, draws=draws, seed=seed)


@torch.no_grad()
def latents_of(picture: Tensor, autoencoder: Autoencoder, progress: Progress = silent) -> Tensor:
    """Latent means, B×C×h×w on the CPU, of pictures B×3×H×W in 0..1, for `shift_of_latents`.

    The pictures are rounded to 8 bits and mirrored up to the VAE's multiple. Raises `AntiPureError` for latents that
    are not finite, and what running out of memory raises where a single picture does not fit.
    """
    with autoencoder.session():
        return _encoded(autoencoder, to_pixels(round_8bit(picture)), progress)


def _encoded(autoencoder: Autoencoder, pixels: Tensor, progress: Progress) -> Tensor:
    """Latents of all pictures, on the CPU, in batches that fit; one that does not is tried again in smaller ones."""
    height, width = (round_up(side, autoencoder.multiple) for side in pixels.shape[-2:])
    found: list[Tensor] = []
    done = 0
    while done < len(pixels):
        size = next(autoencoder.batching.batches(len(pixels) - done, height, width)).stop
        try:
            found.append(autoencoder.encode_padded(pixels[done : done + size].to(autoencoder.device)).float().cpu())
            done += size
            progress(done, len(pixels))
            continue
        except Exception as error:
            if not is_out_of_memory(error) or not autoencoder.batching.shrink():
                raise
        # Outside the handler: only here the failed attempt's tensors are gone.
        torch.cuda.empty_cache()
    latents = torch.cat(found)
    if not torch.isfinite(latents).all():
        raise AntiPureError(f"{autoencoder.name} gives NaN or infinite latents for this picture; load it in fp32.")
    return latents


def shift_of_latents(
    reference: Tensor, latent: Tensor, *, groups: int = 1, draws: int = DRAWS, seed: int = 0
) -> LatentShift:
    """`latent_shift` of latents B×C×h×w."""
    clean, moved = reference.double(), latent.double()
    count, channels = clean.shape[:2]
    sums = _tile_sums((moved - clean).square(), clean, clean.square())  # 4×B×C×tiles
    whole = sums.sum(2)  # over channels: 4×B×tiles
    tiles = whole.shape[-1]
    value = _ratio(*whole.sum(-1))
    cut = sums.sum(-1).view(4, count, groups, channels // groups).sum(-1)
    if tiles < 2:
        nothing = torch.full_like(value, float("nan"))
        return LatentShift(value.float(), nothing.float(), nothing.float(), _ratio(*cut).float())
    drawn = torch.randint(tiles, (draws, tiles), generator=random_stream(seed))
    times = torch.zeros(draws, tiles, dtype=torch.double).scatter_add_(1, drawn, torch.ones(drawn.shape).double())
    again = _ratio(*(whole @ times.T))  # B×draws
    edges = torch.tensor([(1 - COVERED) / 2, (1 + COVERED) / 2], dtype=torch.double)
    low, high = torch.quantile(again, edges, dim=1)
    return LatentShift(value.float(), low.float(), high.float(), _ratio(*cut).float())


def _tile_sums(*values: Tensor) -> Tensor:
    """Sums of B×C×h×w values over tiles, last how many there are: (values + 1)×B×C×tiles. Border tiles are smaller."""
    h, w = values[0].shape[-2:]
    grown = [torch.nn.functional.pad(x, (0, -w % TILE, 0, -h % TILE)) for x in (*values, torch.ones_like(values[0]))]
    return torch.stack([x.unfold(2, TILE, TILE).unfold(3, TILE, TILE).sum((-2, -1)).flatten(2) for x in grown])


def _ratio(squares: Tensor, sums: Tensor, sums_of_squares: Tensor, counts: Tensor) -> Tensor:
    """Root mean square difference over the clean latent's standard deviation; 0 where nothing differs."""
    variance = (sums_of_squares / counts - (sums / counts).square()).clamp(min=0)
    return torch.where(squares == 0, 0.0, (squares / counts / variance).sqrt())
