"""How a defence against face editing is judged: masked L2, and the share of pictures it protects.

The measure of CMUA-Watermark (Huang et al., AAAI 2022) and of LoRA Patching (arXiv 2510.03747): an edit is disrupted
when the network's output for the protected picture differs enough from its output for the plain one, *where* the edit
shows; what it leaves alone does not count.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import AntiPureError, sizes

MASK_THRESHOLD = 0.5  # on the sum over the channels of |G(x) - x|, pixels in [-1, 1]
SUCCESS_THRESHOLD = 0.05


def edit_mask(undisturbed: Tensor, pixels: Tensor) -> Tensor:
    """Where the edit shows: 1 where the sum over the three channels of |G(x) - x| exceeds 0.5, else 0.

    undisturbed: G(x); pixels: x; both B×3×H×W in [-1, 1]. Returns B×1×H×W, float.
    """
    _check(undisturbed, pixels)
    return ((undisturbed - pixels).abs().sum(1, keepdim=True) > MASK_THRESHOLD).to(undisturbed)


def masked_l2(output: Tensor, undisturbed: Tensor, pixels: Tensor) -> Tensor:
    """Mean over the masked pixels and the channels of (G(x_adv) - G(x))², one value per picture: B values, >= 0.

    output: G(x_adv), the output to judge. undisturbed: G(x). pixels: x, unprotected. All B×3×H×W in [-1, 1].
    The mask is `edit_mask`; where it is empty the edit changes nothing that could be disrupted, and the value is NaN.
    Raises `AntiPureError` for shapes that differ.
    """
    _check(output, undisturbed)
    mask = edit_mask(undisturbed, pixels)
    return (mask * (output - undisturbed).square()).sum((1, 2, 3)) / (output.shape[1] * mask.sum((1, 2, 3)))


def success_rate(l2: Tensor, threshold: float = SUCCESS_THRESHOLD) -> float:
    """Share in 0..1 of the masked L2 values above the threshold; NaN values are left out, NaN when none is left."""
    known = l2[~torch.isnan(l2)]
    return float((known > threshold).double().mean()) if len(known) else math.nan


def valid_cases(l2: Tensor) -> int:
    """How many of the masked L2 values say anything: those that are not NaN."""
    return int((~torch.isnan(l2)).sum())


def wilson(share: float, cases: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval of a share that was counted in `cases` independent cases: lower and upper bound in 0..1.

    Wilson, JASA 22, 1927. z: 1.96 for 95 %. (NaN, NaN) without cases.
    """
    if cases == 0 or math.isnan(share):
        return math.nan, math.nan
    spread = z * math.sqrt(share * (1 - share) / cases + z * z / (4 * cases * cases))
    middle, scale = share + z * z / (2 * cases), 1 + z * z / cases
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def _check(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.ndim != 4:
        raise AntiPureError(
            f"Outputs of shapes {sizes(a.shape)} and {sizes(b.shape)} cannot be compared; give equal ones."
        )
