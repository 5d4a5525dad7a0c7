"""What eyes see, against scikit-image, scipy and Pillow, and on patterns whose figures are known.

| measure | set against | tolerance |
|---|---|---|
| CIELAB | scikit-image's `rgb2lab`, whose constants are rounded (.008856) | 1e-3 |
| CIEDE2000 of colours | the 34 pairs that Sharma, Wu and Dalal published; scikit-image | 5e-5 (their digits); 1e-9 |
| CIEDE2000 of pictures | scikit-image's `rgb2lab`, `deltaE_ciede2000`, numpy's percentile | 1e-4 |
| peak share | numpy's full FFT, bin by bin | 1e-9 |
| seen RMS | scikit-image's `rgb2ycbcr` weights, scipy's Gaussian filter | 2e-5, relative |
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.controls import apply_control
from antipure.methods.errors import AntiPureError
from antipure.methods.metrics import visibility
from antipure.methods.metrics.visibility import ciede2000, delta_e_2000, lab, peak_share, seen_rms
from antipure.methods.pictures import round_8bit
from scipy.ndimage import gaussian_filter
from skimage.color import deltaE_ciede2000, rgb2lab

# L*, a*, b* of two colours and their difference: table 1 of Sharma, Wu, Dalal 2005.
SHARMA = """
50 2.6772 -79.7751 50 0 -82.7485 2.0425
50 3.1571 -77.2803 50 0 -82.7485 2.8615
50 2.8361 -74.02 50 0 -82.7485 3.4412
50 -1.3802 -84.2814 50 0 -82.7485 1
50 -1.1848 -84.8006 50 0 -82.7485 1
50 -0.9009 -85.5211 50 0 -82.7485 1
50 0 0 50 -1 2 2.3669
50 -1 2 50 0 0 2.3669
50 2.49 -0.001 50 -2.49 0.0009 7.1792
50 2.49 -0.001 50 -2.49 0.001 7.1792
50 2.49 -0.001 50 -2.49 0.0011 7.2195
50 2.49 -0.001 50 -2.49 0.0012 7.2195
50 -0.001 2.49 50 0.0009 -2.49 4.8045
50 -0.001 2.49 50 0.001 -2.49 4.8045
50 -0.001 2.49 50 0.0011 -2.49 4.7461
50 2.5 0 50 0 -2.5 4.3065
50 2.5 0 73 25 -18 27.1492
50 2.5 0 61 -5 29 22.8977
50 2.5 0 56 -27 -3 31.903
50 2.5 0 58 24 15 19.4535
50 2.5 0 50 3.1736 0.5854 1
50 2.5 0 50 3.2972 0 1
50 2.5 0 50 1.8634 0.5757 1
50 2.5 0 50 3.2592 0.335 1
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.263
61.2901 3.7196 -5.3901 61.4292 2.248 -4.962 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.694 23.0331 14.973 -42.5619 2.0373
36.4612 47.858 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.441 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.135 0.9033 -0.0636 -0.5514 0.9082
"""


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(height: int, width: int, seed: int = 0, batch: int = 1) -> torch.Tensor:
    return round_8bit(torch.rand(batch, 3, height, width, generator=stream(seed)))


def array(x: torch.Tensor) -> np.ndarray:
    """1×3×H×W to H×W×3 in float64, k/255 exactly."""
    return np.rint(x[0].permute(1, 2, 0).double().numpy() * 255) / 255


@pytest.fixture
def pairs(face) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A face and a random picture, each with something near to it and something far from it."""
    found = []
    for one in (face[..., 5:100, 3:], picture(33, 40)):
        noise = torch.randn(one.shape, generator=stream(1))
        found += [(one, round_8bit(one + 3 / 255 * noise)), (one, one.flip(-1))]
    return found


# Peak share --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(16, 24), (15, 24), (16, 23), (7, 9), (1, 8), (1, 1)])
def test_peak_share_is_the_largest_bin_of_numpys_fft(height, width):
    delta = torch.randn(2, 3, height, width, generator=stream())
    for one, found in zip(delta.double().numpy(), peak_share(delta).tolist(), strict=True):
        power = (np.abs(np.fft.fft2(one)) ** 2).sum(0)
        waves = {}
        for y in range(height):
            for x in range(width):
                wave = min((y, x), (-y % height, -x % width))
                waves[wave] = waves.get(wave, 0) + power[y, x]
        assert found == pytest.approx(max(waves.values()) / power.sum(), abs=1e-9)


@pytest.mark.parametrize(
    ("down", "across"), [(0, 24), (16, 0), (16, 24), (0, 5), (3, 0), (3, 7), (-3, 7), (0, 0)], ids=str
)
@pytest.mark.parametrize("colour", [(1.0, 1.0, 1.0), (1.0, -0.5, 0.0)])
def test_a_stripe_and_a_shift_have_all_their_energy_in_one_bin(down, across, colour):
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(48.0), indexing="ij")
    wave = torch.cos(2 * math.pi * (down * y / 32 + across * x / 48) + 0.7)
    delta = torch.tensor(colour)[None, :, None, None] * wave
    assert peak_share(delta).item() == pytest.approx(1, abs=1e-6)
    assert peak_share(1e-3 * delta).item() == pytest.approx(1, abs=1e-6)


def test_stripes_in_half_of_the_picture_are_stripes_still():
    delta = torch.zeros(1, 3, 64, 64)
    delta[..., :32, ::2], delta[..., :32, 1::2] = 8, -8
    assert peak_share(delta).item() == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("side", [64, 256])
def test_noise_has_about_the_logarithm_of_its_pixels(side):
    """One channel: the energies of N/2 waves are exponential, their largest has log(N/2) times the mean."""
    shares = peak_share(torch.randn(6, 1, side, side, generator=stream()))
    expected = math.log(side * side / 2) / (side * side / 2)
    assert shares.mean().item() == pytest.approx(expected, rel=0.35)
    clean = torch.full((1, 3, side, side), 0.5)
    signs = apply_control("random", clean, AttackSettings(levels=8)) - clean
    assert peak_share(signs).item() < expected < visibility.STRIPE / 2


def test_no_perturbation_has_no_peak():
    assert peak_share(torch.zeros(2, 3, 8, 9)).tolist() == [0, 0]


# CIEDE2000 ---------------------------------------------------------------------------------------------------


def sharma() -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    rows = torch.tensor([[float(v) for v in line.split()] for line in SHARMA.strip().split("\n")], dtype=torch.float64)
    return rows[:, :3], rows[:, 3:6], rows[:, 6].tolist()


def test_the_published_pairs():
    first, second, expected = sharma()
    assert len(expected) == 34
    assert delta_e_2000(first, second).tolist() == pytest.approx(expected, abs=5e-5)
    assert delta_e_2000(second, first).tolist() == pytest.approx(expected, abs=5e-5)


def test_colours_all_over_the_space_are_scikit_images():
    drawn = torch.rand(2, 20_000, 3, dtype=torch.float64, generator=stream())
    first, second = drawn * torch.tensor([100.0, 200.0, 200.0]) - torch.tensor([0.0, 100.0, 100.0])
    second = torch.cat([second[:10_000], first[10_000:] + 0.1 * second[10_000:]])  # near ones, too
    expected = deltaE_ciede2000(first.numpy(), second.numpy())
    np.testing.assert_allclose(delta_e_2000(first, second).numpy(), expected, atol=1e-9)


def test_lab_of_every_grey_and_of_random_colours_is_scikit_images():
    greys = (torch.arange(256, dtype=torch.float64) / 255)[:, None].expand(-1, 3)
    colours = torch.cat([greys, torch.rand(500, 3, dtype=torch.float64, generator=stream())])
    np.testing.assert_allclose(lab(colours).numpy(), rgb2lab(colours.numpy()), atol=1e-3)


def test_pictures_are_scikit_images(pairs):
    for one, other in pairs:
        differences = deltaE_ciede2000(rgb2lab(array(one)), rgb2lab(array(other)))
        mean, high = ciede2000(one, other)
        assert mean.item() == pytest.approx(differences.mean(), abs=1e-4)
        assert high.item() == pytest.approx(np.percentile(differences, 95), abs=1e-4)
        assert 0.5 < mean.item() < high.item()


def test_large_pictures_are_compared_in_pieces(monkeypatch, pairs):
    whole = ciede2000(*pairs[0])
    monkeypatch.setattr(visibility, "_PIXELS", 1000)
    torch.testing.assert_close(ciede2000(*pairs[0]), whole, rtol=1e-12, atol=1e-12)


# Seen --------------------------------------------------------------------------------------------------------


def slow_seen(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """JPEG's conversion (JFIF 1.02), the blurs as documented."""
    red, green, blue = np.moveaxis((b - a) * 255, 2, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    cb = -0.168736 * red - 0.331264 * green + 0.5 * blue
    cr = 0.5 * red - 0.418688 * green - 0.081312 * blue
    luma = gaussian_filter(luma, 1.2, mode="nearest")
    cb, cr = (gaussian_filter(x, 2.4, mode="nearest") for x in (cb, cr))
    return math.sqrt((luma**2).mean()), math.sqrt((cb**2 + cr**2).mean())


def test_what_is_seen_is_scipys_blur_of_jpegs_channels(pairs):
    for one, other in pairs:
        luma, chroma = seen_rms(one, other)
        expected = slow_seen(array(one), array(other))
        assert (luma.item(), chroma.item()) == pytest.approx(expected, rel=2e-5)
        assert luma.item() > 0.1


def test_a_shift_is_seen_in_full_and_stripes_of_one_pixel_hardly():
    grey = torch.full((1, 3, 160, 160), 100 / 255)
    luma, chroma = seen_rms(grey, grey + 8 / 255)
    assert (luma.item(), chroma.item()) == pytest.approx((8, 0), abs=1e-4)
    stripes = grey.clone()
    stripes[..., ::2] += 8 / 255
    stripes[..., 1::2] -= 8 / 255
    assert seen_rms(grey, stripes)[0].item() < 0.6
    assert seen_rms(grey, torch.cat([grey[:, :1] + 8 / 255, grey[:, 1:]], 1))[1].item() > 4


def test_random_signs_are_seen_as_far_as_the_blur_leaves_them():
    """White noise through a Gaussian of s pixels keeps 1 / (2 s sqrt(pi)): 1.3 and .9 of 8 levels."""
    clean = torch.full((1, 3, 400, 400), 0.5)
    luma, chroma = seen_rms(clean, apply_control("random", clean, AttackSettings(levels=8)))
    weights = np.array([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])
    white = 8 * np.sqrt((weights**2).sum(1))
    assert luma.item() == pytest.approx(white[0] / (2.4 * math.sqrt(math.pi)), rel=0.05)
    assert chroma.item() == pytest.approx(np.hypot(*white[1:]) / (4.8 * math.sqrt(math.pi)), rel=0.05)


# All of them -------------------------------------------------------------------------------------------------

MEASURES = {"ciede2000": ciede2000, "seen": seen_rms}
each_measure = pytest.mark.parametrize("name", MEASURES)


@each_measure
def test_pictures_are_rounded_and_equal_ones_do_not_differ(name):
    x, other = picture(24, 25), picture(24, 25, 1)
    jitter = (torch.rand(x.shape, generator=stream(2)) - 0.5) * 0.9 / 255
    measure = MEASURES[name]
    assert all(map(torch.equal, measure(x + jitter, other - jitter), measure(x, other)))
    assert [value.item() for value in measure(x, x)] == [0, 0]


@each_measure
@pytest.mark.parametrize(("height", "width"), [(24, 31), (2, 3), (1, 1)])
def test_a_batch_gives_each_pictures_own_values(name, height, width):
    x, other = picture(height, width, batch=3), picture(height, width, 1, batch=3)
    together = MEASURES[name](x, other)
    alone = [MEASURES[name](x[i : i + 1], other[i : i + 1]) for i in range(3)]
    for place in range(2):
        assert together[place].shape == (3,)
        torch.testing.assert_close(together[place], torch.cat([values[place] for values in alone]))


@each_measure
def test_pictures_of_different_sizes_are_refused(name):
    with pytest.raises(AntiPureError, match="differ in size"):
        MEASURES[name](picture(8, 8), picture(8, 9))
