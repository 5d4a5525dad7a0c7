"""What happens to pictures on their way: ordinary operations that undo a protection without meaning to.

Pictures are B×3×H×W in 0..1. Every transform returns them rounded to 8 bits, as the saved picture would be, and carries
gradient: rounding, JPEG and WebP pass it straight through (forward exact, backward the identity), everything else has
its true one. Those of `views.py` leave the picture at another size, all others at its own. `parse_transform` reads
compositions such as "jpeg75+resize0.5" and "long1080+train512".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels import filters
from ...kernels.resampling import resample
from ..errors import AntiPureError
from ..pictures import check_picture, noise, random_stream
from .cleaners import adversecleaner, nlm
from .saving import jpeg, saved, webp
from .views import GEOMETRIES, seen, view


def resize(picture: Tensor, factor: float = 0.5, kernel: str = "lanczos") -> Tensor:
    """Resized by `factor` and back to its own size with the same kernel, "lanczos" or "bicubic", 8-bit in between.

    picture: B×3×H×W in 0..1; factor above 0, at most 4. The weights are Pillow's.
    """
    check_picture(picture)
    if not 0 < factor <= 4:
        raise AntiPureError(f"The resize factor is {factor:g}; it must lie in 0..4, 0 excluded.")
    return resized(picture, factor, kernel)


def resized(picture: Tensor, factor: float, kernel: str = "lanczos") -> Tensor:
    """`resize` without its checks, one of which waits for a GPU: for loops."""
    h, w = picture.shape[-2:]
    small = saved(resample(picture, max(round(h * factor), 1), max(round(w * factor), 1), kernel))
    return saved(resample(small, h, w, kernel))


def blur(picture: Tensor, sigma: float = 1.0) -> Tensor:
    """Gaussian blur; sigma in pixels, above 0, at most 50."""
    check_picture(picture)
    _check(sigma, "blur's sigma", 50, "pixels")
    return saved(filters.gaussian_blur(picture, sigma))


def add_gaussian_noise(picture: Tensor, levels: float = 8.0, seed: int = 0, stream: int = 0) -> Tensor:
    """Gaussian noise with a standard deviation of `levels` 8-bit levels, above 0, at most 255.

    Every picture of a batch gets the same noise, so that its place there does not matter; own generator from the
    seed and `stream`, the same on any device.
    """
    check_picture(picture)
    _check(levels, "noise", 255, "levels")
    drawn = noise(tuple(picture.shape[1:]), [random_stream(seed, stream)], picture.device)
    return saved(picture + levels / 255 * drawn)


def median(picture: Tensor, window: float = 3) -> Tensor:
    """Median of each channel over window×window pixels, window 3, 5, ... 15."""
    check_picture(picture)
    if window != int(window) or window % 2 == 0 or not 3 <= window <= 15:
        raise AntiPureError(f"The median's window is {window:g}; it must be one of 3, 5, 7, 9, 11, 13, 15.")
    return saved(filters.median(picture, int(window)))


def bilateral(picture: Tensor, levels: float = 16.0) -> Tensor:
    """Bilateral filter, 9×9 window, 2 pixels; `levels`: its sigma over colour in 8-bit levels, above 0, at most 255."""
    check_picture(picture)
    _check(levels, "bilateral's sigma", 255, "levels")
    return saved(filters.bilateral(picture, levels / 255))


def _check(value: float, what: str, most: float, unit: str) -> None:
    if not 0 < value <= most:
        raise AntiPureError(f"The {what} is {value:g} {unit}; it must lie above 0 and be at most {most:g}.")


def _view(name: str) -> Callable[[Tensor, float, int, int], Tensor]:
    return lambda x, v, seed, place: view(x, name, v)


# name: (function of picture, value, seed and place in the composition; default value; what the value is)
TRANSFORMS: dict[str, tuple[Callable[[Tensor, float, int, int], Tensor], float, str]] = {
    "jpeg": (lambda x, v, seed, place: jpeg(x, _whole("jpeg", v)), 75, "quality 1..95"),
    "resize": (lambda x, v, seed, place: resize(x, v), 0.5, "factor, there and back, Lanczos"),
    "bicubic": (lambda x, v, seed, place: resize(x, v, "bicubic"), 0.5, "factor, there and back, bicubic"),
    "blur": (lambda x, v, seed, place: blur(x, v), 1, "sigma in pixels"),
    "noise": (lambda x, v, seed, place: add_gaussian_noise(x, v, seed, place), 8, "standard deviation in levels"),
    "median": (lambda x, v, seed, place: median(x, v), 3, "odd window 3..15"),
    "bilateral": (lambda x, v, seed, place: bilateral(x, v), 16, "sigma over colour in levels"),
    "adversecleaner": (lambda x, v, seed, place: adversecleaner(x, _whole("adversecleaner", v)), 64, "passes"),
    "nlm": (lambda x, v, seed, place: nlm(x, v), 10, "h in levels"),
    "webp": (lambda x, v, seed, place: webp(x, _whole("webp", v)), 80, "quality 1..100"),
    "train": (_view("train"), 512, "side of the bucket's area in pixels, as kohya and musubi"),
    "trainbicubic": (_view("trainbicubic"), 512, "the same, as ai-toolkit"),
    "trainbilinear": (_view("trainbilinear"), 512, "the same, as OneTrainer"),
    "shrink": (_view("shrink"), 0.5, "factor, area, stays there"),
    "crop": (_view("crop"), 0.8, "share of each side, the middle"),
    "long": (_view("long"), 1080, "longest side in pixels, Lanczos"),
    "upload": (_view("upload"), 1080, "longest side in pixels, Lanczos and JPEG 85"),
    "uploadwebp": (_view("uploadwebp"), 1080, "longest side in pixels, Lanczos and WebP 80"),
    "preview": (_view("preview"), 512, "longest side in pixels, Lanczos and JPEG 75"),
}


def _whole(name: str, value: float) -> int:
    if value != int(value):
        raise AntiPureError(f"'{name}{value:g}' has a fraction; give a whole number.")
    return int(value)


@dataclass(frozen=True)
class Transform:
    """A composition: transform(picture) applies `steps`, (name of `TRANSFORMS`, value) each, in order.

    picture: B×3×H×W in 0..1; returns the same, 8-bit rounded, at another size where the transform `changes_size`.
    str(transform) is its text.
    """

    steps: tuple[tuple[str, float], ...]
    seed: int = 0

    @property
    def changes_size(self) -> bool:
        """Whether some step leaves pictures at another size than it found them, for most sizes."""
        return any(name in GEOMETRIES for name, _ in self.steps)

    def view(self, x: Tensor) -> Tensor:
        """What the steps that change the size do to it, without what some of them save it as.

        x: B×C×H×W in 0..1, any C: pictures that a transformed one is compared with, their alpha, their masks. x itself
        where no step changes the size.
        """
        for name, value in self.steps:
            x = seen(x, name, value) if name in GEOMETRIES else x
        return x

    def __call__(self, picture: Tensor) -> Tensor:
        if not self.steps:
            check_picture(picture)  # else the first step does
        for place, (name, value) in enumerate(self.steps):
            picture = TRANSFORMS[name][0](picture, value, self.seed, place)
        return saved(picture)

    def __str__(self) -> str:
        return "+".join(f"{name}{value:g}" for name, value in self.steps) or "none"


def parse_transform(text: str, seed: int = 0) -> Transform:
    """The composition a text names: "jpeg75+resize0.5", "median3", "noise" (default value), "none".

    Names are those of `TRANSFORMS`, each with its value behind it, joined by "+" and applied from left to right.
    seed: of the noise. Raises `AntiPureError` for unknown names and for values that make no sense.
    """
    if text.strip().lower() == "none":
        return Transform((), seed)
    steps = []
    for part in text.split("+"):
        match = re.fullmatch(r"([a-z]+)\s*([0-9]*\.?[0-9]+)?", part.strip().lower())
        if match is None or match[1] not in TRANSFORMS:
            known = ", ".join(f"{name}{default:g}" for name, (_, default, _) in TRANSFORMS.items())
            raise AntiPureError(f"'{part.strip()}' is no transform; give some of {known}, joined by '+', or none.")
        steps.append((match[1], float(match[2]) if match[2] else float(TRANSFORMS[match[1]][1])))
    for name, value in steps:  # values are refused here, not in the middle of the work
        if name in GEOMETRIES:
            GEOMETRIES[name](2, 2, value)
        else:
            TRANSFORMS[name][0](torch.zeros(1, 3, 2, 2), value, seed, 0)
    return Transform(tuple(steps), seed)
