"""Shared pictures and a tiny, fast denoiser with random but fixed weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from antipure.methods.denoiser import PixelDenoiser
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "bundled"

torch.set_num_threads(2)


def read_picture(path: Path) -> torch.Tensor:
    """1×3×H×W in 0..1."""
    array = np.asarray(Image.open(path).convert("RGB"))
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(scope="session")
def face() -> torch.Tensor:
    """The held-out photo, 128×128 face crop: 1×3×128×128 in 0..1."""
    return read_picture(SAMPLES / "astronaut_face.png")


def make_tiny_denoiser(*, tile: int | None = 16, out_channels: int = 3, patch: int = 1, seed: int = 0) -> PixelDenoiser:
    from diffusers import UNet2DModel

    torch.manual_seed(seed)
    unet = UNet2DModel(
        sample_size=16,
        in_channels=3 * patch**2,
        out_channels=out_channels * patch**2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        add_attention=False,
    )
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    return PixelDenoiser(unet, abar, tile=tile, patch=patch)


@pytest.fixture(scope="session")
def tiny() -> PixelDenoiser:
    """Random 16-px pixel denoiser, a forward takes about a millisecond."""
    return make_tiny_denoiser()
