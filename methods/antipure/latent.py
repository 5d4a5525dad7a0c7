"""The latent shift: whoever trains on a picture sees what a VAE makes of it, so that is moved as far as it goes.

Every trainer resizes, crops, encodes once and trains on the latents. The shift over several VAEs, seen through a
trainer's resize that is drawn anew each time, is maximised (expectation over transformations: Athalye et al., ICML
2018); PhotoGuard (Salman et al., ICML 2023) and Mist (Liang and Wu, 2023) have the untransformed distance of one VAE to
a target instead. What a LoRA learns of several pictures is what they share: shifts that lie in every direction cancel
out, those towards one target do not. `pull` asks for both, the length and the direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ...kernels.resampling import AREA, resample
from ...kernels.rings import rings
from ...kernels.transfer import to_device
from ..attacks.loss import Loss
from ..diffusion.autoencoder import Autoencoder
from ..diffusion.denoiser import Denoiser
from ..pictures import pad_reflect, random_stream, round_up, to_pixels
from ..purification.random_cleaner import random_cleaner

SIDE = 256  # of the square whose area a VAE sees at a time: constant cost, and memory, for pictures of any size
SMALLEST = 64
RINGS = 4
TRAINERS = (AREA, "bicubic", "bilinear")  # kohya and musubi-tuner; ai-toolkit; OneTrainer
FLAT = 1e-4  # added to the squared shift: its log has a finite slope where nothing has moved yet


class LatentLoss(Loss):
    """sum over VAEs of log(FLAT + mean |E(v(x + delta)) - E(v(x))|^2 / var E(v(x))), v a trainer's view drawn anew.

    The log makes it the product of the shifts that counts: no VAE is given up for another. encoders: VAEs, or
    denoisers with one. clean: 1×3×H×W pixels. least: the smallest scale a view has. as_is: the share of draws that
    look at the picture at its own size. cleaned: the share of draws in which somebody cleaned the picture first
    (`purification.random_cleaner`). pull: added to each VAE's term, this times the cosine of the shift to the way from
    E(v(x)) to E(v(rings)), a pattern that is the same for all pictures of one shape, `RINGS` rings along the shorter
    side; 0: no direction is asked for.
    Of a large picture each VAE sees one window in a step, another one every time.
    """

    def __init__(
        self,
        encoders: Sequence[Autoencoder | Denoiser],
        clean: Tensor,
        least: float,
        as_is: float,
        cleaned: float = 0.0,
        pull: float = 0.0,
    ):
        self.encoders, self.clean, self.least, self.as_is, self.cleaned = encoders, clean, least, as_is, cleaned
        self.side, self.pull = SIDE, pull
        height, width = clean.shape[-2:]
        aim = rings(height, width, min(height, width) / RINGS) if pull else None
        self.aim = None if aim is None else to_device(aim, clean.device, clean.dtype)

    def terms(self, pixels: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        for i, (encoder, root) in enumerate(zip(self.encoders, self._roots(generator), strict=True)):
            view = self._drawn_view(encoder.multiple, random_stream(root))
            moved = self._latent(encoder, view(pixels))
            with torch.no_grad():
                still = self._latent(encoder, view(self.clean))
                spread = still.var().clamp(min=1e-8)
                aim = None if self.aim is None else self._latent(encoder, view(self.aim)) - still
            shift = moved - still
            squared = shift.square().mean() / spread
            term = (FLAT + squared).log()
            if aim is not None:
                # Nothing has moved yet, or the view is the rings already (white on white): the slope stays finite.
                way = aim.square().mean().clamp(min=FLAT * spread).sqrt()
                cosine = (shift * aim).mean() / (spread * (FLAT + squared)).sqrt() / way
                term = term + self.pull * cosine
            yield term
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

    def _drawn_view(self, multiple: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """What a trainer sees of a window of the pixels, not rounded: cleaned or not, resized, cut, or as it is.

        multiple: of the encoder's grid, which falls anywhere on what was resized, and begins at the corner of what was
        not.
        """
        scale = 1.0
        if float(torch.rand((), generator=generator)) >= self.as_is:
            scale = self.least + (1 - self.least) * float(torch.rand((), generator=generator))
        top, left, rows, columns = self._window(scale, generator)
        if scale == 1:
            top, left = top - top % multiple, left - left % multiple
        kernel = TRAINERS[int(torch.randint(len(TRAINERS), (), generator=generator))]
        cleaner = random_cleaner(generator) if float(torch.rand((), generator=generator)) < self.cleaned else None
        height, width = (max(1, round(side * scale)) for side in (rows, columns))
        down, right = (
            int(torch.randint(min(multiple, max(side - multiple, 1)), (), generator=generator))
            for side in (height, width)
        )

        def view(pixels: Tensor) -> Tensor:
            part = pixels[..., top : top + rows, left : left + columns]
            if cleaner is not None:
                part = to_pixels(cleaner(((part + 1) / 2).clamp(0, 1)))
            if scale == 1:
                return part
            return resample(part, height, width, kernel)[..., down:, right:]

        return view

    def _window(self, scale: float, generator: torch.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of what is looked at: as much as has `side`² pixels once it is scaled.

        As it is the picture is looked at most closely, so that twice as much is.
        """
        height, width = self.clean.shape[-2:]
        side = self.side * math.sqrt(2) if scale == 1 else self.side
        share = min(1.0, side / scale / math.sqrt(height * width))
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
