"""Fourier bins of a picture-sized tensor: how much of the energy one of them may hold."""

from __future__ import annotations

import torch
from torch import Tensor


def limit_peaks(x: Tensor, share: float) -> Tensor:
    """x with no Fourier bin above `share` of the energy it had: a stripe or a lattice is spread or taken out.

    x: B×C×H×W, real; every picture of the batch by itself, energy summed over its channels, which keep their ratio
    within a bin. A bin and its conjugate are one, the constant is a bin like others. share: in 0..1, 0 excluded.
    """
    height, width = x.shape[-2:]
    spectrum = torch.fft.rfft2(x.float())
    energy = spectrum.abs().square().sum(1, keepdim=True)
    # The half that rfft2 leaves out is the conjugate of what it keeps, but for columns that are their own.
    twice = torch.full((width // 2 + 1,), 2.0, device=x.device)
    twice[0] = 1
    if width % 2 == 0:
        twice[-1] = 1
    total = (energy * twice).sum((-2, -1), keepdim=True)
    # In these columns both members of a pair are kept; each may hold half of what a pair may.
    rows = torch.arange(height, device=x.device)
    alone = (rows * 2) % height == 0
    paired = torch.where((twice == 2)[None] | ~alone[:, None], 0.5, 1.0)
    most = share * total * paired
    scale = (most / energy.clamp(min=torch.finfo(energy.dtype).tiny)).sqrt().clamp(max=1)
    return torch.fft.irfft2(spectrum * scale, s=(height, width)).to(x)
