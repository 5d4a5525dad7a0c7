"""Resampling pictures, differentiable, on any device: the weights of Pillow, of torch's antialias and of OpenCV's area.

x is B×C×H×W float of any range.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .transfer import to_device

Window = tuple[int, int, int, int]  # top, left, rows, columns

_BLOCK = 64  # output pixels whose weights stand in one matrix


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic with a = -0.5, support 2."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _lanczos(x: Tensor) -> Tensor:
    """sinc(x) sinc(x/3), support 3."""
    return torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), torch.zeros_like(x))


KERNELS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "bilinear": (_triangle, 1.0),
    "bicubic": (_cubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}
AREA = "area"  # no kernel: the mean over the part of the picture that an output pixel covers


def _weights(size: int, target: int, kernel: str, first: int, count: int) -> tuple[int, Tensor]:
    """Of output pixels first .. first + count - 1 of `target`: the first of the `size` inputs, count×inputs weights.

    Every row sums to 1; float64 on the CPU.
    """
    scale = size / target
    outputs = torch.arange(first, first + count, dtype=torch.float64)
    if kernel == AREA:
        low, high = max(int(first * scale), 0), min(math.ceil((first + count) * scale), size)
        inputs = torch.arange(low, high, dtype=torch.float64)
        left, right = outputs[:, None] * scale, (outputs[:, None] + 1) * scale
        weights = (torch.minimum(right, inputs + 1) - torch.maximum(left, inputs)).clamp(min=0)
    else:
        function, support = KERNELS[kernel]
        widening = max(scale, 1.0)
        reach = support * widening
        low = max(math.floor((first + 0.5) * scale - reach), 0)
        high = min(math.ceil((first + count - 0.5) * scale + reach), size)
        inputs = torch.arange(low, high, dtype=torch.float64) + 0.5
        distance = (inputs[None] - ((outputs + 0.5) * scale)[:, None]) / widening
        weights = function(distance) * (distance.abs() < support)
    return low, weights / weights.sum(1, keepdim=True)


def resample_matrix(size: int, target: int, kernel: str = "lanczos") -> Tensor:
    """target×size weights that resample one axis as Pillow does: the kernel is widened when making smaller.

    Every row sums to 1; float32 on the CPU. kernel: a name of `KERNELS`, or `AREA`.
    """
    return _weights(size, target, kernel, 0, target)[1].float()


def resample(x: Tensor, height: int, width: int, kernel: str = "lanczos") -> Tensor:
    """x at height×width: B×C×height×width. Overshoots the range of x at edges, as these kernels do."""
    rows = to_device(resample_matrix(x.shape[-2], height, kernel), x.device, x.dtype)
    columns = to_device(resample_matrix(x.shape[-1], width, kernel), x.device, x.dtype)
    return rows @ (x @ columns.T)


def resample_window(
    x: Tensor,
    height: int,
    width: int,
    kernel: str,
    window: Window,
    between: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """`resample` to height×width, of which only a window is computed: B×C×rows×columns.

    Memory and time go with the picture and the window, whatever height×width: weights are made for a few output
    pixels and the inputs they see. between: what happens to the picture between the pass along its rows, which comes
    first, and the one along its columns (Pillow rounds there). A pass that changes no length is left out.
    """
    top, left, rows, columns = window
    low, high = _seen(x.shape[-2], height, kernel, top, rows)
    x, length = x[..., low:high, :], x.shape[-2]
    if width == x.shape[-1]:
        x = x[..., left : left + columns]
    else:
        x = _along_last(x, x.shape[-1], width, kernel, left, columns, 0)
        x = x if between is None else between(x)
    if height == length:
        return x[..., top - low : top - low + rows, :]
    return _along_last(x.mT, length, height, kernel, top, rows, low).mT


def _seen(size: int, target: int, kernel: str, first: int, count: int) -> tuple[int, int]:
    """The inputs that some outputs are made of."""
    if size == target:
        return first, first + count
    low, _ = _weights(size, target, kernel, first, 1)
    last, weights = _weights(size, target, kernel, first + count - 1, 1)
    return low, last + weights.shape[1]


def _along_last(x: Tensor, size: int, target: int, kernel: str, first: int, count: int, offset: int) -> Tensor:
    """The last axis, `size` long and given from its place `offset` on, resampled to a part of `target`."""
    blocks = []
    for start in range(first, first + count, _BLOCK):
        low, weights = _weights(size, target, kernel, start, min(_BLOCK, first + count - start))
        low -= offset
        blocks.append(x[..., low : low + weights.shape[1]] @ to_device(weights, x.device, x.dtype).T)
    return torch.cat(blocks, -1)
