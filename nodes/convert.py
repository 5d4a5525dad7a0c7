"""Between ComfyUI's IMAGE and MASK and the pictures of methods/ (B×3×H×W in 0..1, float32)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..methods.errors import AntiPureError
from ..methods.pictures import check_picture

FARTHEST = 0.5  # how far beyond 0..1 values are taken for overshoot (of resizing, sharpening); they are clamped
NOTHING_CHANGED = "the mask forbids every pixel:\nnothing was changed"


def from_image(image: Tensor, name: str = "image") -> tuple[Tensor, Tensor | None]:
    """IMAGE (B×H×W×C in 0..1, any float type, 1, 3 or 4 channels) to RGB pictures and alpha (B×H×W×1 or None).

    The result is an ordinary tensor even where IMAGE is an inference tensor. Overshoot up to `FARTHEST` is clamped.
    Raises `AntiPureError` for anything that is no picture, such as values in 0..255.
    """
    if not isinstance(image, Tensor) or image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise AntiPureError(f"The {name} is no IMAGE batch (B×H×W×C with 1, 3 or 4 channels) but {shape}.")
    with torch.inference_mode(False):
        alpha = image[..., 3:].clone() if image.shape[-1] == 4 else None
        rgb = image[..., :3].float().clone().permute(0, 3, 1, 2)
        if rgb.shape[1] == 1:
            rgb = rgb.expand(-1, 3, -1, -1)
        check_picture(rgb, name)
        _check_range(image, name)
        return rgb.contiguous().clamp(0, 1), alpha


def _check_range(image: Tensor, name: str) -> None:
    """Raise `AntiPureError` where the values, alpha's included, are clearly not meant as 0..1."""
    low, high = (float(value) for value in image.aminmax())
    # Eight-bit integers are 0..255 even where a dark picture holds none above 1.
    if not (low >= -FARTHEST and high <= 1 + FARTHEST) or image.dtype == torch.uint8:
        raise AntiPureError(
            f"The {name} holds values from {low:g} to {high:g}, but an IMAGE lies in 0..1; have the node it comes from "
            "give 0..1, as Load Image does (0..255 has to be divided by 255)."
        )


def to_image(picture: Tensor, alpha: Tensor | None = None) -> Tensor:
    """Pictures back to IMAGE, with the alpha they came with, on the CPU.

    Raises `AntiPureError` for NaN and infinite values: they would be shown and saved as black.
    """
    if not torch.isfinite(picture).all():
        raise AntiPureError(
            "The result holds NaN or infinite pixels, so it is not shown: the model computed them; load it in fp32, or "
            "take another one."
        )
    image = picture.permute(0, 2, 3, 1).contiguous().cpu()
    return image if alpha is None else torch.cat([image, alpha.float().cpu()], -1)


def from_mask(mask: Tensor | None, picture: Tensor) -> Tensor | None:
    """MASK ([H, W] or [B, H, W]) to B×1×H×W for these pictures, or None for "everywhere".

    A 64×64 mask of zeros is what LoadImage gives for pictures without alpha: it means no mask. A mask of another
    size is resized.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 3) or mask.numel() == 0:
        raise AntiPureError("The mask is no MASK ([H, W] or [B, H, W]); wire a node's MASK output to it.")
    with torch.inference_mode(False):
        mask = mask.float().clone()
        if not torch.isfinite(mask).all():
            raise AntiPureError("The mask holds NaN or infinite values; mend the node it comes from.")
        if mask.ndim == 2:
            mask = mask[None]
        if mask.shape[-2:] == (64, 64) and not mask.any():
            return None
        if len(mask) not in (1, len(picture)):
            raise AntiPureError(f"{len(mask)} masks for {len(picture)} pictures; give one mask, or one for each.")
        mask = mask[:, None].clamp(0, 1)
        if mask.shape[-2:] != picture.shape[-2:]:
            mask = F.interpolate(mask, picture.shape[-2:], mode="bilinear", antialias=True).clamp(0, 1)
        return mask.expand(len(picture), -1, -1, -1)


def all_forbidden(mask: Tensor | None, i: int) -> bool:
    """Whether the mask, B×1×H×W, lets no pixel of picture i change: what LoadImage gives for opaque RGBA pictures."""
    return mask is not None and not mask[i].any()


def difference_view(before: Tensor, after: Tensor, full_scale: float) -> Tensor:
    """after - before around mid-grey; ±full_scale 8-bit levels reach white and black. B×3×H×W in 0..1."""
    return (0.5 + (after - before) * (255 / (2 * full_scale))).clamp(0, 1)
