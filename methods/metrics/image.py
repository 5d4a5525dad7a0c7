"""What a perturbation costs, and what a purifier leaves of it. Pictures are B×3×H×W in 0..1.

Every function returns B float values, one per picture; comparisons round both pictures to 8 bits first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.frequency import high_frequency_energy
from ...kernels.ssim import ssim_terms
from ..errors import AntiPureError, both_sizes
from ..pictures import pad_reflect, round_8bit


def _pair(reference: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
    if reference.shape != picture.shape:
        raise AntiPureError(
            f"The pictures differ in size, {both_sizes(reference.shape, picture.shape)}: compare equal ones."
        )
    return round_8bit(reference), round_8bit(picture)


def psnr(reference: Tensor, picture: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB over 0..1; infinite for equal pictures."""
    a, b = _pair(reference, picture)
    return -10 * (a - b).square().flatten(1).mean(1).log10()


def linf_levels(reference: Tensor, picture: Tensor) -> Tensor:
    """Largest difference of any pixel and channel, in 8-bit levels."""
    a, b = _pair(reference, picture)
    return ((a - b) * 255).round().abs().flatten(1).amax(1)


def _ssim_terms(reference: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
    """`kernels.ssim.ssim_terms` of the 8-bit pictures.

    Pictures with a side below 11 pixels are mirrored up to 11, the smallest size the window fits.
    """
    a, b = _pair(reference, picture)
    h, w = max(a.shape[-2], 11), max(a.shape[-1], 11)
    return ssim_terms(pad_reflect(a, h, w), pad_reflect(b, h, w))


def ssim(reference: Tensor, picture: Tensor) -> Tensor:
    """Structural similarity over RGB, data range 1, as torchmetrics computes it."""
    return _ssim_terms(reference, picture)[0]


def structural_distortion(reference: Tensor, picture: Tensor) -> Tensor:
    """1 - mean contrast-structure term of SSIM: 0 for equal structure; brightness shifts do not count.

    The measure of survival compares Pure(protected) with Pure(clean), purified with the same seed.
    """
    return 1 - _ssim_terms(reference, picture)[1]


def detail_ratio(reference: Tensor, picture: Tensor) -> Tensor:
    """High-frequency DCT energy of `picture` over that of `reference` (8×8 patches, max(m, n) >= 4).

    Below 1: detail was wiped out; above 1: detail was made up. 1 where neither has any.
    """
    a, b = _pair(reference, picture)
    h, w = max(a.shape[-2], 8), max(a.shape[-1], 8)
    floor = 1e-8  # far below the energy of 8-bit rounding, so that flat pictures give 1
    return (high_frequency_energy(pad_reflect(b, h, w)) + floor) / (high_frequency_energy(pad_reflect(a, h, w)) + floor)


def _power(x: Tensor) -> tuple[Tensor, Tensor]:
    """Power per frequency, summed over channels (sums to the mean square of x), and radial frequency 0..0.71."""
    h, w = x.shape[-2:]
    power = torch.fft.fft2(x.double()).abs().square().sum(1) / (h * w) ** 2
    fy = torch.fft.fftfreq(h, dtype=torch.float64, device=x.device)[:, None]
    fx = torch.fft.fftfreq(w, dtype=torch.float64, device=x.device)[None, :]
    return power, torch.hypot(fy, fx)


BANDS = {"low": (0.0, 0.0625), "mid": (0.0625, 0.25), "high": (0.25, 1.0)}


def band_energy(perturbation: Tensor) -> dict[str, Tensor]:
    """Share of a perturbation's energy per frequency band (cycles per pixel, radial): low, mid, high.

    perturbation: B×3×H×W differences. The shares sum to 1 (all 0 for a zero perturbation).
    """
    power, radius = _power(perturbation)
    total = power.sum((-2, -1)).clamp(min=1e-30)
    return {
        name: (power * ((radius >= low) & (radius < high))).sum((-2, -1)) / total for name, (low, high) in BANDS.items()
    }


def radial_spectrum(x: Tensor, bins: int = 32) -> Tensor:
    """Mean power per radial frequency bin from 0 to 0.5 cycles per pixel: B×bins."""
    power, radius = _power(x)
    index = (radius / 0.5 * bins).long().flatten()
    inside = index < bins
    counts = torch.zeros(bins, dtype=torch.float64, device=x.device).index_add_(
        0, index[inside], torch.ones(int(inside.sum()), dtype=torch.float64, device=x.device)
    )
    sums = torch.zeros(len(x), bins, dtype=torch.float64, device=x.device)
    sums.index_add_(1, index[inside], power.flatten(1)[:, inside])
    return sums / counts.clamp(min=1)


def error_map(reference: Tensor, picture: Tensor, window: int = 5) -> Tensor:
    """Root mean square difference over channels and a window: B×1×H×W, in 8-bit levels."""
    a, b = _pair(reference, picture)
    squares = ((a - b) * 255).square().mean(1, keepdim=True)
    padding = window // 2
    return F.avg_pool2d(squares, window, stride=1, padding=padding, count_include_pad=False).sqrt()
