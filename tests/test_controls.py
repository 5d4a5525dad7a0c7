"""Controls: same budget and mask as a protection, no structure of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.controls import BLOCK, CONTROLS, apply_control, smooth_equal, smooth_random, spectrum_matched
from antipure.methods.errors import AntiPureError
from antipure.methods.metrics.image import psnr, radial_spectrum
from antipure.methods.pictures import round_8bit
from scipy.ndimage import gaussian_filter


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(height: int, width: int, seed: int = 0, batch: int = 1) -> torch.Tensor:
    return round_8bit(torch.rand(batch, 3, height, width, generator=stream(seed)))


def levels_of(x: torch.Tensor) -> np.ndarray:
    return np.rint(x.double().numpy() * 255)


def grey(height: int, width: int) -> torch.Tensor:
    return torch.full((1, 3, height, width), 128 / 255)


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize("levels", [1, 6.4, 8, 255])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 30), (33, 17)])
def test_controls_stay_in_the_ball_and_use_it(name, levels, height, width):
    x = picture(height, width, batch=2)
    result = apply_control(name, x, AttackSettings(levels=levels))
    assert result.shape == x.shape
    assert torch.equal(result, round_8bit(result))
    change = np.abs(levels_of(result) - levels_of(x))
    room = np.maximum(levels_of(x), 255 - levels_of(x))
    assert (change <= levels).all()
    if name == "smooth":  # it stops where the picture is blurred; a single pixel is
        assert (
            change.max() == int(levels) if levels < 255 and height * width > 1 else (change.max() > 0) == (height > 1)
        )
        return
    assert change.max() == min(int(levels), room.max()) or height == width == 1
    assert change.max() > 0


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_keep_to_the_mask(name):
    x = torch.rand(1, 3, 20, 40, generator=stream())  # not on the 8-bit grid
    mask = torch.zeros(1, 1, 20, 40)
    mask[..., 10:30] = 1
    mask[..., 30:] = 0.5
    result = apply_control(name, x, AttackSettings(levels=8, mask=mask))
    assert torch.equal(result[..., :10], x[..., :10])
    change = (result - x).abs() * 255
    assert change[..., 10:30].max() <= 8 + 1e-3
    assert change[..., 30:].max() <= 4 + 1e-3
    assert change[..., 10:30].max() > 7
    assert change[..., 30:].max() > 3


def test_random_signs_are_fair_and_independent_per_channel():
    delta = levels_of(apply_control("random", grey(64, 64), AttackSettings(keep_grey=False))) - 128
    assert set(np.unique(delta)) == {-8, 8}
    assert abs(delta.mean()) < 8 * 5 / np.sqrt(delta.size)
    assert abs(np.corrcoef(delta.reshape(3, -1)) - np.eye(3)).max() < 0.08
    assert abs(np.corrcoef(delta[..., 1:].ravel(), delta[..., :-1].ravel())[0, 1]) < 0.05


def test_a_shift_moves_the_whole_picture_away_from_the_nearer_border():
    dark, bright = torch.full((1, 3, 4, 5), 3 / 255), torch.full((1, 3, 4, 5), 252 / 255)
    assert set(levels_of(apply_control("shift", dark)).ravel()) == {11}
    assert set(levels_of(apply_control("shift", bright)).ravel()) == {244}


def test_blocks_are_16_pixels_wide_and_the_same_in_all_channels():
    assert BLOCK == 16
    delta = levels_of(apply_control("blocks", grey(70, 90)))[0] - 128
    assert set(np.unique(delta)) == {-8, 8}
    assert (delta == delta[:1]).all()
    for y in range(0, 70, 16):
        for x in range(0, 90, 16):
            assert len(np.unique(delta[:, y : y + 16, x : x + 16])) == 1
    assert len(np.unique(delta[0, ::16, ::16])) == 2


def test_smooth_is_the_blur_as_far_as_the_budget_reaches():
    x = picture(40, 50)
    blurred = gaussian_filter(x[0].double().numpy(), (0, 2, 2), mode="mirror", truncate=4)
    smooth = apply_control("smooth", x, AttackSettings(levels=8))[0].numpy()
    change = np.clip(blurred - x[0].numpy(), -8 / 255, 8 / 255)
    inner = np.s_[:, 10:-10, 10:-10]  # borders and the kernel's reach are the filter's own
    assert np.abs(smooth - (x[0].numpy() + change))[inner].max() <= 1.01 / 255
    assert np.abs(smooth - x[0].numpy()).max() <= 8 / 255 + 1e-6


@pytest.mark.parametrize("name", ["random", "blocks"])
def test_seeds_decide_and_each_picture_is_treated_as_if_alone(name):
    x = picture(40, 50, batch=3)
    together = apply_control(name, x, AttackSettings(seeds=[5, 6, 5]))
    for i, seed in enumerate((5, 6, 5)):
        assert torch.equal(together[i : i + 1], apply_control(name, x[i : i + 1], AttackSettings(seeds=seed)))
    assert torch.equal(
        apply_control(name, x, AttackSettings(seeds=5)), apply_control(name, x, AttackSettings(seeds=[5, 5, 5]))
    )
    assert not torch.equal(
        apply_control(name, x, AttackSettings(seeds=5)), apply_control(name, x, AttackSettings(seeds=6))
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": 0}, "levels is 0"),
        ({"levels": 300}, "levels is 300"),
        ({"mask": torch.ones(2, 1, 4, 4)}, "mask has shape"),
        ({"mask": torch.full((2, 1, 8, 8), 2.0)}, "outside 0..1"),
        ({"seeds": [1]}, "1 seeds for 2 pictures"),
        ({"seeds": [1, 2, 3]}, "3 seeds for 2 pictures"),
        ({"picture": torch.zeros(2, 8, 8, 3)}, "B×3×H×W"),
    ],
)
def test_impossible_requests_are_refused_with_a_sentence(arguments, message):
    with pytest.raises(AntiPureError, match=message):
        apply_control("random", arguments.pop("picture", picture(8, 8, batch=2)), AttackSettings(**arguments))


def smooth(height: int, width: int, cutoff: float, seed: int = 0) -> torch.Tensor:
    """Noise below a Gaussian cutoff (cycles per pixel), unit deviation."""
    noise = torch.randn(1, 3, height, width, generator=stream(seed))
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    x = torch.fft.irfft2(torch.fft.rfft2(noise) * torch.exp(-((radius / cutoff) ** 2)), s=(height, width))
    return x / x.std()


def perturbations(height: int, width: int) -> dict[str, torch.Tensor]:
    """In units of the budget. The first three leave the ball room; the signs fill its corners."""
    half = (torch.arange(width) < width // 2) * 1.0
    return {
        "soft": (smooth(height, width, 0.2) * 0.6).clamp(-1, 1),
        "anisotropic": (smooth(height, width, 0.25).roll(1, -1) + smooth(height, width, 0.25)).mul(0.35).clamp(-1, 1),
        "half of the picture": torch.randn(1, 3, height, width, generator=stream(1)).sign() * half,
        "random signs": torch.randn(1, 3, height, width, generator=stream(2)).sign(),
        "smooth signs": smooth(height, width, 0.2, 3).sign(),
    }


@pytest.mark.parametrize("kind", perturbations(8, 8))
@pytest.mark.parametrize("levels", [8, 16])
def test_spectrum_matched_noise_has_the_spectrum_and_not_the_structure(kind, levels):
    """Energy in total within 10 % and per band within 25 %, except for perturbations that fill the ball's corners:
    random phases cannot, and 20 to 30 % of the energy is lost."""
    clean = round_8bit(smooth(96, 128, 0.05, 9) * 0.1 + 0.5)
    protected = round_8bit(clean + perturbations(96, 128)[kind] * levels / 255)
    control = spectrum_matched(clean, protected, levels=levels)
    before, after = levels_of(protected) - levels_of(clean), levels_of(control) - levels_of(clean)
    assert torch.equal(control, round_8bit(control))
    assert np.abs(after).max() <= levels
    total = (after**2).sum() / (before**2).sum()
    spectra = [radial_spectrum(torch.from_numpy(x), bins=8)[0] for x in (before, after)]
    carries_energy = spectra[0] > 0.02 * spectra[0].max()
    assert carries_energy.sum() >= 4
    bands = (spectra[1] / spectra[0])[carries_energy]
    if kind.endswith("signs"):
        assert 0.7 < total <= 1
        assert bands.min() > 0.65
        assert bands.max() < 1.05
    else:
        assert abs(total - 1) < 0.1
        assert (bands - 1).abs().max() < 0.25
    assert abs(np.corrcoef(before.ravel(), after.ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("kind", ["soft", "half of the picture"])
def test_spectrum_matched_noise_has_the_amplitudes_frequency_by_frequency(kind):
    """Not only per band: amplitudes correlate over all frequencies, which a radially matched noise would not reach."""
    clean = torch.full((1, 3, 96, 128), 128 / 255)
    protected = round_8bit(clean + perturbations(96, 128)[kind] * 8 / 255)
    control = spectrum_matched(clean, protected, levels=8)
    a, b = (np.abs(np.fft.rfft2(levels_of(x) - 128)).ravel() for x in (protected, control))
    assert np.corrcoef(a, b)[0, 1] > 0.95


def test_spectrum_matched_noise_keeps_the_channels_correlated_as_they_were():
    clean = torch.full((1, 3, 96, 128), 128 / 255)
    grey_noise = perturbations(96, 128)["soft"][:, :1].expand(1, 3, 96, 128)
    protected = round_8bit(clean + grey_noise * 8 / 255)
    control = levels_of(spectrum_matched(clean, protected, levels=8))[0] - 128
    assert np.corrcoef(control.reshape(3, -1)).min() > 0.98


def test_spectrum_matched_noise_follows_its_seed_and_treats_pictures_alone():
    clean = picture(24, 31, batch=2)
    protected = apply_control("random", clean)
    first = spectrum_matched(clean, protected, levels=8, seed=1)
    assert torch.equal(first, spectrum_matched(clean, protected, levels=8, seed=1))
    assert not torch.equal(first, spectrum_matched(clean, protected, levels=8, seed=2))
    assert torch.equal(first[1:], spectrum_matched(clean[1:], protected[1:], levels=8, seed=1))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (5, 1), (7, 200), (33, 20)])
def test_spectrum_matched_noise_works_at_any_size_inside_the_ball(height, width):
    clean = picture(height, width)
    control = spectrum_matched(clean, apply_control("random", clean, AttackSettings(levels=6.4)), levels=6.4)
    assert control.shape == clean.shape
    assert np.abs(levels_of(control) - levels_of(clean)).max() <= 6


def test_an_unprotected_picture_has_itself_as_its_control():
    clean = picture(12, 12)
    assert torch.equal(spectrum_matched(clean, clean, levels=8), clean)


# Beside a blur ---------------------------------------------------------------------------------------------------


def test_smooth_random_is_scipys_blur_and_signs_inside_the_budget(face):
    settings = AttackSettings(levels=6, seeds=3)
    result = levels_of(smooth_random(face, settings))
    clean = levels_of(face)
    grey = torch.full_like(face, 128 / 255)
    signs = levels_of(apply_control("random", grey, replace(settings, keep_grey=False))) - 128
    blurred = np.stack([gaussian_filter(channel, 2, mode="nearest") for channel in clean[0]])[None] - clean
    expected = np.rint((clean + np.clip(blurred + signs, -6, 6)).clip(0, 255))
    assert (np.abs(result - expected) <= 1).all()
    assert (result != expected).mean() < 1e-3
    assert np.abs(result - clean).max() == 6


@pytest.mark.parametrize("levels", [2, 8, 16])
def test_smooth_equal_costs_what_a_protection_costs(face, levels):
    pair = torch.cat([face, face.flip(-1)])
    like = apply_control("random", pair, AttackSettings(levels=levels))
    like[1] = apply_control("random", pair[1:], AttackSettings(levels=levels / 2))[0]
    result = smooth_equal(pair, like)
    assert torch.equal(result, round_8bit(result))
    np.testing.assert_allclose(psnr(pair, result).numpy(), psnr(pair, like).numpy(), atol=0.03)
    radius = [radial_spectrum(x, 16)[:, 10:].mean().item() for x in (pair, result)]
    assert radius[1] < radius[0], "detail goes away"
    assert torch.equal(smooth_equal(pair[:1], like[:1]), result[:1])


def test_smooth_equal_of_what_has_no_detail_or_no_cost(face):
    assert torch.equal(smooth_equal(grey(20, 30), grey(20, 30) + 8 / 255), grey(20, 30))
    assert torch.equal(smooth_equal(face, face), face)
    with pytest.raises(AntiPureError, match="differ in size"):
        smooth_equal(face, face[..., :50])
