"""Every protection by its name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from antipure.methods.antipure.objective import PRESETS, Objective
from antipure.methods.antipure.protect import protect
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.baselines import BASELINES, apply_baseline
from antipure.methods.controls import CONTROLS, apply_control
from antipure.methods.errors import AntiPureError
from antipure.methods.pictures import round_8bit
from antipure.methods.protections import NAMES, apply_protection, needs_denoiser

SETTINGS = AttackSettings(levels=6, steps=2, seeds=4)


@pytest.fixture(scope="module")
def picture():
    return torch.rand(1, 3, 18, 20, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", ["strong_shaped", "paper", "fast"])
def test_presets(tiny, picture, name):
    mask = torch.ones(1, 1, 18, 20)
    mask[..., :7] = 0.5
    expected = protect(picture, tiny, PRESETS[name], replace(SETTINGS, mask=mask))
    assert torch.equal(apply_protection(name, picture, tiny, replace(SETTINGS, mask=mask)), expected)


def test_an_objective_of_ones_own(tiny, picture):
    own = Objective(ddpm=0, pfg=1, etg=0)
    expected = protect(picture, tiny, own, SETTINGS)
    assert torch.equal(apply_protection(own, picture, tiny, SETTINGS), expected)
    assert not torch.equal(apply_protection("paper", picture, tiny, SETTINGS), expected)


def test_baselines_controls_and_none(tiny, picture):
    expected = apply_baseline("advdm", picture, tiny, SETTINGS)
    assert torch.equal(apply_protection("advdm", picture, tiny, SETTINGS), expected)
    for name in CONTROLS:
        assert torch.equal(apply_protection(name, picture, None, SETTINGS), apply_control(name, picture, SETTINGS))
    assert torch.equal(apply_protection("none", picture, None), round_8bit(picture))


def test_names(tiny, picture):
    assert len(set(NAMES)) == len(NAMES)
    assert {name for name in NAMES if not needs_denoiser(name)} == {*CONTROLS, "none"}
    assert all(map(needs_denoiser, (*PRESETS, *BASELINES, Objective())))
    with pytest.raises(AntiPureError, match="There is no protection 'glaze'"):
        apply_protection("glaze", picture, tiny)
