"""What others see of a picture: the size trainers, uploads and crops bring it to, and where it stays.

A `Geometry` says to which size a picture is resized, how, and which window of it is kept; `GEOMETRIES` finds the one
that a name and a value ask for. The trainers' rules are those of their code, read 2026-11: sd-scripts'
`BucketManager` and musubi-tuner's `resize_image_to_bucket`, ai-toolkit's `get_bucket_for_image_size`, OneTrainer's
`AspectBucketing` and `ScaleCropImage` (mgds).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...kernels.resampling import AREA, Window, resample_window
from ..errors import AntiPureError
from ..pictures import check_picture
from .saving import jpeg, saved, webp

STEP = 64  # a bucket's sides are multiples of it
PILLOW = ("bicubic", "lanczos")  # rounds between its two passes; OpenCV and torch do not
ONETRAINER_ASPECTS = (1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4)


@dataclass(frozen=True)
class Geometry:
    """Resized to height×width, then cut to a window (top, left, rows, columns): geometry(x).

    x: B×C×H×W, any C, the H×W it was made for; returns B×C×rows×columns. kernel: "area" (OpenCV's INTER_AREA),
    "lanczos", "bicubic" (Pillow's), "bilinear" (torch's with antialias).
    """

    height: int
    width: int
    kernel: str
    window: Window

    def __call__(self, x: Tensor, rounded: bool = True) -> Tensor:
        """rounded: to 8 bits within 0..1, as the libraries do; else linear in x, also where it overshoots."""
        between = saved if rounded and self.kernel in PILLOW else None
        x = resample_window(x, self.height, self.width, self.kernel, self.window, between)
        return saved(x) if rounded else x

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what comes out."""
        return self.window[2:]


def _centred(height: int, width: int, rows: int, columns: int, kernel: str) -> Geometry:
    return Geometry(height, width, kernel, ((height - rows) // 2, (width - columns) // 2, rows, columns))


def _resized(height: int, width: int, kernel: str) -> Geometry:
    return _centred(height, width, height, width, kernel)


def train(height: int, width: int, side: float = 512) -> Geometry:
    """kohya's sd-scripts and musubi-tuner: area when shrinking, Lanczos when enlarging, then the middle.

    The bucket is the one whose aspect is nearest among those of at most side² pixels, in steps of 64, with sides from
    side/2 to 2 side (sd-scripts' own limits at 512, and what its users set at 1024).
    """
    side = _side(side)
    buckets = _kohya_buckets(side)
    rows, columns = min(buckets, key=lambda b: abs(b[1] / b[0] - width / height))
    if (height, width) in buckets:
        rows, columns = height, width
    scale = rows / height if width / height > columns / rows else columns / width
    resized = int(height * scale + 0.5), int(width * scale + 0.5)
    kernel = AREA if resized[0] <= height and resized[1] <= width else "lanczos"
    return _centred(*resized, rows, columns, kernel)


def _kohya_buckets(side: int) -> list[tuple[int, int]]:
    """(height, width), the narrowest first: the one that wins where two are equally near."""
    longest = 2 * side
    found = {(side // STEP * STEP,) * 2}
    for width in range(max(side // 2 // STEP, 1) * STEP, longest + 1, STEP):
        height = min(longest, side * side // width // STEP * STEP)
        if height >= max(side // 2 // STEP, 1) * STEP:
            found |= {(height, width), (width, height)}
    return sorted(found, key=lambda b: (b[1], b[0]))


def train_bicubic(height: int, width: int, side: float = 512) -> Geometry:
    """ai-toolkit: bicubic, then the middle.

    It never enlarges (beyond one step of 64): the bucket is the one among the four around the picture, scaled to at
    most side² pixels, whose area is nearest.
    """
    most = _side(side) ** 2
    wanted = min(height * width, most)
    scale = (wanted / (height * width)) ** 0.5
    across, down = width * scale / STEP, height * scale / STEP
    around = [
        (h * STEP, w * STEP)
        for w in (math.floor(across), math.ceil(across))
        for h in (math.floor(down), math.ceil(down))
    ]
    fitting = [(h, w) for h, w in around if 0 < h * w <= most]
    smallest = max(math.floor(down), 1) * STEP, max(math.floor(across), 1) * STEP
    rows, columns = min(fitting or [smallest], key=lambda b: abs(b[0] * b[1] - wanted))
    larger = max(columns / width, rows / height)
    return _centred(math.ceil(height * larger), math.ceil(width * larger), rows, columns, "bicubic")


def train_bilinear(height: int, width: int, side: float = 512) -> Geometry:
    """OneTrainer: bilinear with antialias, then the middle (its crop jitter is off by default).

    The bucket is the one with the nearest aspect among 1:1 to 1:4 with side² pixels, rounded to 64 (SDXL's and
    FLUX's step).
    """
    side = _side(side)
    wide = [(side / aspect**0.5, side * aspect**0.5) for aspect in ONETRAINER_ASPECTS]
    both = [*wide, *((w, h) for h, w in wide)]
    buckets = sorted({tuple(max(round(length / STEP), 1) * STEP for length in bucket) for bucket in both})
    rows, columns = min(buckets, key=lambda b: abs(b[0] / b[1] - height / width))
    if height / width > rows / columns:
        return _centred(round(height * (columns / width)), columns, rows, columns, "bilinear")
    return _centred(rows, round(width * (rows / height)), rows, columns, "bilinear")


def _side(side: float) -> int:
    if side != int(side) or not 64 <= side <= 4096:
        raise AntiPureError(f"The trainer's side is {side:g} pixels; give a whole number in 64..4096, such as 512.")
    return int(side)


def shrink(height: int, width: int, factor: float = 0.5) -> Geometry:
    """Made smaller by `factor`, area: what a trainer sees of a part of a larger picture."""
    if not 0 < factor <= 1:
        raise AntiPureError(f"The shrink factor is {factor:g}; it must lie above 0 and be at most 1.")
    return _resized(max(round(height * factor), 1), max(round(width * factor), 1), AREA)


def crop(height: int, width: int, share: float = 0.8) -> Geometry:
    """The middle, `share` of each side, not resized."""
    if not 0 < share <= 1:
        raise AntiPureError(f"The crop's share is {share:g}; it must lie above 0 and be at most 1.")
    return _centred(height, width, max(round(height * share), 1), max(round(width * share), 1), AREA)


def long_side(height: int, width: int, longest: float = 1080) -> Geometry:
    """The longer side at most `longest` pixels, Lanczos, as sites do with uploads; smaller pictures stay."""
    if longest != int(longest) or not 16 <= longest <= 8192:
        raise AntiPureError(f"The longest side is {longest:g} pixels; give a whole number in 16..8192.")
    scale = min(int(longest) / max(height, width), 1)
    return _resized(max(round(height * scale), 1), max(round(width * scale), 1), "lanczos")


# By the name a transform has in texts: of height, width and value. Values are checked here.
GEOMETRIES: dict[str, Callable[[int, int, float], Geometry]] = {
    "train": train,
    "trainbicubic": train_bicubic,
    "trainbilinear": train_bilinear,
    "shrink": shrink,
    "crop": crop,
    "long": long_side,
    "upload": long_side,
    "uploadwebp": long_side,
    "preview": long_side,
}

# What is done to the picture after its geometry.
SAVED: dict[str, Callable[[Tensor], Tensor]] = {
    "upload": lambda x: jpeg(x, 85),
    "uploadwebp": lambda x: webp(x, 80),
    "preview": lambda x: jpeg(x, 75),
}


def seen(x: Tensor, name: str, value: float) -> Tensor:
    """x (B×C×H×W in 0..1, any C) at the size a name of `GEOMETRIES` brings it to, 8-bit rounded."""
    return GEOMETRIES[name](x.shape[-2], x.shape[-1], value)(x)


def view(picture: Tensor, name: str, value: float) -> Tensor:
    """`seen`, and saved as the name says: B×3×H×W in 0..1 to B×3×h×w."""
    check_picture(picture)
    x = seen(picture, name, value)
    return SAVED[name](x) if name in SAVED else x
