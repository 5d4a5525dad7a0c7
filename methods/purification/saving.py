"""What saving does to pictures: 8 bits, JPEG, WebP. B×3×H×W in 0..1.

Exact forward; backward the gradient passes straight through, as if saving changed nothing (within 0..1).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...kernels.transfer import to_device
from ..errors import AntiPureError
from ..pictures import check_picture, from_uint8, round_8bit, to_uint8

LONGEST_WEBP = 16383  # the format's


class _StraightThrough(torch.autograd.Function):
    """change(picture) forward, the identity backward (within 0..1)."""

    @staticmethod
    def forward(ctx, picture: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward((picture >= 0) & (picture <= 1))
        return change(picture)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.saved_tensors[0], None


def saved(picture: Tensor) -> Tensor:
    """Rounded to 8 bits, as a PNG would be."""
    return _StraightThrough.apply(picture, round_8bit)


def jpeg(picture: Tensor, quality: int = 75) -> Tensor:
    """Saved as JPEG and loaded again (Pillow: 4:2:0, its own tables). picture: B×3×H×W in 0..1; returns the same.

    Raises `AntiPureError` for a quality outside 1..95, Pillow's range.
    """
    check_picture(picture)
    if not 1 <= quality <= 95:
        raise AntiPureError(f"The JPEG quality is {quality}; it must lie in 1..95.")
    return jpegs(picture, [quality] * len(picture))


def jpegs(pictures: Tensor, qualities: Sequence[int]) -> Tensor:
    """`jpeg` with a quality for each picture, and without its checks, one of which waits for a GPU: for loops.

    A GPU is waited for once, whatever the number of pictures.
    """
    return _StraightThrough.apply(pictures, lambda x: _through_file(x, "JPEG", [{"quality": q} for q in qualities]))


def webp(picture: Tensor, quality: int = 80) -> Tensor:
    """Saved as lossy WebP and loaded again (Pillow: 4:2:0, method 4). picture: B×3×H×W in 0..1; returns the same.

    Raises `AntiPureError` for a quality outside 1..100, for sides that WebP does not know, and where this Pillow was
    built without WebP.
    """
    from PIL import features

    check_picture(picture)
    if not 1 <= quality <= 100:
        raise AntiPureError(f"The WebP quality is {quality}; it must lie in 1..100.")
    if max(picture.shape[-2:]) > LONGEST_WEBP:
        raise AntiPureError(
            f"The picture has {picture.shape[-1]}×{picture.shape[-2]} pixels, but WebP's sides are at most "
            f"{LONGEST_WEBP}; make it smaller first, as long1080 does."
        )
    if not features.check("webp"):
        raise AntiPureError("This Pillow was built without WebP; install one from PyPI, or take jpeg.")
    return _StraightThrough.apply(picture, lambda x: _through_file(x, "WEBP", [{"quality": quality}] * len(x)))


def _through_file(pictures: Tensor, format_: str, settings: Sequence[dict[str, Any]]) -> Tensor:
    from PIL import Image

    results = []
    for one, own in zip(to_uint8(pictures), settings, strict=True):
        file = io.BytesIO()
        Image.fromarray(one).save(file, format_, **own)
        with Image.open(file) as loaded:
            results.append(np.asarray(loaded.convert("RGB")))
    return to_device(from_uint8(np.stack(results)), pictures.device, pictures.dtype)
