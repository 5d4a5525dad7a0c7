"""Random views of a picture, for expectation over transformations (Athalye et al., ICML 2018, §2.1).

What nobody knows beforehand: how much smaller somebody makes the picture, with which kernel, where the encoder's grid
falls, and how it was saved.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .saving import jpeg
from .views import AREA, Geometry


@dataclass(frozen=True)
class DrawnView:
    """One view: view(picture) resizes, cuts and saves. picture: B×3×H×W in 0..1, the H×W it was drawn for.

    The clean picture and the protected one go through the same. Differentiable: rounding and JPEG pass the gradient
    straight through, the rest has its true one. quality: of the JPEG, None: none.
    """

    geometry: Geometry
    quality: int | None

    def __call__(self, picture: Tensor) -> Tensor:
        x = self.geometry(picture)
        return x if self.quality is None else jpeg(x, self.quality)


@dataclass(frozen=True)
class RandomView:
    """Draws views, all choices even.

    scales: the smallest and largest factor, above 0, at most 1. kernels: area, lanczos, bicubic, bilinear.
    qualities: the lowest and highest of the JPEG, None: not saved as JPEG. multiple: what comes out has sides that are
    multiples of it, cut out at a random place, so that an encoder's grid falls anywhere (1: nothing is cut).
    """

    scales: tuple[float, float] = (0.4, 1.0)
    kernels: tuple[str, ...] = (AREA, "lanczos", "bicubic", "bilinear")
    qualities: tuple[int, int] | None = (60, 95)
    multiple: int = 8

    def draw(self, height: int, width: int, generator: torch.Generator) -> DrawnView:
        """A view of pictures of height×width. Draws five numbers, whatever the settings; a CPU generator.

        A side that would be shorter than `multiple` becomes just that long.
        """
        at = torch.rand(5, dtype=torch.float64, generator=generator).tolist()
        scale = self.scales[0] + (self.scales[1] - self.scales[0]) * at[0]
        kernel = self.kernels[int(at[1] * len(self.kernels))]
        sides = [max(round(side * scale), min(self.multiple, side), 1) for side in (height, width)]
        offsets, kept = [], []
        for side, share in zip(sides, at[2:4], strict=True):
            # An offset within one multiple, as far as at least one multiple is left.
            offset = int(share * min(self.multiple, max(side - self.multiple + 1, 1)))
            offsets.append(offset)
            kept.append(max((side - offset) // self.multiple * self.multiple, min(side, self.multiple)))
        quality = None
        if self.qualities is not None:
            quality = self.qualities[0] + int(at[4] * (self.qualities[1] - self.qualities[0] + 1))
        window = (offsets[0], offsets[1], kept[0], kept[1])
        return DrawnView(Geometry(sides[0], sides[1], kernel, window), quality)
