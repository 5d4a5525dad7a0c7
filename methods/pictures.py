"""Pictures (B×3×H×W in 0..1), pixels (the same in -1..1), tiles and reproducible random streams."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..kernels.transfer import PINNED
from .errors import AntiPureError, sizes

SHOWN = 256  # the side of what reports show of a picture
_WORTH_THREADS = 2**16  # values: less is drawn before a thread has begun


def check_picture(picture: Tensor, name: str = "picture") -> None:
    """Raise `AntiPureError` unless `picture` is a non-empty, finite float B×3×H×W tensor.

    Looking at the values waits for a GPU: once on the way of a picture. Functions that hand it on to one that calls
    this need `check_shape` at most.
    """
    check_shape(picture, name)
    if not torch.isfinite(picture).all():
        raise AntiPureError(f"The {name} holds NaN or infinite pixels; mend the node or file it comes from.")


def check_shape(picture: Tensor, name: str = "picture") -> None:
    """`check_picture` as far as it waits for nothing: all but the values."""
    if picture.ndim != 4 or picture.shape[1] != 3:
        raise AntiPureError(f"The {name} has shape {sizes(picture.shape)}; give a batch of RGB pictures, B×3×H×W.")
    if picture.numel() == 0:
        raise AntiPureError(f"The {name} has no pixels (shape {sizes(picture.shape)}); give one of at least 1×1.")
    if not picture.is_floating_point():
        raise AntiPureError(f"The {name} holds {picture.dtype} values; give floats in 0..1.")


def to_pixels(picture: Tensor) -> Tensor:
    """0..1 to -1..1."""
    return picture * 2 - 1


def to_picture(pixels: Tensor) -> Tensor:
    """-1..1 to 0..1, clamped."""
    return ((pixels + 1) / 2).clamp(0, 1)


def round_8bit(picture: Tensor) -> Tensor:
    """The nearest 8-bit picture, as k/255 in float32: exactly what a saved and reloaded PNG holds."""
    return (picture.float().clamp(0, 1) * 255).round() / 255


def to_uint8(picture: Tensor) -> np.ndarray:
    """Pictures B×3×H×W in 0..1 as 8-bit arrays B×H×W×3, rounded; on the CPU."""
    return (round_8bit(picture.detach()) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def from_uint8(array: np.ndarray) -> Tensor:
    """8-bit arrays, B×H×W×3 or one H×W×3, as pictures B×3×H×W in 0..1, float32; the array is copied."""
    pixels = torch.from_numpy(np.array(array, np.uint8))
    return (pixels if pixels.ndim == 4 else pixels[None]).permute(0, 3, 1, 2).float() / 255


def random_stream(seed: int, *path: int) -> torch.Generator:
    """An own CPU generator for a seed and a path of counters, such as (step,) or (iteration, tile).

    Streams do not depend on the device, on how work is batched, or on what was drawn before.
    torch's CPU generator looks at 32 bits of a seed only, so the path is mixed into them (splitmix64).
    """
    state = 0
    for value in (seed, *path):
        state = (state + (value & 0xFFFFFFFFFFFFFFFF) + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return torch.Generator().manual_seed(state & 0xFFFFFFFF)


def noise(shape: tuple[int, ...], generators: list[torch.Generator], device: torch.device) -> Tensor:
    """Standard normal noise of `shape`, one generator per sample, on `device`."""
    return next(noises(1, shape, generators, device))


def noises(
    count: int, shape: tuple[int, ...], generators: list[torch.Generator], device: torch.device
) -> Iterator[Tensor]:
    """`noise`, `count` times in a row with the same values, each drawn while the one before is worked with.

    For a GPU, which waits for one CPU thread otherwise: each thread draws for samples of its own, whose streams know
    nothing of each other. Nobody else may draw from the generators until the last one was taken.
    """
    threads = drawing_threads(device) if len(generators) * math.prod(shape) >= _WORTH_THREADS else 0
    pinned = device.type in PINNED  # a copy from ordinary memory would wait for the GPU
    if not threads:
        for _ in range(count):
            drawn = _draw(torch.empty(len(generators), *shape, pin_memory=pinned), generators)
            yield drawn.to(device, non_blocking=pinned)
        return
    bounds = [len(generators) * k // threads for k in range(threads + 1)]
    inference = torch.is_inference_mode_enabled()  # each thread has its own

    def begin() -> tuple[Tensor, list[Future]]:
        drawn = torch.empty(len(generators), *shape, pin_memory=pinned)
        parts = [slice(*pair) for pair in pairwise(bounds) if pair[0] < pair[1]]
        return drawn, [_pool().submit(_draw, drawn[part], generators[part], inference) for part in parts]

    ahead = begin() if count else None
    for done in range(1, count + 1):
        assert ahead is not None
        drawn, parts = ahead
        for part in parts:
            part.result()
        ahead = begin() if done < count else None
        yield drawn.to(device, non_blocking=pinned)


def drawing_threads(device: torch.device) -> int:
    """How many threads draw noise for a device; none for the CPU, which has other work for its cores."""
    return 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(8, thread_name_prefix="antipure-noise")


def _draw(out: Tensor, generators: list[torch.Generator], inference: bool | None = None) -> Tensor:
    with nullcontext() if inference is None else torch.inference_mode(inference):
        for one, generator in zip(out, generators, strict=True):
            one.normal_(generator=generator)
    return out


def pad_reflect(x: Tensor, height: int, width: int) -> Tensor:
    """Mirror the picture (without repeating its border) at the bottom and right up to height×width.

    Works for any size, also where the padding is longer than the picture; differentiable.
    """

    def index(size: int, target: int) -> Tensor:
        period = max(2 * (size - 1), 1)
        i = torch.arange(target, device=x.device) % period
        return torch.minimum(i, period - i) if size > 1 else i

    h, w = x.shape[-2:]
    if height > h:
        x = x.index_select(-2, index(h, height))
    if width > w:
        x = x.index_select(-1, index(w, width))
    return x


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is >= value."""
    return -(-value // multiple) * multiple


def grid_positions(height: int, width: int, tile: int, stride: int) -> list[tuple[int, int]]:
    """Regular tile corners with the last row and column flush with the border (height, width >= tile)."""

    def axis(size: int) -> list[int]:
        return [*range(0, size - tile, stride), size - tile]

    return [(y, x) for y in axis(height) for x in axis(width)]


def random_positions(height: int, width: int, tile: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """Tile corners of a grid with random offset, clamped into the picture: every pixel is covered.

    A picture of n×n tiles needs up to (n+1)×(n+1) of them; one that is a single tile needs one.
    """

    def axis(size: int) -> list[int]:
        offset = int(torch.randint(tile, (), generator=generator))
        starts = range(offset - tile, size, tile)
        return sorted({min(max(start, 0), size - tile) for start in starts})

    rows = axis(height)
    columns = axis(width)
    return [(y, x) for y in rows for x in columns]


def center_crop(picture: Tensor, side: int = SHOWN) -> Tensor:
    """At most side×side pixels of the middle, on the CPU; never resized: reducing would hide the perturbation."""
    top, left = (max(length - side, 0) // 2 for length in picture.shape[-2:])
    return picture[..., top : top + side, left : left + side].cpu().clone()
