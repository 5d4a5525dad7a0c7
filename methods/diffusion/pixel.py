"""Pixel models as a `Denoiser`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.noising import add_noise as add_noise
from ..gradients.compilation import OFF, CompiledNetwork
from ..gradients.differentiation import saved_bytes
from ..precision import autocast
from .denoiser import Denoiser


class PixelDenoiser(Denoiser):
    """A diffusers `UNet2DModel` (or a module called the same way) over pixels.

    unet: eps-predicting; called as unet(x, t).sample with C or 2C output channels (learned variance).
    alphas_cumprod: T values.
    tile: the side it was trained on.
    patch: pixels are folded into channels in patch×patch blocks before the network and unfolded after it. The
        noise process does not see this permutation: model space is pixels.
    dtype: autocast type of the network (float32: none). Inputs, outputs and losses stay float32.
    compile: one of `compilation.MODES`: whether the network runs through torch.compile, and how.
    """

    def __init__(
        self,
        unet: nn.Module,
        alphas_cumprod: Tensor,
        *,
        tile: int | None,
        patch: int = 1,
        dtype: torch.dtype = torch.float32,
        compile: str = OFF,
    ):
        self.unet = unet.eval().requires_grad_(False)
        self._run = CompiledNetwork(self.unet, compile)
        self.alphas_cumprod = alphas_cumprod.float().to(next(unet.parameters()).device)
        self.patch = patch
        self.dtype = dtype
        config: Any = unet.config  # diffusers' own kind of dictionary
        self.multiple = patch * 2 ** (len(config.block_out_channels) - 1)
        self.tile = tile
        self._bytes_per_pixel: float | None = None

    @property
    def network(self) -> nn.Module:
        return self.unet

    @property
    def compiled(self) -> bool:
        """Whether the network runs through torch.compile, as far as is known by now."""
        return self._run.active

    def to(self, device: torch.device | str) -> PixelDenoiser:
        """Move weights and schedule to a device, in place."""
        self.unet.to(device)
        self.alphas_cumprod = self.alphas_cumprod.to(device)
        return self

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels

    def decode(self, latent: Tensor) -> Tensor:
        return latent

    def predict(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._predict(self._run, x_t, t)

    def _predict(self, network: Callable[[Tensor, Tensor], Tensor], x_t: Tensor, t: Tensor):
        x = F.pixel_unshuffle(x_t, self.patch) if self.patch > 1 else x_t
        x = x.contiguous(memory_format=torch.channels_last)
        with autocast(x.device, self.dtype):
            out = network(x, t)
        out = out.float()
        if self.patch > 1:
            out = F.pixel_shuffle(out, self.patch)
        eps, variance = out[:, : x_t.shape[1]], out[:, x_t.shape[1] :]
        return eps, (variance if variance.shape[1] else None)

    def bytes_per_pixel(self) -> float:
        if self._bytes_per_pixel is None:
            self._bytes_per_pixel = self._measure_bytes_per_pixel()
        return self._bytes_per_pixel

    def _measure_bytes_per_pixel(self) -> float:
        """Count what autograd saves in one small forward: exact, and true for any architecture."""
        side = max(self.multiple, 32)
        with torch.inference_mode(False):
            x = torch.zeros(1, 3, side, side, device=self.device)
            t = torch.zeros(1, dtype=torch.long, device=self.device)
            return saved_bytes(lambda x: self._predict(self._run.plain, x, t)[0], x, self.unet) / side**2
