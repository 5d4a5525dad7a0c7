"""Diffusion purification: DiffPure (Nie et al., ICML 2022) and GrIDPure (Zhao et al., CVPR 2024).

With a latent denoiser both run in its latent space ("denoise this image"), between one encode and one decode.
Here to measure what a purifier leaves of a protection. Deterministic for a seed, on any device and however the
tiles are batched: every tile draws from its own stream.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.tiles import average_tiles, cut
from .denoiser import Denoiser, add_noise, predict_x0
from .errors import AntiPureError
from .pictures import (
    check_picture,
    grid_positions,
    noise,
    pad_reflect,
    random_stream,
    round_8bit,
    round_up,
    to_picture,
    to_pixels,
)

METHODS = ("gridpure", "diffpure", "diffpure_resized", "vae")
# callback(done, total, picture): may raise to cancel. picture is 1×3×H×W in 0..1, or None between iterations.
Callback = Callable[[int, int, Tensor | None], None]


def ddpm_step(
    denoiser: Denoiser,
    x_t: Tensor,
    eps: Tensor,
    t: int,
    step_noise: Tensor | None,
    variance: Tensor | None = None,
    before: int | None = None,
) -> Tensor:
    """One ancestral step x_t -> x_before, 0-based t: posterior mean with x0_hat clamped to [-1, 1] (DDPM, eq. 7).

    step_noise: standard normal, or None for the step to the clean picture, where none is added.
    variance: the learned fraction v in [-1, 1] (Improved DDPM, eq. 15), or None for the fixed small beta_tilde.
    before: the timestep to go to, t - 1 by default; -1 is the clean picture. A longer step is DDIM's with eta = 1
        (Song et al., ICLR 2021, eq. 12 and 16), which is the ancestral step of the respaced process: whatever the
        spacing, x_before given x0 has the forward process's own distribution.
    """
    abar = denoiser.alphas_cumprod
    abar_t = abar[t]
    before = t - 1 if before is None else before
    abar_prev = abar[before] if before >= 0 else torch.ones_like(abar_t)
    alpha_t = abar_t / abar_prev
    beta_t = 1 - alpha_t
    x0_hat = denoiser.clamp(predict_x0(x_t, eps, abar_t))
    mean = (abar_prev.sqrt() * beta_t * x0_hat + alpha_t.sqrt() * (1 - abar_prev) * x_t) / (1 - abar_t)
    if before < 0 or step_noise is None:
        return mean
    log_small = ((1 - abar_prev) / (1 - abar_t) * beta_t).clamp(min=1e-20).log()
    if variance is None:
        log_variance = log_small
    else:
        fraction = (variance + 1) / 2
        log_variance = fraction * beta_t.log() + (1 - fraction) * log_small
    return mean + (0.5 * log_variance).exp() * step_noise


def denoise(
    denoiser: Denoiser,
    z: Tensor,
    timestep: int,
    generators: list[torch.Generator],
    on_step: Callable[[], None] = lambda: None,
    substeps: int = 0,
) -> Tensor:
    """Noise z to `timestep`, then sample back with `timestep` ancestral steps (SDEdit / DiffPure).

    z: N×C×H×W in model space, one generator per sample. Returns N×C×H×W. on_step runs after every forward.
    substeps: as in `visited`.
    """
    shape = tuple(z.shape[1:])
    x = add_noise(z, noise(shape, generators, z.device), denoiser.alphas_cumprod[timestep - 1])
    timesteps = visited(timestep, substeps)
    for t, before in zip(timesteps, [*timesteps[1:], -1], strict=True):
        eps, variance = denoiser.predict(x, torch.full((len(x),), t, device=x.device))
        step_noise = noise(shape, generators, x.device) if before >= 0 else None
        x = ddpm_step(denoiser, x, eps, t, step_noise, variance, before)
        on_step()
    return x


def visited(timestep: int, substeps: int = 0) -> list[int]:
    """The timesteps (0-based) at which `denoise` runs the network: `substeps` of them, evenly spaced, highest first.

    0: all, timestep - 1 down to 0. The first is always timestep - 1, where the noised picture is.
    """
    count = substeps or timestep
    return [-(-(count - i) * timestep // count) - 1 for i in range(count)]


def check_purifier(denoiser: Denoiser, timestep: int, iterations: int, gamma: float = 0.0, substeps: int = 0) -> None:
    """Raise `AntiPureError` for settings that make no sense with this denoiser."""
    if not 0 <= substeps <= timestep:
        raise AntiPureError(
            f"substeps is {substeps}; it must lie in 1..{timestep}, which is the timestep, or be 0 for all of them."
        )
    if not 1 <= timestep <= denoiser.timesteps:
        raise AntiPureError(f"The timestep is {timestep}; it must lie in 1..{denoiser.timesteps} for this denoiser.")
    if iterations < 1:
        raise AntiPureError(f"The purifier is to run {iterations} iterations; at least 1 is needed.")
    if not 0 <= gamma < 1:
        raise AntiPureError(f"gamma is {gamma:g}; it must lie in 0..1, 1 excluded (1 would return the input).")


@torch.no_grad()
def diffpure(
    picture: Tensor,
    denoiser: Denoiser,
    *,
    timestep: int = 100,
    iterations: int = 1,
    resize: bool = False,
    seed: int = 0,
    callback: Callback | None = None,
    substeps: int = 0,
) -> Tensor:
    """DiffPure: noise the whole picture to `timestep`, sample back; `iterations` times over.

    picture: B×3×H×W in 0..1. timestep: 1..T (150 in the paper's ImageNet setting, 100 usual against protections).
    resize: bring the picture to the model's native square and back, as published; otherwise the fully
    convolutional network takes it at its own size.
    substeps: at how many of the timesteps the network runs, 0: at all; see `visited`.
    Returns 8-bit-rounded B×3×H×W in 0..1. Raises `AntiPureError` for bad pictures and settings.
    """
    check_picture(picture)
    check_purifier(denoiser, timestep, iterations, substeps=substeps)
    if resize and denoiser.tile is None:
        raise AntiPureError("This denoiser has no native size to resize to; use 'diffpure' at the picture's own size.")
    total, done = len(picture) * iterations * (substeps or timestep), 0

    def on_step() -> None:
        nonlocal done
        done += 1
        if callback is not None:
            callback(done, total, None)

    results = []
    for single in picture.float().split(1):
        h, w = single.shape[-2:]
        pixels = to_pixels(single)
        if resize:
            side = denoiser.tile
            pixels = F.interpolate(pixels, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
        else:
            pixels = pad_reflect(pixels, round_up(h, denoiser.multiple), round_up(w, denoiser.multiple))
        z = denoiser.encode(pixels)
        for iteration in range(iterations):
            z = denoise(denoiser, z, timestep, [random_stream(seed, iteration)], on_step, substeps)
        pixels = denoiser.decode(z)
        if resize:
            pixels = F.interpolate(pixels, (h, w), mode="bicubic", antialias=True)
        results.append(round_8bit(to_picture(pixels[..., :h, :w])))
        if callback is not None:
            callback(done, total, results[-1])
    return torch.cat(results)


@torch.no_grad()
def gridpure(
    picture: Tensor,
    denoiser: Denoiser,
    *,
    timestep: int = 10,
    iterations: int = 20,
    gamma: float = 0.1,
    seed: int = 0,
    callback: Callback | None = None,
    substeps: int = 0,
) -> Tensor:
    """GrIDPure: purify overlapping tiles at a low timestep, average, blend with the input, repeat.

    Tiles of the model's size T at stride T/2, the last row and column flush with the border, and one composite
    tile of the four T/2 corner blocks; overlaps are averaged, corners included; then
    (1 - gamma) · pure + gamma · input, rounded to 8 bits.

    picture: B×3×H×W in 0..1, any size (smaller ones are mirrored up to one tile). substeps: at how many of the
    timesteps the network runs in each iteration, 0: at all; see `visited`. Returns the same shape, 8-bit rounded.
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
            if callback is not None:
                callback(done, total, None)

        try:
            z = denoiser.encode(tiles)
            return denoiser.decode(denoise(denoiser, z, timestep, generators, on_step, substeps))
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
            if callback is not None:
                callback(done, total, to_picture(x[..., :h, :w]))
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
        size = next(denoiser.batches(len(tiles) - start, *tiles.shape[-2:])).stop
        part = range(start, start + size)
        try:
            tiles[part.start : part.stop] = work(tiles[part.start : part.stop], [stream(i) for i in part])
            start = part.stop
            continue
        except torch.cuda.OutOfMemoryError:
            if not denoiser.shrink():
                raise
        # Outside the handler: only here the failed attempt's tensors are gone.
        torch.cuda.empty_cache()


@torch.no_grad()
def vae_round_trip(
    picture: Tensor, denoiser: Denoiser, *, iterations: int = 1, callback: Callback | None = None
) -> Tensor:
    """Through the VAE and back, `iterations` times over: the weakest purifier of a latent model, without noise.

    picture: B×3×H×W in 0..1, any size (mirrored up to the VAE's multiple, never cropped). Returns 8-bit-rounded
    B×3×H×W in 0..1. Raises `AntiPureError` for bad pictures and for denoisers without a VAE.
    """
    check_picture(picture)
    check_purifier(denoiser, 1, iterations)
    if not denoiser.latent:
        raise AntiPureError("This denoiser works on pixels and has no VAE; use 'gridpure' or 'diffpure' with it.")
    h, w = picture.shape[-2:]
    results = []
    for i, single in enumerate(picture.float().split(1)):
        for iteration in range(iterations):
            pixels = to_pixels(single)
            pixels = pad_reflect(pixels, round_up(h, denoiser.multiple), round_up(w, denoiser.multiple))
            pixels = denoiser.decode(denoiser.encode(pixels))
            single = round_8bit(to_picture(pixels[..., :h, :w]))
            if callback is not None:
                callback(i * iterations + iteration + 1, len(picture) * iterations, single)
        results.append(single)
    return torch.cat(results)


def purify(
    method: str,
    picture: Tensor,
    denoiser: Denoiser,
    *,
    timestep: int,
    iterations: int,
    gamma: float = 0.1,
    seed: int = 0,
    callback: Callback | None = None,
    substeps: int = 0,
) -> Tensor:
    """One of `METHODS`; settings that a method has no use for (gamma, the VAE's timestep) are ignored."""
    if method not in METHODS:
        raise AntiPureError(f"There is no purifier '{method}'; choose one of {', '.join(METHODS)}.")
    if method == "vae":
        return vae_round_trip(picture, denoiser, iterations=iterations, callback=callback)
    settings = {"timestep": timestep, "iterations": iterations, "seed": seed, "callback": callback}
    if method == "gridpure":
        return gridpure(picture, denoiser, gamma=gamma, substeps=substeps, **settings)
    return diffpure(picture, denoiser, resize=method == "diffpure_resized", substeps=substeps, **settings)
