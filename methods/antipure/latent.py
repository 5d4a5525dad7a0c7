"""The latent shift: whoever trains on a picture sees what a VAE makes of it, so that is moved as far as it goes.

Every trainer resizes, crops, encodes once and trains on the latents. The shift over several VAEs, seen through a
trainer's resize that is drawn anew each time, is maximised (expectation over transformations: Athalye et al., ICML
2018); PhotoGuard (Salman et al., ICML 2023) has the untransformed distance of one VAE to a target instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...kernels.resampling import AREA, resample
from ..attacks.loss import Loss
from ..diffusion.autoencoder import Autoencoder
from ..diffusion.denoiser import Denoiser
from ..pictures import pad_reflect, random_stream, round_up

SIDE = 512  # of the square whose area a VAE sees at a time: constant cost, and memory, for pictures of any size
SMALLEST = 64
TRAINERS = (AREA, "bicubic", "bilinear")  # kohya and musubi-tuner; ai-toolkit; OneTrainer
FLAT = 1e-4  # added to the squared shift: its log has a finite slope where nothing has moved yet


class LatentLoss(Loss):
    """sum over VAEs of log(FLAT + mean |E(v(x + delta)) - E(v(x))|^2 / var E(v(x))), v a trainer's view drawn anew.

    The log makes it the product of the shifts that counts: no VAE is given up for another. encoders: VAEs, or
    denoisers with one. clean: 1×3×H×W pixels. least: the smallest scale a view has. as_is: the share of draws that
    look at the picture at its own size.
    Of a large picture each VAE sees one window in a step, another one every time.
    """

    def __init__(self, encoders: Sequence[Autoencoder | Denoiser], clean: Tensor, least: float, as_is: float):
        self.encoders, self.clean, self.least, self.as_is = encoders, clean, least, as_is
        self.side = SIDE

    def terms(self, pixels: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        for i, (encoder, root) in enumerate(zip(self.encoders, self._roots(generator), strict=True)):
            stream = random_stream(root)
            scale = 1.0
            if float(torch.rand((), generator=stream)) >= self.as_is:
                scale = self.least + (1 - self.least) * float(torch.rand((), generator=stream))
            window = self._window(scale, stream)
            kernel = TRAINERS[int(torch.randint(len(TRAINERS), (), generator=stream))]
            moved = self._latent(encoder, _seen(pixels, window, scale, kernel))
            with torch.no_grad():
                still = self._latent(encoder, _seen(self.clean, window, scale, kernel))
                spread = still.var().clamp(min=1e-8)
            yield (FLAT + (moved - still).square().mean() / spread).log()
            self.partly((i + 1) / len(self.encoders))

    def shrink(self) -> bool:
        """When memory ran out: less held for the backward pass, else windows of half the area."""
        if sum([encoder.batching.shrink() for encoder in self.encoders]):  # not `any`: nobody knows whose it was
            return True
        smaller = round(self.side / math.sqrt(2))
        if smaller < SMALLEST or self.side > 2 * max(self.clean.shape[-2:]):
            smaller = min(smaller, max(self.clean.shape[-2:]))
        if smaller < SMALLEST:
            return False
        self.side = smaller
        return True

    def _roots(self, generator: torch.Generator) -> list[int]:
        return [int(torch.randint(2**62, (), generator=generator)) for _ in self.encoders]

    def _window(self, scale: float, generator: torch.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of what is looked at: as much as has `side`² pixels once it is scaled."""
        height, width = self.clean.shape[-2:]
        share = min(1.0, self.side / scale / math.sqrt(height * width))
        rows, columns = max(1, round(height * share)), max(1, round(width * share))
        # Half of a window may lie outside, and is then moved in: else the borders would be seen less than the middle.
        top, left = (
            min(max(int(torch.randint(whole, (), generator=generator)) - part // 2, 0), whole - part)
            for whole, part in ((height, rows), (width, columns))
        )
        return top, left, rows, columns

    @staticmethod
    def _latent(encoder: Autoencoder | Denoiser, pixels: Tensor) -> Tensor:
        rows, columns = (round_up(side, encoder.multiple) for side in pixels.shape[-2:])
        encoder.batching.hold(rows, columns)
        return encoder.encode(pad_reflect(pixels, rows, columns)).to(pixels.device, torch.float32)


def _seen(pixels: Tensor, window: tuple[int, int, int, int], scale: float, kernel: str) -> Tensor:
    """A window of the pixels as a trainer sees it, not rounded."""
    top, left, rows, columns = window
    part = pixels[..., top : top + rows, left : left + columns]
    return part if scale == 1 else resample(part, max(1, round(rows * scale)), max(1, round(columns * scale)), kernel)
