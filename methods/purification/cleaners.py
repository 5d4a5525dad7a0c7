"""Programs that clean pictures without any network: AdverseCleaner and non-local means, as OpenCV computes them.

Pictures are B×3×H×W in 0..1, rounded to 8 bits before and after, as the programs' own files are. Backward the gradient
passes straight through, as if they changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels.cleaning import bilateral_filter, guided_filter, non_local_means
from ..errors import AntiPureError
from ..pictures import check_picture, round_8bit

GUIDED_PASSES = 4


def adversecleaner(picture: Tensor, passes: int = 64) -> Tensor:
    """AdverseCleaner (lllyasviel 2023), made against Glaze and Mist: `passes` bilateral filters (5 pixels, 8 levels),
    then four guided ones (radius 4, 16 levels²) along the edges of the picture as it came.

    The program asks for 64 passes; 1..256 are taken. It guides each of the four by the first picture and keeps what
    the last one gives.
    """
    check_picture(picture)
    if passes != int(passes) or not 1 <= passes <= 256:
        raise AntiPureError(f"AdverseCleaner is to run {passes:g} passes; give a whole number from 1 to 256.")

    def clean(levels: Tensor) -> Tensor:
        x = levels
        for _ in range(int(passes)):
            x = bilateral_filter(x).round_()
        for _ in range(GUIDED_PASSES):
            x = guided_filter(levels, x).round_().clamp_(0, 255)
        return x

    return _changed(picture, clean)


def nlm(picture: Tensor, levels: float = 10.0) -> Tensor:
    """Non-local means, `cv2.fastNlMeansDenoising` of a colour picture: 7×7 patches within 21×21 pixels.

    levels: its h, how unlike patches may be, in 8-bit levels, above 0, at most 255; 10 is usual for photographs.
    """
    check_picture(picture)
    if not 0 < levels <= 255:
        raise AntiPureError(f"The nlm's h is {levels:g} levels; it must lie above 0 and be at most 255.")
    return _changed(picture, lambda x: non_local_means(x, levels))


def _changed(picture: Tensor, clean: Callable[[Tensor], Tensor]) -> Tensor:
    """clean: from levels 1×3×H×W, whole numbers, to levels."""
    whole = (round_8bit(picture.detach()).float() * 255).round()
    cleaned = round_8bit(torch.cat([clean(one) for one in whole.split(1)]) / 255).to(picture)
    return picture + (cleaned - picture).detach() if picture.requires_grad else cleaned
