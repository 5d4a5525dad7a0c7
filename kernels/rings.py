"""A fixed pattern of high contrast: the picture that latents are pulled towards."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rings(height: int, width: int, period: float) -> Tensor:
    """Black and white: the product of two systems of rings around the two upper corners. 1×3×H×W, -1 or 1.

    period: pixels from one ring to the next of its colour, above 0.
    """
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    waves = torch.cos(2 * math.pi / period * torch.hypot(y, x)) * torch.cos(
        2 * math.pi / period * torch.hypot(y, width - x)
    )
    return torch.where(waves >= 0, 1.0, -1.0).expand(1, 3, height, width).contiguous()
