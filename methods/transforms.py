"""What happens to pictures on their way: ordinary operations that undo a protection without meaning to."""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Tensor

from .errors import AntiPureError
from .pictures import check_picture, round_8bit


def jpeg(picture: Tensor, quality: int = 75) -> Tensor:
    """Saved as JPEG and loaded again (Pillow: 4:2:0, its own tables). picture: B×3×H×W in 0..1; returns the same.

    Raises `AntiPureError` for a quality outside 1..95, Pillow's range.
    """
    from PIL import Image

    check_picture(picture)
    if not 1 <= quality <= 95:
        raise AntiPureError(f"The JPEG quality is {quality}; it must lie in 1..95.")
    results = []
    for one in (round_8bit(picture).cpu() * 255).round().byte().permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(one).save(file, "JPEG", quality=quality)
        with Image.open(file) as loaded:
            results.append(torch.from_numpy(np.array(loaded.convert("RGB"))))
    return (torch.stack(results).permute(0, 3, 1, 2).float() / 255).to(picture)
