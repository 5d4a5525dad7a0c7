"""Pictures larger than a trainer's: protected at the trainer's size, carried up, and touched up at their own.

Trainers shrink a picture to about a megapixel before they look at it, so that what they get to see can be arranged
there, at a cost that does not grow with the picture; the last steps see to those who look at the picture as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from ...kernels.resampling import AREA, resample
from ..attacks.settings import AttackSettings
from ..pictures import check_picture
from ..progress import part

LAST = 0.2  # of the steps, at the picture's own size


def carried(
    ascent: Callable[..., Tensor],
    begin: Callable[[Tensor, AttackSettings], Tensor | None],
    picture: Tensor,
    settings: AttackSettings,
    area: int,
    first: float | None,
) -> Tensor:
    """The protected picture, in two ascents. picture: B×3×H×W in 0..1 of more than `area` pixels.

    ascent: ascent(picture, settings, start=, step_levels=, rounded=), as `attacks.pgd`.
    begin: begin(picture, settings), where the first ascent starts. settings: of at least two steps.
    first: size of the first step in levels, None the loop's own; the second ascent begins where the first's steps would
    have come to.
    """
    check_picture(picture)
    settings.check(picture)
    height, width = picture.shape[-2:]
    scale = math.sqrt(area / (height * width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    last = max(1, round(LAST * settings.steps))
    before = settings.steps - last
    count = len(picture)

    small = resample(picture.float(), *size, AREA).clamp(0, 1)
    mask = None if settings.mask is None else resample(settings.mask.float(), *size, AREA).clamp(0, 1)
    there = replace(
        settings, steps=before, mask=mask, progress=part(settings.progress, 0, before * count, settings.steps * count)
    )
    made = ascent(small, there, start=begin(small, there), step_levels=first, rounded=False)

    start = picture.float() + resample(made - small, height, width, "bicubic")
    here = replace(
        settings, steps=last, progress=part(settings.progress, before * count, last * count, settings.steps * count)
    )
    return ascent(picture, here, start=start.clamp(0, 1), step_levels=None if first is None else first * LAST)
