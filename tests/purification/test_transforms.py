"""Ordinary transforms of pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from antipure.methods.errors import AntiPureError
from antipure.methods.pictures import round_8bit
from antipure.methods.purification.transforms import TRANSFORMS, jpeg, parse_transform, resize
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_jpeg_is_pillows_for_every_picture_of_the_batch(quality):
    picture = torch.rand(2, 3, 17, 24, generator=torch.Generator().manual_seed(0))
    result = jpeg(picture, quality)
    for one, found in zip(picture, result, strict=True):
        file = io.BytesIO()
        levels = (one * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(levels).save(file, format="JPEG", quality=quality)
        expected = np.asarray(Image.open(file))
        assert np.array_equal((found * 255).round().byte().permute(1, 2, 0).numpy(), expected)
    assert result.dtype == picture.dtype


def test_lower_quality_changes_more():
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    errors = [float((jpeg(picture, q) - picture).square().mean()) for q in (95, 75, 20)]
    assert errors == sorted(errors)


@pytest.mark.parametrize("quality", [0, 96])
def test_qualities_that_pillow_does_not_know_are_refused(quality):
    with pytest.raises(AntiPureError, match="1..95"):
        jpeg(torch.rand(1, 3, 8, 8), quality)


def picture(height: int, width: int, batch: int = 2) -> torch.Tensor:
    """Smooth shapes with some noise, 8-bit."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(batch, 3, 6, 7, generator=generator)
    x = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return ((x + 0.05 * torch.randn(x.shape, generator=generator)).clamp(0, 1) * 255).round() / 255


def as_pil(x: torch.Tensor) -> Image.Image:
    return Image.fromarray((x * 255).round().byte().permute(1, 2, 0).numpy())


def levels(x: torch.Tensor) -> np.ndarray:
    return (x * 255).round().permute(1, 2, 0).numpy().astype(int)


@pytest.mark.parametrize(("name", "filter_"), [("resize", Image.LANCZOS), ("bicubic", Image.BICUBIC)])
@pytest.mark.parametrize("factor", [0.5, 0.3, 1.7])
@pytest.mark.parametrize("size", [(40, 57), (5, 90)])
def test_resize_is_pillows_within_rounding(name, filter_, factor, size):
    """Pillow rounds between its two passes, twice: at most 4 levels apart, less than half a level on average."""
    x = picture(*size)
    found = parse_transform(f"{name}{factor}")(x)
    for one, result in zip(x, found, strict=True):
        h, w = size
        small = as_pil(one).resize((max(round(w * factor), 1), max(round(h * factor), 1)), filter_)
        expected = np.asarray(small.resize((w, h), filter_)).astype(int)
        assert np.abs(levels(result) - expected).max() <= 4
        assert np.abs(levels(result) - expected).mean() < 0.5


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.7])
def test_blur_is_scipys(sigma):
    x = picture(30, 41)
    found = parse_transform(f"blur{sigma}")(x)
    expected = gaussian_filter(x.double().numpy(), (0, 0, sigma, sigma), mode="nearest")
    assert np.abs(found.numpy() - expected).max() <= 0.5001 / 255


@pytest.mark.parametrize("window", [3, 5])
def test_median_is_pillows(window):
    x = picture(20, 31)
    found = parse_transform(f"median{window}")(x)
    for one, result in zip(x, found, strict=True):
        expected = np.asarray(as_pil(one).filter(ImageFilter.MedianFilter(window)))
        assert np.array_equal(levels(result), expected)


def test_bilateral_is_a_plain_sum():
    x = picture(7, 9, batch=1)
    found = parse_transform("bilateral40")(x)
    a = np.pad(x[0].double().numpy(), ((0, 0), (4, 4), (4, 4)), mode="edge")
    for i, j in np.ndindex(7, 9):
        total, norm = np.zeros(3), 0.0
        for di, dj in np.ndindex(9, 9):
            colour = ((a[:, i + di, j + dj] - a[:, i + 4, j + 4]) ** 2).sum()
            weight = np.exp(-((di - 4) ** 2 + (dj - 4) ** 2) / 8 - colour / (2 * (40 / 255) ** 2))
            total, norm = total + weight * a[:, i + di, j + dj], norm + weight
        assert np.abs(found[0, :, i, j].numpy() - total / norm).max() <= 0.501 / 255


def test_noise_has_its_size_its_seed_and_no_place_in_the_batch():
    x = torch.full((3, 3, 64, 64), 0.5)
    found = parse_transform("noise10", seed=4)(x)
    assert float(((found - x) * 255).std()) == pytest.approx(10, rel=0.03)
    assert torch.equal(found[0], found[2])
    assert torch.equal(found, parse_transform("noise10", seed=4)(x))
    assert not torch.equal(found, parse_transform("noise10", seed=5)(x))
    twice = parse_transform("noise10+noise10", seed=4)(x)
    assert float(((twice - x) * 255).std()) == pytest.approx(10 * 2**0.5, rel=0.03), "independent draws"


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (33, 18)])
def test_every_transform_takes_any_size_and_gives_8_bit_pictures(name, size):
    x = picture(*size)
    name = {"long": "long30", "shrink": "shrink0.4"}.get(name, name)  # so that something happens
    transform = parse_transform(name)
    found = transform(x)
    assert found.shape[:2] == x.shape[:2]
    assert transform.changes_size or found.shape == x.shape
    assert found.shape == transform.view(x).shape
    assert torch.equal(found, round_8bit(found))
    for i in range(2):
        assert torch.equal(parse_transform(name)(x[i : i + 1]), found[i : i + 1])
    if size == (33, 18):
        assert not torch.equal(found, x)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_carries_gradient(name):
    x = picture(12, 13).requires_grad_()
    parse_transform(f"{name}+jpeg")(x).square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert (x.grad != 0).float().mean() > 0.3


def test_the_gradient_of_jpeg_passes_straight_through():
    x = picture(16, 16).requires_grad_()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    (jpeg(x, 50) * direction).sum().backward()
    assert torch.equal(x.grad, direction)


def test_compositions_are_applied_from_left_to_right():
    x = picture(20, 24)
    one = parse_transform("JPEG75 + resize0.5")
    assert str(one) == "jpeg75+resize0.5"
    assert torch.equal(one(x), resize(jpeg(x, 75), 0.5))
    assert not torch.equal(one(x), parse_transform("resize0.5+jpeg75")(x))
    assert torch.equal(parse_transform("none")(x), x)
    assert str(parse_transform("none")) == "none"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "'' is no transform; give some of jpeg75, resize0.5"),
        ("jpeg75+", "'' is no transform"),
        ("jpg75", "'jpg75' is no transform"),
        ("jpeg-5", "'jpeg-5' is no transform"),
        ("jpeg0", "1..95"),
        ("jpeg75.5", "whole number"),
        ("resize0", "factor is 0"),
        ("resize9", "factor is 9"),
        ("median4", "window is 4"),
        ("median3.5", "window is 3.5"),
        ("blur0", "sigma is 0 pixels"),
        ("noise300", "at most 255"),
        ("bilateral0", "sigma is 0 levels"),
        ("webp0", "1..100"),
        ("webp101", "1..100"),
        ("train512.5", "side is 512.5 pixels"),
        ("train32", "64..4096"),
        ("trainbicubic5000", "64..4096"),
        ("trainbilinear0", "64..4096"),
        ("shrink0", "factor is 0"),
        ("shrink1.5", "at most 1"),
        ("crop0", "share is 0"),
        ("crop2", "at most 1"),
        ("long8", "16..8192"),
        ("upload99999", "16..8192"),
    ],
)
def test_texts_that_name_no_transform_are_refused_in_one_sentence(text, sentence):
    with pytest.raises(AntiPureError) as caught:
        parse_transform(text)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
