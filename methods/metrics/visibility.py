"""What eyes see of a perturbation: stripes, colour differences, and what is left after the eye's blur.

Pictures are B×3×H×W in 0..1 and are rounded to 8 bits first. Every function gives B values, or tuples of them: float64
on the pictures' device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...kernels.filters import gaussian_blur
from ..errors import AntiPureError, both_sizes
from ..pictures import round_8bit

STRIPE = 0.01  # from this peak share on a perturbation counts as a stripe, see `is_stripe`
LUMA_BLUR, CHROMA_BLUR = 1.2, 2.4  # pixels
_PIXELS = 1 << 18  # colours are compared so many at a time: float64 takes some 40 numbers for each


def peak_share(perturbation: Tensor) -> Tensor:
    """The largest share of a perturbation's energy in one Fourier bin: 0..1, 0 for a zero perturbation.

    perturbation: B×3×H×W differences of any scale. Energy is summed over the channels. A bin and its conjugate are one
    wave and count together; the constant counts as a bin, so a uniform shift has 1, as a stripe along one frequency
    has. N random values have about log(N/2)/(N/2), N = H·W: .002 at 64×64, .0001 at 512×512, a little less for three
    channels. Returns B values.
    """
    height, width = perturbation.shape[-2:]
    x = perturbation.double()
    power = torch.fft.rfft2(x).abs().square().sum(1)
    own = torch.zeros_like(power[0], dtype=torch.bool)  # bins that are their own conjugates
    rows = [0, height // 2] if height % 2 == 0 else [0]
    columns = [0, width // 2] if width % 2 == 0 else [0]
    for row in rows:
        own[row, columns] = True
    waves = torch.where(own, power, 2 * power)
    total = x.square().flatten(1).sum(1) * (height * width)  # Parseval
    return waves.flatten(1).amax(1) / total.clamp(min=1e-30)


def is_stripe(share: float, height: int, width: int) -> bool:
    """Whether a peak share is that of a stripe, or of a shift: above 1 %, and above 3 times that of noise so small."""
    waves = max(height * width / 2, 3)
    return share > max(STRIPE, 3 * math.log(waves) / waves)


def ciede2000(reference: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
    """CIEDE2000 colour difference of every pixel: its mean and its 95th percentile, B values each.

    About 1 is just noticeable between large patches side by side; a fine pattern is seen less than its figure says.
    sRGB under D65, 2° observer (`lab`). Raises `AntiPureError` for pictures of different sizes. Source: CIE 142-2001;
    Sharma, Wu, Dalal, Color Research & Application 30(1), 2005.
    """
    a, b = _pair(reference, picture)
    means, high = [], []
    for one, other in zip(a, b, strict=True):
        chunks = (x.flatten(1).T.split(_PIXELS) for x in (one, other))
        found = torch.cat([delta_e_2000(lab(x), lab(y)) for x, y in zip(*chunks, strict=True)])
        means.append(found.mean())
        high.append(_percentile(found, 0.95))
    return torch.stack(means), torch.stack(high)


def seen_rms(reference: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
    """Root mean square differences after an eye-like blur, luma and chroma, in 8-bit levels: B values each.

    The difference is taken to Y, Cb and Cr (BT.601 as in JPEG, full range), blurred by Gaussians of `LUMA_BLUR` and
    `CHROMA_BLUR` pixels (borders repeated) and averaged: luma = sqrt(mean Y²), chroma = sqrt(mean Cb² + mean Cr²). 1.2
    pixels at 60 pixels per degree of sight is the narrow luminance Gaussian of S-CIELAB (spread .0283°, Zhang & Wandell
    1997), half contrast near 9 cycles per degree; colour is seen about half as sharply, for which S-CIELAB mixes
    wider Gaussians and this takes one of twice the width. Low frequencies pass in full: of those an eye sees less.
    Raises `AntiPureError` for pictures of different sizes.
    """
    a, b = _pair(reference, picture)
    difference = (b - a).double() * 255
    luma = torch.einsum("c,bchw->bhw", difference.new_tensor([0.299, 0.587, 0.114]), difference)[:, None]
    blue, red = difference[:, 2:], difference[:, :1]
    chroma = torch.cat([(blue - luma) / 1.772, (red - luma) / 1.402], 1)
    luma, chroma = gaussian_blur(luma, LUMA_BLUR), gaussian_blur(chroma, CHROMA_BLUR)
    return luma.square().mean((1, 2, 3)).sqrt(), chroma.square().sum(1).mean((1, 2)).sqrt()


def lab(colours: Tensor) -> Tensor:
    """CIELAB (L* 0..100, a*, b*) of sRGB colours, …×3 in 0..1; D65, 2° observer. Float64. Source: IEC 61966-2-1."""
    rgb = colours.double()
    linear = torch.where(rgb > 0.04045, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    matrix = rgb.new_tensor(
        [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
    )
    xyz = linear @ matrix.T / rgb.new_tensor([0.95047, 1.0, 1.08883])
    limit = (6 / 29) ** 3
    x, y, z = torch.where(xyz > limit, xyz.clamp(min=limit) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29).unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def delta_e_2000(first: Tensor, second: Tensor) -> Tensor:
    """CIEDE2000 of CIELAB colours, …×3 each, with all weights 1. Symbols as in Sharma et al. 2005, eqs. 2-22."""
    l1, a1, b1 = first.double().unbind(-1)
    l2, a2, b2 = second.double().unbind(-1)
    mean_c = (torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2
    g = 0.5 * (1 - _grey(mean_c))
    a1, a2 = (1 + g) * a1, (1 + g) * a2
    c1, c2 = torch.hypot(a1, b1), torch.hypot(a2, b2)
    h1, h2 = torch.atan2(b1, a1) % (2 * math.pi), torch.atan2(b2, a2) % (2 * math.pi)
    colourless = c1 * c2 == 0
    # The shorter way around the circle of hues.
    dh = (h2 - h1 + math.pi) % (2 * math.pi) - math.pi
    # Exactly opposite hues: +180° as the source has it for h2 - h1 = 180°, the remainder above gives -180°.
    dh = torch.where(h2 - h1 == math.pi, -dh, dh)
    dh = torch.where(colourless, torch.zeros_like(dh), dh)
    dl, dc = l2 - l1, c2 - c1
    dhue = 2 * (c1 * c2).sqrt() * (dh / 2).sin()

    ml, mc = (l1 + l2) / 2, (c1 + c2) / 2
    far = (h1 - h2).abs() > math.pi
    mh = (h1 + h2) / 2
    mh = torch.where(far, torch.where(h1 + h2 < 2 * math.pi, mh + math.pi, mh - math.pi), mh)
    mh = torch.where(colourless, h1 + h2, mh)

    def cosine(times: float, degrees: float) -> Tensor:
        return (times * mh + math.radians(degrees)).cos()

    t = 1 - 0.17 * cosine(1, -30) + 0.24 * cosine(2, 0) + 0.32 * cosine(3, 6) - 0.20 * cosine(4, -63)
    rotation = math.radians(30) * (-(((mh * (180 / math.pi) - 275) / 25) ** 2)).exp()
    rt = -2 * _grey(mc) * (2 * rotation).sin()
    sl = 1 + 0.015 * (ml - 50) ** 2 / (20 + (ml - 50) ** 2).sqrt()
    sc, sh = 1 + 0.045 * mc, 1 + 0.015 * mc * t
    lightness, c, h = dl / sl, dc / sc, dhue / sh
    return (lightness**2 + c**2 + h**2 + rt * c * h).clamp(min=0).sqrt()


def _grey(chroma: Tensor) -> Tensor:
    """sqrt(C^7 / (C^7 + 25^7)): 0 for grey, 1 for vivid colours."""
    power = chroma**7
    return (power / (power + 25.0**7)).sqrt()


def _percentile(values: Tensor, share: float) -> Tensor:
    """Linear between the neighbours, as numpy's; torch's own ends at 16 million values."""
    place = share * (len(values) - 1)
    low = math.floor(place)
    ends = [values.kthvalue(k + 1).values for k in (low, min(low + 1, len(values) - 1))]
    return torch.lerp(ends[0], ends[1], place - low)


def _pair(reference: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
    if reference.shape != picture.shape:
        raise AntiPureError(
            f"The pictures differ in size, {both_sizes(reference.shape, picture.shape)}: compare equal ones."
        )
    return round_8bit(reference), round_8bit(picture)
