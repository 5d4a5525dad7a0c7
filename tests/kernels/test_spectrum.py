"""No Fourier bin above its share of the energy: against numpy's full transform, on stripes, noise and odd sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from antipure.kernels.spectrum import limit_peaks

SIZES = [(8, 8), (7, 9), (16, 5), (5, 16), (64, 48)]


def shares(x: torch.Tensor) -> np.ndarray:
    """Energy of every bin together with its conjugate over all of it, from the full transform of each channel."""
    power = (np.abs(np.fft.fft2(x.double().numpy())) ** 2).sum(1)[0]
    h, w = power.shape
    mirrored = power[-np.arange(h)[:, None] % h, -np.arange(w)[None] % w]
    own = (2 * np.arange(h)[:, None] % h == 0) & (2 * np.arange(w)[None] % w == 0)
    return np.where(own, power, power + mirrored) / power.sum()


def draw(h: int, w: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 3, h, w, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 1), (1, 0), (2, 2)])
def test_a_peak_is_brought_down_and_the_rest_stays(size, row, column):
    h, w = size
    y, x = torch.arange(h)[:, None], torch.arange(w)[None]
    wave = torch.cos(2 * torch.pi * (y * row / h + x * column / w))
    noisy = draw(h, w) + 20 * wave
    before, energy = shares(noisy), float(noisy.square().sum())
    found = limit_peaks(noisy, 0.2)
    assert found.shape == noisy.shape
    after = shares(found) * float(found.square().sum()) / energy  # of the energy that was there before
    assert before.max() > 0.5
    assert after.max() == pytest.approx(0.2, rel=1e-4)
    untouched = before <= 0.2
    np.testing.assert_allclose(after[untouched], before[untouched], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("size", SIZES)
def test_what_has_no_peak_stays_as_it_is(size):
    x = draw(*size)
    torch.testing.assert_close(limit_peaks(x, 1.0), x, atol=1e-5, rtol=1e-5)


def test_pictures_of_a_batch_do_not_influence_each_other():
    a, b = draw(12, 10), 5 * torch.ones(1, 3, 12, 10) + draw(12, 10, seed=1)
    together = limit_peaks(torch.cat([a, b]), 0.05)
    torch.testing.assert_close(together, torch.cat([limit_peaks(a, 0.05), limit_peaks(b, 0.05)]))


def test_stripes_of_one_pixel_in_a_constant_picture_leave_nothing_else():
    stripes = torch.tensor([1.0, -1.0]).repeat(8).expand(1, 3, 16, 16)
    torch.testing.assert_close(limit_peaks(stripes, 0.01), 0.1 * stripes)
