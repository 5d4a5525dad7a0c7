"""Cleaners drawn at random: which they are against the filters themselves, how often, and that gradients go through."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from antipure.methods.pictures import random_stream, round_8bit
from antipure.methods.purification import random_cleaner as module
from antipure.methods.purification.random_cleaner import random_cleaner
from PIL import Image, ImageFilter


def picture(seed: int = 0, height: int = 24, width: int = 20) -> torch.Tensor:
    return round_8bit(torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed)))


def test_every_cleaner_is_drawn_about_as_often(monkeypatch):
    drawn: Counter = Counter()
    amounts: dict[str, list[float]] = {}
    for name, position in (("bilateral", 1), ("median", 1), ("gaussian_blur", 1), ("jpegs", 1)):

        def noted(x, *values, name=name, position=position):
            drawn[name] += 1
            amounts.setdefault(name, []).extend(np.ravel(values[position - 1]))
            return x

        monkeypatch.setattr(module, name, noted)
    for seed in range(2000):
        random_cleaner(random_stream(seed))(picture())
    assert set(drawn) == {"bilateral", "median", "gaussian_blur", "jpegs"}
    assert all(430 < count < 570 for count in drawn.values())  # 500 ± 3.6 standard deviations
    assert 0.05 <= min(amounts["bilateral"]) < 0.06
    assert 0.19 < max(amounts["bilateral"]) <= 0.2
    assert 0.4 <= min(amounts["gaussian_blur"]) < 0.42
    assert 0.98 < max(amounts["gaussian_blur"]) <= 1
    assert (min(amounts["jpegs"]), max(amounts["jpegs"])) == (60, 95)


def test_the_median_is_pillows(monkeypatch):
    clean = picture()[:1]
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([0.3, 0.5]))
    found = random_cleaner(random_stream(0))(clean)
    pillow = Image.fromarray((clean[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    expected = np.asarray(pillow.filter(ImageFilter.MedianFilter(3)))
    inside = (slice(1, -1), slice(1, -1))
    assert np.array_equal((found[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)[inside], expected[inside])


@pytest.mark.parametrize("seed", range(12))
def test_what_is_drawn_is_fixed_and_its_gradient_reaches_the_picture(seed):
    cleaner = random_cleaner(random_stream(seed))
    x = (0.1 + 0.8 * picture(seed)).requires_grad_()
    once = cleaner(x)
    assert once.shape == x.shape
    assert torch.equal(once, cleaner(x))
    (gradient,) = torch.autograd.grad(once.sum(), x)
    assert torch.isfinite(gradient).all()
    assert float(gradient.abs().sum()) > 0
