"""ComfyUI's UPSCALE_MODEL (a spandrel descriptor) as an `Upscaler`: tiles as in the host's own Upscale Image node."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..methods.errors import AntiPureError
from ..methods.memory import is_out_of_memory
from ..methods.purification.upscaling import Upscaler
from . import host

TILE, SMALLEST_TILE, OVERLAP = 512, 128, 32


class ModelUpscaler(Upscaler):
    """descriptor: what Load Upscale Model gives: called with B×3×H×W in 0..1, with `scale` and `to(device)`.

    Raises `AntiPureError` for one that takes or gives other than RGB.
    """

    def __init__(self, descriptor: Any, name: str = "the upscale model"):
        channels = getattr(descriptor, "input_channels", 3), getattr(descriptor, "output_channels", 3)
        if channels != (3, 3):
            raise AntiPureError(f"{name} maps {channels[0]} channels to {channels[1]}; wire one for RGB pictures.")
        self.descriptor, self.name, self.scale = descriptor, name, int(descriptor.scale)
        self.device = torch.device("cpu")

    @contextmanager
    def session(self) -> Iterator[None]:
        """On the host's device within, on the CPU after it, where the host's own node leaves it."""
        self.device = host.device()
        self.descriptor.to(self.device)
        try:
            yield
        finally:
            self.device = torch.device("cpu")
            self.descriptor.to(self.device)

    @torch.no_grad()
    def enlarge(self, picture: Tensor) -> Tensor:
        tile = TILE
        while True:
            try:
                return self._in_tiles(picture, tile)
            except Exception as error:
                if not is_out_of_memory(error) or tile // 2 < SMALLEST_TILE:
                    raise
            tile //= 2
            torch.cuda.empty_cache()

    def _in_tiles(self, picture: Tensor, tile: int) -> Tensor:
        """Tiles that overlap by `OVERLAP`; where they do, each counts the less the nearer its own border is."""
        height, width = picture.shape[-2:]
        scale = self.scale
        total = picture.new_zeros((len(picture), 3, height * scale, width * scale))
        norm = torch.zeros_like(total[:1, :1])
        for top in _starts(height, tile):
            for left in _starts(width, tile):
                part = picture[..., top : top + tile, left : left + tile].to(self.device, torch.float32)
                large = self.descriptor(part).float().to(picture.device)
                rows = slice(top * scale, top * scale + large.shape[-2])
                columns = slice(left * scale, left * scale + large.shape[-1])
                if total[..., rows, columns].shape != large.shape:
                    raise AntiPureError(f"{self.name} does not enlarge {scale} times, as it says; wire another one.")
                weight = _ramp(part.shape[-2], scale)[:, None] * _ramp(part.shape[-1], scale)
                total[..., rows, columns] += weight.to(large) * large
                norm[..., rows, columns] += weight.to(large)
        return total / norm


def _starts(size: int, tile: int) -> list[int]:
    """Where tiles begin along one axis; the last ends with the picture."""
    if size <= tile:
        return [0]
    return [*range(0, size - tile, tile - OVERLAP), size - tile]


def _ramp(size: int, scale: int) -> Tensor:
    """Weights along one axis of an enlarged tile: rising over the overlap, 1 within."""
    places = torch.arange(size * scale, dtype=torch.float32) + 1
    return (torch.minimum(places, places.flip(0)) / (OVERLAP * scale)).clamp(max=1)
