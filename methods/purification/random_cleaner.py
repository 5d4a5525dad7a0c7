"""Cheap cleaners drawn at random, for expectation over transformations (Athalye et al., ICML 2018, §2.1).

Nobody knows what a picture will be cleaned with. What holds behind a filter, drawn anew each time, that knows nothing
of the attacked network owes less to that network's own weaknesses.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels.filters import bilateral, gaussian_blur, median
from .saving import jpeg

Cleaner = Callable[[Tensor], Tensor]


def random_cleaner(generator: torch.Generator) -> Cleaner:
    """One of four cleaners, all even; B×3×H×W in 0..1 to the same, differentiable, sizes of any kind.

    Bilateral of one pixel with a range of .05 to .2, median of 3×3, Gaussian of .4 to 1 pixel, JPEG of quality 60 to
    95 (whose gradient passes straight through). Draws two numbers of a CPU generator.
    """
    which, amount = torch.rand(2, generator=generator).tolist()
    if which < 0.25:
        return lambda picture: bilateral(picture, 0.05 + 0.15 * amount, 1.0)
    if which < 0.5:
        return lambda picture: median(picture, 3)
    if which < 0.75:
        return lambda picture: gaussian_blur(picture, 0.4 + 0.6 * amount)
    return lambda picture: jpeg(picture, 60 + int(36 * amount))
