"""Metrics against skimage, scipy and plain sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from antipure.methods.errors import AntiPureError
from antipure.methods.metrics.image import (
    band_energy,
    detail_ratio,
    error_map,
    linf_levels,
    psnr,
    radial_spectrum,
    ssim,
    structural_distortion,
)
from antipure.methods.pictures import round_8bit
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

FLAT = 5e-4  # what float32 costs SSIM in flat, bright areas

PAIRWISE = {
    "psnr": psnr,
    "linf": linf_levels,
    "ssim": ssim,
    "structural distortion": structural_distortion,
    "detail ratio": detail_ratio,
    "error map": error_map,
}


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(height: int, width: int, seed: int = 0, batch: int = 1) -> torch.Tensor:
    return round_8bit(torch.rand(batch, 3, height, width, generator=stream(seed)))


def disturbed(x: torch.Tensor, levels: float, seed: int = 1) -> torch.Tensor:
    return round_8bit(x + levels / 255 * torch.randn(x.shape, generator=stream(seed)))


def array(x: torch.Tensor) -> np.ndarray:
    """1×3×H×W to H×W×3 in float64."""
    return x[0].permute(1, 2, 0).double().numpy()


@pytest.fixture
def portrait(face) -> torch.Tensor:
    """96×128, not square."""
    return face[..., :96, :]


@pytest.mark.parametrize("levels", [1, 4, 20])
def test_psnr_is_skimages(portrait, levels):
    other = disturbed(portrait, levels)
    expected = peak_signal_noise_ratio(array(portrait), array(other), data_range=1)
    assert psnr(portrait, other).item() == pytest.approx(expected, abs=1e-3)


def test_psnr_of_equal_pictures_is_infinite(portrait):
    assert psnr(portrait, portrait).item() == math.inf


def test_psnr_of_a_shift_by_8_levels_is_30_1_dB():
    x = torch.full((1, 3, 9, 9), 100 / 255)
    assert psnr(x, x + 8 / 255).item() == pytest.approx(20 * math.log10(255 / 8), abs=1e-3)


@pytest.mark.parametrize("levels", [1, 4, 20])
def test_ssim_is_skimages(portrait, levels):
    """skimage averages the interior only, torchmetrics mirrors the border and averages all: 0.01 of tolerance."""
    other = disturbed(portrait, levels)
    expected = structural_similarity(
        array(portrait),
        array(other),
        channel_axis=-1,
        data_range=1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert expected < 0.999
    assert ssim(portrait, other).item() == pytest.approx(expected, abs=0.01)


def slow_contrast_structure(a: np.ndarray, b: np.ndarray) -> float:
    """Mean of (2 s_ab + C2) / (s_aa + s_bb + C2) over pixels whose 11×11 window lies inside the picture."""
    terms = []
    for channel in range(3):
        x, y = a[..., channel], b[..., channel]

        def blur(z):
            return gaussian_filter(z, 1.5, truncate=3.5)  # radius 5: 11×11

        mx, my = blur(x), blur(y)
        covariance = blur(x * y) - mx * my
        variances = blur(x * x) - mx**2 + blur(y * y) - my**2
        terms.append(((2 * covariance + 0.03**2) / (variances + 0.03**2))[5:-5, 5:-5])
    return float(np.mean(terms))


@pytest.mark.parametrize("levels", [1, 4, 20])
@pytest.mark.parametrize(("height", "width"), [(96, 128), (11, 40), (11, 11)])
def test_structural_distortion_is_1_minus_the_contrast_structure_term(portrait, levels, height, width):
    x = portrait[..., :height, :width]
    other = disturbed(x, levels)
    expected = 1 - slow_contrast_structure(array(x), array(other))
    assert structural_distortion(x, other).item() == pytest.approx(expected, abs=1e-4)


def test_structural_distortion_ignores_a_shift_and_grows_with_noise(portrait):
    x = round_8bit(portrait * 0.8 + 0.1)  # so that nothing clips
    assert abs(structural_distortion(x, x).item()) < 1e-6
    assert abs(structural_distortion(x, x + 8 / 255).item()) < 1e-5
    assert 1 - ssim(x, x + 8 / 255).item() > 1e-4, "while SSIM sees the shift"
    series = [structural_distortion(x, disturbed(x, levels)).item() for levels in (1, 2, 4, 8, 16, 32)]
    assert series == sorted(series)
    assert series[0] > 1e-3


def slow_high_energy(x: np.ndarray) -> float:
    energies = []
    for channel in range(3):
        for y in range(0, x.shape[0] - 7, 8):
            for left in range(0, x.shape[1] - 7, 8):
                coefficients = dctn(x[y : y + 8, left : left + 8, channel], norm="ortho")
                coefficients[:4, :4] = 0
                energies.append((coefficients**2).sum() / 48)
    return float(np.mean(energies))


@pytest.mark.parametrize(("height", "width"), [(96, 128), (8, 8), (19, 37)])
def test_detail_ratio_is_a_ratio_of_scipys_dct_energies(portrait, height, width):
    x = portrait[..., :height, :width]
    for other in (disturbed(x, 8), round_8bit(torch.nn.functional.avg_pool2d(x, 3, 1, 1))):
        floor = 1e-8
        expected = (slow_high_energy(array(other)) + floor) / (slow_high_energy(array(x)) + floor)
        assert detail_ratio(x, other).item() == pytest.approx(expected, rel=1e-3)
        assert detail_ratio(other, x).item() == pytest.approx(1 / expected, rel=1e-3)


def test_detail_ratio_says_which_way_detail_went(portrait):
    blurred = torch.nn.functional.avg_pool2d(portrait, 3, 1, 1, count_include_pad=False)
    assert detail_ratio(portrait, portrait).item() == 1
    assert detail_ratio(portrait, blurred).item() < 0.7
    assert detail_ratio(portrait, disturbed(portrait, 16)).item() > 1.2
    flat = torch.full((1, 3, 16, 16), 0.5)
    assert detail_ratio(flat, flat).item() == 1
    assert detail_ratio(flat, flat + 0.1).item() == pytest.approx(1, abs=1e-3)


def test_linf_is_the_largest_difference_in_levels():
    x = picture(9, 12, batch=2)
    other = x.clone()
    other[0, 1, 3, 4] = round_8bit(x[0, 1, 3, 4] + (-0.5 if x[0, 1, 3, 4] > 0.5 else 0.5))
    other[1, 2, 8, 11] = (x[1, 2, 8, 11] * 255 - 1).abs() / 255
    expected = np.abs(np.rint(x.numpy() * 255) - np.rint(other.numpy() * 255)).max((1, 2, 3))
    assert expected[0] > 100
    assert linf_levels(x, other).tolist() == expected.tolist()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 9), (12, 7)])
def test_error_map_is_the_root_mean_square_over_a_window(height, width):
    a, b = picture(height, width), picture(height, width, 1)
    squares = ((array(a) - array(b)) * 255) ** 2
    expected = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            expected[i, j] = math.sqrt(squares[max(0, i - 2) : i + 3, max(0, j - 2) : j + 3].mean())
    np.testing.assert_allclose(error_map(a, b)[0, 0].numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("name", PAIRWISE)
def test_both_pictures_are_rounded_to_8_bits_first(name):
    x, other = picture(24, 24), picture(24, 24, 1)
    jitter = (torch.rand(x.shape, generator=stream(2)) - 0.5) * 0.9 / 255
    metric = PAIRWISE[name]
    assert torch.equal(metric(x + jitter, other - jitter), metric(x, other))
    assert torch.equal(metric(x, x + jitter), metric(x, x))


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize(("height", "width"), [(24, 31), (5, 7), (1, 1), (1, 200)])
def test_a_batch_gives_each_pictures_own_value(name, height, width):
    x, other = picture(height, width, batch=3), picture(height, width, 1, batch=3)
    together = PAIRWISE[name](x, other)
    assert len(together) == 3
    assert torch.isfinite(together).all()
    for i in range(3):
        alone = PAIRWISE[name](x[i : i + 1], other[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-6)
    if (height, width) != (1, 1):
        assert not torch.allclose(together[0], together[1], rtol=1e-4)


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7), (1, 40)])
def test_pictures_smaller_than_the_windows_are_measured(name, height, width):
    x = picture(height, width)
    perfect = {"psnr": math.inf, "linf": 0, "ssim": 1, "structural distortion": 0, "detail ratio": 1, "error map": 0}
    tolerance = FLAT if 1 in (height, width) else 1e-5
    for value in PAIRWISE[name](x, x).flatten().tolist():
        assert value == pytest.approx(perfect[name], abs=tolerance)


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_flat_pictures_have_perfect_structure(value):
    """Up to float32: variances are differences of nearly equal numbers there (torchmetrics; float64 is 13× slower)."""
    x = torch.full((1, 3, 24, 24), value)
    assert ssim(x, x).item() == pytest.approx(1, abs=FLAT)
    assert structural_distortion(x, x).item() == pytest.approx(0, abs=FLAT)


@pytest.mark.parametrize("name", PAIRWISE)
def test_pictures_of_different_sizes_are_refused(name):
    for shape in ((1, 3, 8, 9), (2, 3, 8, 8)):
        with pytest.raises(AntiPureError, match="differ in size"):
            PAIRWISE[name](picture(8, 8), torch.rand(shape))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 50), (1, 7), (1, 1)])
def test_band_shares_sum_to_1_and_the_bands_share_out_the_energy(height, width):
    delta = torch.randn(2, 3, height, width, generator=stream())
    shares = band_energy(delta)
    assert list(shares) == ["low", "mid", "high"]
    torch.testing.assert_close(sum(shares.values()), torch.ones(2, dtype=torch.float64))
    power = np.abs(np.fft.fft2(delta.double().numpy())) ** 2
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    for name, (low, high) in {"low": (0, 1 / 16), "mid": (1 / 16, 1 / 4), "high": (1 / 4, 1)}.items():
        part = power * ((radius >= low) & (radius < high))
        np.testing.assert_allclose(shares[name].numpy(), part.sum((1, 2, 3)) / power.sum((1, 2, 3)), rtol=1e-9)


def wave(cycles_down: float, cycles_across: float, size: int = 64) -> torch.Tensor:
    """A cosine of that many cycles per picture in each direction."""
    y, x = torch.meshgrid(torch.arange(size) / size, torch.arange(size) / size, indexing="ij")
    return torch.cos(2 * math.pi * (cycles_down * y + cycles_across * x + 0.1)).expand(1, 3, size, size)


@pytest.mark.parametrize(
    ("down", "across", "band"),
    [(0, 3, "low"), (0, 5, "mid"), (8, 8, "mid"), (0, 17, "high"), (12, 12, "high"), (32, 32, "high")],
)
def test_a_pure_wave_lies_in_its_band(down, across, band):
    assert band_energy(wave(down, across))[band].item() == pytest.approx(1, abs=1e-9)


def test_a_zero_perturbation_has_no_band():
    assert all(v.item() == 0 for v in band_energy(torch.zeros(1, 3, 8, 8)).values())


@pytest.mark.parametrize(("down", "across"), [(0, 0), (0, 5), (7, 0), (3, 4), (20, 11), (0, 31)])
def test_a_pure_wave_lands_in_its_bin_of_the_radial_spectrum(down, across):
    spectrum = radial_spectrum(wave(down, across), bins=32)
    assert spectrum.shape == (1, 32)
    expected = int(math.hypot(down, across) / 64 / 0.5 * 32 + 1e-9)
    assert spectrum.argmax().item() == expected
    others = torch.cat([spectrum[0, :expected], spectrum[0, expected + 1 :]])
    assert others.max() < 1e-9 * spectrum.max()  # the cosine is in float32


def test_the_radial_spectrum_of_white_noise_is_flat():
    """Parseval: three channels of unit variance over N pixels give 3/N per frequency."""
    spectrum = radial_spectrum(torch.randn(4, 3, 128, 128, generator=stream()), bins=16)
    expected = 3 / 128**2
    assert (spectrum[:, 2:] / expected - 1).abs().max() < 0.25
    assert (spectrum[:, 2:].mean() / expected - 1).abs() < 0.02


def test_radial_bins_are_means_over_their_frequencies():
    x = torch.randn(1, 3, 24, 18, dtype=torch.float64, generator=stream())
    power = (np.abs(np.fft.fft2(x.numpy())) ** 2).sum((0, 1)) / (24 * 18) ** 2
    radius = np.hypot(np.fft.fftfreq(24)[:, None], np.fft.fftfreq(18)[None, :])
    expected = [power[(radius >= i / 8) & (radius < (i + 1) / 8)].mean() for i in range(4)]
    np.testing.assert_allclose(radial_spectrum(x, bins=4)[0].numpy(), expected, rtol=1e-9)
