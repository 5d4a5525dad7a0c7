"""Pictures larger than a trainer's: what the small ascent gets, what is carried up, budgets, masks, progress."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from antipure.methods.antipure.carried import LAST, carried
from antipure.methods.antipure.objective import PRESETS, Objective
from antipure.methods.antipure.protect import protect
from antipure.methods.attacks.ensemble import VaeTargets
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.errors import AntiPureError
from antipure.methods.metrics.latent import latent_shift
from antipure.methods.pictures import round_8bit
from antipure.methods.purification.transforms import parse_transform

from .test_latent import TinyVae, picture

AREA = 64 * 64
SCALED = Objective(ddpm=0, pfg=0, etg=0, latent=1, first_step=0.375, trained_area=AREA)


class Ascent:
    """Notes what it is asked, and adds a known perturbation."""

    def __init__(self):
        self.calls: list[tuple] = []

    def __call__(self, picture, settings, *, start, step_levels, rounded=True):
        self.calls.append((picture, settings, start, step_levels, rounded))
        for step in range(settings.steps):
            settings.progress(step + 1, settings.steps, picture, 0.0)
        ramp = torch.linspace(-8, 8, picture.shape[-1]) / 255
        return picture + ramp if not rounded else start


def smooth(height: int, width: int) -> torch.Tensor:
    """A picture that clips nothing: 1×3×H×W."""
    rows = torch.linspace(0.3, 0.6, height)[:, None] + torch.linspace(0, 0.1, width)
    return round_8bit(rows.expand(1, 3, height, width).clone())


def test_the_small_picture_is_opencvs_and_the_perturbation_is_carried_up():
    clean = smooth(96, 160)
    told: list[tuple[int, int]] = []
    settings = AttackSettings(8, 10, progress=lambda done, total, *_: told.append((done, total)))
    ascent = Ascent()
    carried(ascent, lambda picture, _: picture + 1 / 255, clean, settings, AREA, first=3.0)
    (small, there, begun, first, rounded), (large, here, start, last_first, last_rounded) = ascent.calls
    assert small.shape[-2:] == (50, 83)  # the aspect within a pixel, the area that of 64×64
    expected = cv2.resize(clean[0].permute(1, 2, 0).numpy(), (83, 50), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(small[0].permute(1, 2, 0).numpy(), expected, atol=1e-4)
    torch.testing.assert_close(begun, small + 1 / 255)
    assert torch.equal(large, clean)
    ramp = torch.nn.functional.interpolate(
        (torch.linspace(-8, 8, 83) / 255).expand(1, 1, 50, 83), (96, 160), mode="bicubic", align_corners=False
    )
    np.testing.assert_allclose(start[:, :1, 8:-8, 8:-8], (clean + ramp)[:, :1, 8:-8, 8:-8], atol=0.15 / 255)
    assert (there.steps, here.steps) == (8, 2)
    assert (first, last_first) == (3.0, 3.0 * LAST)
    assert (rounded, last_rounded) == (False, True)
    assert told == [(i, 10) for i in range(1, 11)]


def test_a_large_picture_keeps_its_budget_and_its_mask_and_moves_what_a_trainer_sees():
    clean = picture(128, 96)
    mask = torch.ones(1, 1, 128, 96)
    mask[..., :40, :] = 0
    vae = TinyVae()
    settings = AttackSettings(8, 10, mask=mask, seeds=3)
    protected = protect(clean, VaeTargets((vae,)), SCALED, settings)
    change = (protected - clean) * 255
    assert float(change.abs().max()) <= 8 + 1e-4
    assert torch.equal(protected[..., :40, :], clean[..., :40, :])
    assert torch.equal(protected, round_8bit(protected))
    assert torch.equal(protected, protect(clean, VaeTargets((vae,)), SCALED, settings))
    signs = torch.randint(2, clean.shape, generator=torch.Generator().manual_seed(5)) * 2 - 1
    random = round_8bit(torch.where(mask.bool(), clean + signs * 8 / 255, clean).clamp(0, 1))
    view = parse_transform("shrink0.6")
    moved, noise = (float(latent_shift(clean, p, vae, view=view).value) for p in (protected, random))
    assert moved > 1.2 * noise


def test_the_encoders_see_the_trainers_size_but_for_the_last_steps():
    vae = TinyVae()
    protect(picture(160, 160), VaeTargets((vae,)), replace(SCALED, views_as_is=1.0), AttackSettings(8, 10))
    assert [vae.sizes.count(size) for size in ((64, 64), (160, 160))] == [16, 4]  # twice a step: moved and still


def test_of_a_grey_picture_it_is_grey():
    clean = picture(96, 96)[:, :1].expand(1, 3, 96, 96).clone()
    protected = protect(clean, VaeTargets((TinyVae(),)), SCALED, AttackSettings(8, 6))
    assert not torch.equal(protected, clean)
    assert torch.equal(protected, protected[:, :1].expand_as(protected))


def test_a_picture_in_a_batch_is_as_alone():
    pair = torch.cat([picture(80, 80), picture(80, 80, seed=1)])
    target = VaeTargets((TinyVae(),))
    together = protect(pair, target, SCALED, AttackSettings(8, 5, seeds=[7, 8]))
    torch.testing.assert_close(together[1:], protect(pair[1:], target, SCALED, AttackSettings(8, 5, seeds=8)))


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_up_to_the_trainers_size_nothing_is_different(size):
    clean, target = picture(*size), VaeTargets((TinyVae(),))
    settings = AttackSettings(8, 4, seeds=2)
    plain = protect(clean, target, replace(SCALED, trained_area=0), settings)
    assert torch.equal(plain, protect(clean, target, SCALED, settings))


def test_one_step_is_taken_at_the_pictures_own_size():
    vae = TinyVae()
    protect(picture(96, 96), VaeTargets((vae,)), replace(SCALED, views_as_is=1.0), AttackSettings(8, 1))
    assert vae.sizes == [(96, 96)] * 2


def test_an_area_too_small_to_train_on_is_refused():
    with pytest.raises(AntiPureError, match="trained_area is 100 pixels"):
        replace(PRESETS["robust"], trained_area=100).check_values()


def test_a_flat_picture_moves_too():
    flat = torch.full((1, 3, 32, 32), 0.5)
    protected = protect(flat, VaeTargets((TinyVae(),)), replace(SCALED, start_blur=1.0), AttackSettings(8, 4))
    assert float(((protected - flat) != 0).float().mean()) > 0.5
