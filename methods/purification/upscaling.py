"""Enlarged by a network and made small again: what restoration networks leave out is often the protection.

After noise, "noise8+upscale", it is the noisy upscaling of Hönig, Rando, Carlini and Tramèr (ICLR 2025,
arXiv 2406.12027), with any upscaler instead of Stable Diffusion's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import AntiPureError, sizes
from ..pictures import check_picture, round_8bit
from ..progress import Progress, silent
from .settings import nan_if_infinite

LARGEST = 16  # times the picture's sides


class Upscaler(ABC):
    """A network that enlarges or restores pictures.

    name: what reports call it. scale: how many times larger its pictures are; 1 where it only restores.
    """

    name: str
    scale: int

    @abstractmethod
    def enlarge(self, picture: Tensor) -> Tensor:
        """B×3×H×W in 0..1 to B×3×(scale H)×(scale W), about in 0..1, on the same device."""

    def session(self) -> AbstractContextManager:
        """To be entered once around a piece of work; one over borrowed weights prepares and returns them."""
        return nullcontext()


def times(upscaler: Upscaler, factor: int) -> int:
    """How often the network enlarges until a picture is `factor` times as large; once where factor is 0.

    Raises `AntiPureError` where it never is, or far too large.
    """
    if factor < 0 or factor > LARGEST:
        raise AntiPureError(f"The factor of upscale is {factor}; it must lie in 1..{LARGEST}, or be left out.")
    count, size = 1, upscaler.scale
    while size < factor:
        if upscaler.scale == 1:
            raise AntiPureError(f"{upscaler.name} does not enlarge; write 'upscale' without a factor.")
        count, size = count + 1, size * upscaler.scale
    if size > LARGEST:
        raise AntiPureError(f"{upscaler.name} would enlarge {size} times; at most {LARGEST} makes sense here.")
    return count


@torch.no_grad()
def upscale(picture: Tensor, upscaler: Upscaler, *, factor: int = 0, progress: Progress = silent) -> Tensor:
    """Enlarged by the network, saved in 8 bits, and brought back to its own size by area averaging.

    picture: B×3×H×W in 0..1. factor: at least how many times larger, see `times`; 0: as the network does.
    Returns the same shape, 8-bit rounded. Raises `AntiPureError` where the network gives another size than it says.
    """
    check_picture(picture)
    count = times(upscaler, factor)
    h, w = picture.shape[-2:]
    results = []
    for i, single in enumerate(picture.float().split(1)):
        large = single
        for n in range(count):
            wanted = (large.shape[-2] * upscaler.scale, large.shape[-1] * upscaler.scale)
            raw = upscaler.enlarge(large)
            if tuple(raw.shape) != (1, 3, *wanted):
                raise AntiPureError(
                    f"{upscaler.name} made {sizes(raw.shape)} of {sizes(large.shape)}, where it says that it enlarges "
                    f"{upscaler.scale} times; use another model."
                )
            large = round_8bit(nan_if_infinite(raw.clamp(0, 1), raw))
            progress(i * count + n + 1, len(picture) * count)
        results.append(round_8bit(F.interpolate(large, (h, w), mode="area")))
    return torch.cat(results)
