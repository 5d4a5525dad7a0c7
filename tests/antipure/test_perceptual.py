"""Colour balance and shaped budgets: against a plain computation pixel by pixel, and what must hold for any picture."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from antipure.methods.antipure.perceptual import balance_colours, just_noticeable_difference, shaped_budget
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.metrics import image as metrics
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = ["bundled/astronaut_face.png", "benchmarks/pictures/raccoon.png", "benchmarks/pictures/house.png"]


def photo(name: str) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(ROOT / name).convert("RGB")).copy()).permute(2, 0, 1)[None] / 255


def reference_jnd(picture: torch.Tensor, y: int, x: int) -> float:
    """Chou & Li's equations at one inner pixel, with loops and the kernels typed from the paper's figures."""
    luma = (picture[0].numpy() * 255 * np.array([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    window = luma[y - 2 : y + 3, x - 2 : x + 3]
    weights = np.ones((5, 5))
    weights[1:4, 1:4] = 2
    weights[2, 2] = 0
    background = (window * weights).sum() / 32
    horizontal = np.array([0, 1, 0, -1, 0])[:, None] * np.array([1, 3, 8, 3, 1])[None]
    diagonal = np.array([[0, 0, 1, 0, 0], [0, 8, 3, 0, 0], [1, 3, 0, -3, -1], [0, 0, -3, -8, 0], [0, 0, -1, 0, 0]])
    kernels = [horizontal, horizontal.T, diagonal, diagonal[:, ::-1]]
    gradient = max(abs((window * kernel).sum()) / 16 for kernel in kernels)
    texture = gradient * (background * 0.0001 + 0.115) + 0.5 - background * 0.01
    if background <= 127:
        adaptation = 17 * (1 - math.sqrt(background / 127)) + 3
    else:
        adaptation = 3 / 128 * (background - 127) + 3
    return max(texture, adaptation)


@pytest.mark.parametrize("name", PHOTOS)
def test_just_noticeable_difference_is_the_papers(name):
    picture = photo(name)
    found = just_noticeable_difference(picture)
    assert found.shape == (1, 1, 128, 128)
    for y, x in [(2, 2), (64, 64), (40, 90), (125, 125), (77, 31)]:
        assert found[0, 0, y, x].item() == pytest.approx(reference_jnd(picture, y, x), rel=1e-4)


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize(("rms", "least"), [(0.8, 0.5), (0.9, 0.5), (0.6, 0.2)])
def test_shaped_budget_holds_its_root_mean_square(name, rms, least):
    shares = shaped_budget(photo(name), rms, least)
    assert shares.min() >= least - 1e-6
    assert shares.max() <= 1
    assert shares.square().mean().sqrt().item() == pytest.approx(rms, abs=2e-3)
    # What it guarantees: the full shaped budget everywhere costs no more than this.
    picture = photo(name) * 0.9 + 0.05
    shares = shaped_budget(picture, rms, least)
    signs = torch.randint(2, picture.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    cost = -10 * (signs * shares * 8 / 255).square().mean().log10()
    assert cost.item() >= 20 * math.log10(255 / (8 * rms)) - 0.05


def test_shaped_budget_spares_plains_and_uses_texture():
    picture = torch.full((1, 3, 64, 64), 0.55)
    noise = torch.rand(1, 1, 64, 32, generator=torch.Generator().manual_seed(1))
    picture[..., 32:] = 0.25 + 0.6 * noise
    shares = shaped_budget(picture, 0.8, 0.5)
    assert shares[..., 36:60].mean() > 1.2 * shares[..., 4:28].mean()


def test_every_picture_has_its_own_budget():
    both = torch.cat([photo(PHOTOS[0]), photo(PHOTOS[1])])
    assert torch.allclose(shaped_budget(both)[1:], shaped_budget(both[1:]), atol=1e-5)


@pytest.mark.parametrize("side", [1, 2, 3, 11])
def test_small_pictures_have_budgets_too(side):
    shares = shaped_budget(torch.rand(1, 3, side, side))
    assert shares.shape == (1, 1, side, side)
    assert torch.isfinite(shares).all()


def test_colour_balance_scales_the_grey_part_alone():
    gradient = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    balanced = balance_colours(gradient, 0.25)
    grey, colour = gradient.mean(1, keepdim=True), gradient - gradient.mean(1, keepdim=True)
    assert torch.allclose(balanced.mean(1, keepdim=True), 0.25 * grey, atol=1e-6)
    assert torch.allclose(balanced - balanced.mean(1, keepdim=True), colour, atol=1e-6)
    assert torch.equal(balance_colours(gradient, 1), gradient)


def test_budget_of_a_protection_is_inside_the_shaped_one(tiny):
    from antipure.methods.antipure.objective import PRESETS
    from antipure.methods.antipure.protect import protect

    picture = photo(PHOTOS[0])[..., 40:72, 40:72]
    protected = protect(picture, tiny, PRESETS["strong_shaped"], AttackSettings(levels=8, steps=3))
    allowed = shaped_budget(picture) * 8
    assert ((protected - picture).abs() * 255 <= allowed + 1e-3).all()
    assert metrics.linf_levels(picture, protected) > 3
    plain = protect(picture, tiny, PRESETS["strong"], AttackSettings(levels=8, steps=3))
    assert metrics.psnr(picture, protected) > metrics.psnr(picture, plain)
