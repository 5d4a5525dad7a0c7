"""Classical denoisers with OpenCV's arithmetic: its bilateral filter, guided filter and non-local means, on any device.

x is B×3×H×W in 8-bit levels, 0..255, held as float32. Results are not rounded. Without gradient: hundreds of passes
would keep hundreds of pictures.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_WEIGHT = 0.001  # non-local means leaves lighter patches out


def _mirrored(x: Tensor, border: int) -> Tensor:
    """x continued by its mirror image, the border pixels not repeated (OpenCV's BORDER_REFLECT_101)."""
    for dim in (-2, -1):
        size = x.shape[dim]
        places = torch.arange(-border, size + border, device=x.device).abs() % max(2 * size - 2, 1)
        x = x.index_select(dim, torch.where(places >= size, 2 * size - 2 - places, places))
    return x


def _pairs(x: Tensor, dy: int, dx: int) -> tuple[Tensor, Tensor]:
    """x where (y, x) and (y + dy, x + dx) both lie inside, dy >= 0: its values at the first and at the second."""
    height, width = x.shape[-2:]
    left, right = max(-dx, 0), max(dx, 0)
    return (
        x[..., : height - dy, left : width - right],
        x[..., dy:, left + dx : width - right + dx],
    )


def _half(radius: int) -> list[tuple[int, int]]:
    """Offsets (dy, dx) up to `radius`, one of each two opposite ones: what p weighs for q, q weighs for p."""
    steps = range(-radius, radius + 1)
    return [(dy, dx) for dy in range(radius + 1) for dx in steps if (dy, dx) > (0, 0)]


@torch.no_grad()
def bilateral_filter(x: Tensor, diameter: int = 5, sigma_colour: float = 8.0, sigma_space: float = 8.0) -> Tensor:
    """`cv2.bilateralFilter(x, diameter, sigma_colour, sigma_space)` for 8-bit colours.

    w = exp(-(sum_c |p_c - q_c|)² / 2 sigma_colour²) exp(-d² / 2 sigma_space²) over the round window.
    """
    radius = diameter // 2
    height, width = x.shape[-2:]
    extended = _mirrored(x, radius)
    total, norm = x.clone(), torch.ones_like(x[:, :1])
    for dy, dx in _half(radius):
        if dy * dy + dx * dx > radius * radius:
            continue
        first, second = _pairs(extended, dy, dx)
        distance = (first - second).abs_().sum(1, keepdim=True)
        space = -(dy * dy + dx * dx) / (2 * sigma_space**2)
        weight = distance.square_().mul_(-1 / (2 * sigma_colour**2)).add_(space).exp_()
        _accumulate(total, norm, extended, weight, (dy, dx), radius, (height, width))
    return total.div_(norm)


def _accumulate(
    total: Tensor,
    norm: Tensor,
    values: Tensor,
    weight: Tensor,
    offset: tuple[int, int],
    border: int,
    size: tuple[int, int],
) -> None:
    """Add to every pixel its two neighbours at plus and minus `offset`, by the weight of the pair.

    values: continued by `border`. weight: of the pairs of `_pairs`, which begin at row 0 and column max(-dx, 0).
    """
    (dy, dx), (height, width) = offset, size
    left = max(-dx, 0)
    for sign, row, column in ((1, border, border - left), (-1, border - dy, border - dx - left)):
        share = weight[..., row : row + height, column : column + width]
        top, start = border + sign * dy, border + sign * dx
        total.addcmul_(share.expand_as(total), values[..., top : top + height, start : start + width])
        norm.add_(share)


@torch.no_grad()
def guided_filter(guide: Tensor, x: Tensor, radius: int = 4, eps: float = 16.0) -> Tensor:
    """`cv2.ximgproc.guidedFilter(guide, x, radius, eps)`: x as a local linear function of the guide's three channels.

    a = (cov(guide) + eps)^-1 cov(guide, x), b = mean(x) - a mean(guide) in windows of 2 radius + 1; their means give
    mean(a) guide + mean(b) (He, Sun, Tang, TPAMI 2013, eq. 19-21). guide, x: B×3×H×W; eps: in levels squared.
    """

    def mean(values: Tensor) -> Tensor:
        return _box(_edges_repeated(values, radius), 2 * radius + 1)

    guide, x = guide.double(), x.double()
    guide_mean, x_mean = mean(guide), mean(x)
    pairs = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    products = mean(torch.stack([guide[:, i] * guide[:, j] for i, j in pairs], 1))
    rr, rg, rb, gg, gb, bb = (
        products[:, k] - guide_mean[:, i] * guide_mean[:, j] + (eps if i == j else 0) for k, (i, j) in enumerate(pairs)
    )
    # The inverse of a symmetric 3×3 matrix by its cofactors: a solver takes them one after another.
    cofactors = [gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb, rr * bb - rb * rb, rb * rg - rr * gb]
    cofactors.append(rr * gg - rg * rg)
    determinant = rr * cofactors[0] + rg * cofactors[1] + rb * cofactors[2]
    place = {pair: k for k, pair in enumerate(pairs)}
    results = []
    for channel in range(x.shape[1]):
        cov = mean(guide * x[:, channel : channel + 1]) - guide_mean * x_mean[:, channel : channel + 1]
        a = torch.stack(
            [sum(cofactors[place[min(i, j), max(i, j)]] * cov[:, j] for j in range(3)) / determinant for i in range(3)],
            1,
        )
        b = x_mean[:, channel : channel + 1] - (a * guide_mean).sum(1, keepdim=True)
        results.append((mean(a) * guide).sum(1, keepdim=True) + mean(b))
    return torch.cat(results, 1).float()


def _edges_repeated(x: Tensor, border: int) -> Tensor:
    """x continued by its mirror image, the border pixels repeated (OpenCV's BORDER_REFLECT)."""
    for dim in (-2, -1):
        size = x.shape[dim]
        places = torch.arange(-border, size + border, device=x.device) % (2 * size)
        x = x.index_select(dim, torch.where(places >= size, 2 * size - 1 - places, places))
    return x


def _box(x: Tensor, side: int) -> Tensor:
    """Means over side×side windows that lie inside."""
    for dim in (-2, -1):
        size = x.shape[dim] - side + 1
        total = x.narrow(dim, 0, size).clone()  # sums of slices: on CPUs three times as fast as pooling
        for start in range(1, side):
            total += x.narrow(dim, start, size)
        x = total.div_(side)
    return x


@torch.no_grad()
def non_local_means(x: Tensor, h: float = 10.0, template: int = 7, search: int = 21) -> Tensor:
    """`cv2.fastNlMeansDenoising(x, None, h, template, search)` for colours (Buades, Coll, Morel, CVPR 2005).

    w = exp(-d² / h²), d² the mean square difference of two template×template patches over all channels; pixels are
    averaged over the search×search window. OpenCV rounds d² and w to integers.
    """
    reach, patch = search // 2, template // 2
    height, width = x.shape[-2:]
    extended = _mirrored(x, reach + patch)
    inner = extended[..., patch : -patch or None, patch : -patch or None]
    total, norm = x.clone(), torch.ones_like(x[:, :1])
    for dy, dx in _half(reach):
        first, second = _pairs(extended, dy, dx)
        distance = _box((first - second).square_().mean(1, keepdim=True), template)
        weight = distance.mul_(-1 / h**2).exp_()
        weight = F.threshold(weight, LEAST_WEIGHT, 0.0)
        _accumulate(total, norm, inner, weight, (dy, dx), reach, (height, width))
    return total.div_(norm)
