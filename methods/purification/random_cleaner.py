"""Cheap cleaners drawn at random, for expectation over transformations (Athalye et al., ICML 2018, §2.1).

Nobody knows what a picture will be cleaned with. What holds behind a filter, drawn anew each time, that knows nothing
of the attacked network owes less to that network's own weaknesses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.filters import bilateral, gaussian_blur, median
from .saving import jpegs

Cleaner = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Jpeg:
    """A cleaner that leaves the device: `cleaned` saves several pictures at once."""

    quality: int

    def __call__(self, picture: Tensor) -> Tensor:
        return jpegs(picture, [self.quality] * len(picture))


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
    return Jpeg(60 + int(36 * amount))


def cleaned(pictures: Sequence[Tensor], cleaners: Sequence[Cleaner]) -> list[Tensor]:
    """Each picture behind its own cleaner. pictures: 1×3×H×W in 0..1, all of one size.

    What goes through JPEG does so together: each time a GPU is waited for.
    """
    saved = {i: cleaner.quality for i, cleaner in enumerate(cleaners) if isinstance(cleaner, Jpeg)}
    loaded = jpegs(torch.cat([pictures[i] for i in saved]), list(saved.values())).split(1) if saved else ()
    results = dict(zip(saved, loaded, strict=True))
    for i, (picture, cleaner) in enumerate(zip(pictures, cleaners, strict=True)):
        if i not in results:
            results[i] = cleaner(picture)
    return [results[i] for i in range(len(pictures))]
