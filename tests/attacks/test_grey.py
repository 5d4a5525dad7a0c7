"""Grey pictures stay grey under every protection, and lose nothing where somebody converts them to grey."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from antipure.methods.antipure.objective import PRESETS
from antipure.methods.antipure.protect import antipure_loss, protect
from antipure.methods.attacks.ensemble import CombinedDenoiser
from antipure.methods.attacks.loss import FunctionLoss
from antipure.methods.attacks.pgd import pgd
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.controls import CONTROLS, spectrum_matched
from antipure.methods.pictures import random_stream, round_8bit, to_pixels, to_uint8
from antipure.methods.protections import NAMES, NO_PROTECTION, apply_protection
from PIL import Image

SETTINGS = AttackSettings(levels=6, steps=2, seeds=4)
LATENT_ONLY = ("photoguard", "mist", "mist_textural", "pid")


def picture(height: int = 18, width: int = 20, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return round_8bit(torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)))


def grey(height: int = 18, width: int = 20, seed: int = 0) -> torch.Tensor:
    return picture(height, width, seed=seed)[:, :1].expand(1, 3, height, width).contiguous()


def changes(before: torch.Tensor, after: torch.Tensor) -> np.ndarray:
    return to_uint8(after).astype(int) - to_uint8(before)


def stays_grey(x: torch.Tensor) -> bool:
    return all(torch.equal(x[:, :1], x[:, i : i + 1]) for i in (1, 2))


@pytest.fixture
def latent(tiny, spy_on):
    """The tiny denoiser behind an encoder that mixes the channels, as VAEs do."""

    class Latent(spy_on):
        latent = True
        network = tiny.network

        def encode(self, pixels):
            weights = torch.tensor([[0.9, -0.5, 0.2], [0.1, 0.8, -0.7], [-0.6, 0.3, 1.1]])
            return torch.einsum("ij,bjhw->bihw", weights, pixels)

    return Latent(tiny)


@pytest.mark.parametrize("name", NAMES)
def test_every_protection_of_a_grey_picture_is_grey(name, tiny, latent):
    x, denoiser = grey(), latent if name in LATENT_ONLY else tiny
    result = apply_protection(name, x, denoiser, SETTINGS)
    assert stays_grey(result)
    assert torch.equal(result, round_8bit(result))
    found = changes(x, result)
    assert np.abs(found).max() <= 6
    assert found.any() == (name != NO_PROTECTION)
    # Converting to grey, by Pillow's weights, leaves all of it.
    converted = np.asarray(Image.fromarray(to_uint8(result)[0]).convert("L")).astype(int)
    before = np.asarray(Image.fromarray(to_uint8(x)[0]).convert("L"))
    assert np.array_equal(converted - before, found[0, ..., 0])


@pytest.mark.parametrize("name", ["paper", "strong", "random", "mist", "photoguard"])
def test_it_can_be_switched_off_and_then_converting_undoes_part(name, tiny, latent):
    """Otherwise this file could not fail: without the rule these come back coloured."""
    x, denoiser = grey(), latent if name in LATENT_ONLY else tiny
    result = apply_protection(name, x, denoiser, replace(SETTINGS, keep_grey=False))
    assert not stays_grey(result)
    converted = np.asarray(Image.fromarray(to_uint8(result)[0]).convert("L")).astype(int) - to_uint8(x)[0, ..., 0]
    assert (converted**2).mean() < 0.9 * (changes(x, result) ** 2).mean()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "simac"])  # which takes seconds
def test_pictures_with_colour_are_as_without_the_rule(name, tiny, latent):
    """One pixel of colour is enough."""
    x, denoiser = grey(), latent if name in LATENT_ONLY else tiny
    x[0, 2, 5, 6] += (1 if x[0, 2, 5, 6] < 0.5 else -1) / 255
    with_rule, without = (apply_protection(name, x, denoiser, replace(SETTINGS, keep_grey=k)) for k in (True, False))
    assert torch.equal(with_rule, without)


@pytest.mark.parametrize("name", ["fast", "strong_shaped", "random", "advdm"])
def test_each_picture_of_a_batch_by_itself(name, tiny):
    coloured, plain = picture(seed=3), grey(seed=2)
    result = apply_protection(name, torch.cat([coloured, plain]), tiny, SETTINGS)
    assert torch.equal(result[:1], apply_protection(name, coloured, tiny, SETTINGS))
    assert torch.equal(result[1:], apply_protection(name, plain, tiny, SETTINGS))
    assert stays_grey(result[1:])
    assert not stays_grey(result[:1])


def test_in_a_loop_over_the_whole_batch_too():
    """A linear loss ends in the corner of the ball: that of its weights, or of their sum over the channels."""
    x = torch.cat([grey(seed=1), picture(seed=2)])
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))

    def make_loss(_):
        return FunctionLoss(lambda pixels, _: [(pixels * weights).sum()])

    settings = AttackSettings(levels=8, steps=16)
    result = pgd(x, make_loss, settings, step_levels=8, random_start=True, together=True)
    towards = weights.double().numpy()
    towards[:1] = towards[:1].sum(1, keepdims=True)
    expected = np.clip(np.rint(x.double().numpy() * 255) + 8 * np.sign(towards), 0, 255)
    np.testing.assert_array_equal(to_uint8(result), expected.transpose(0, 2, 3, 1))


def test_the_mask_holds(tiny):
    x, mask = grey(), torch.zeros(1, 1, 18, 20)
    mask[..., 4:12, 3:] = 1
    mask[..., 12:, :] = 0.5
    result = apply_protection("strong", x, tiny, replace(SETTINGS, mask=mask))
    found = np.abs(changes(x, result)).max(-1)[0]
    assert stays_grey(result)
    assert found[:4].max() == 0
    assert found[12:].max() <= 3 < found.max() <= 6


def test_an_objective_without_grey_steps_still_works(tiny):
    """A grey picture has no colours whose balance could be shifted."""
    x = grey()
    none, all_of_it = (
        protect(x, tiny, replace(PRESETS["strong"], luminance=luminance), SETTINGS) for luminance in (0.0, 1.0)
    )
    assert torch.equal(none, all_of_it)
    assert np.abs(changes(x, none)).max() == 6


def test_several_denoisers(tiny, make_tiny):
    both = CombinedDenoiser((tiny, make_tiny(seed=1)))
    assert stays_grey(apply_protection("paper", grey(), both, SETTINGS))


def test_a_random_start_reaches_the_border_of_the_ball():
    x = torch.full((1, 3, 64, 64), 128 / 255)
    flat = FunctionLoss(lambda pixels, _: [(pixels * 0).sum()])
    start = pgd(x, lambda _: flat, AttackSettings(levels=6, steps=1), random_start=True, rounded=False)
    assert stays_grey(start)
    assert float(((start - x) * 255).std()) == pytest.approx(6 / 3**0.5, rel=0.05)  # of an even distribution


def test_the_step_is_the_gradient_by_the_picture_s_grey(tiny):
    """One step of PGD is the sign of the derivative by one grey channel, which autograd knows by itself."""
    x = grey(16, 16)
    result = pgd(x, partial(antipure_loss, tiny, PRESETS["paper"]), replace(SETTINGS, steps=1), step_levels=6)
    one = to_pixels(x)[:, :1].clone().requires_grad_()
    loss = antipure_loss(tiny, PRESETS["paper"], to_pixels(x))
    leaf = one.expand(1, 3, 16, 16).clone()
    leaf.retain_grad()
    sum(loss.terms(leaf, random_stream(4, 0))).backward()
    expected = np.clip(to_uint8(x)[0, ..., 0] + 6 * np.sign(one.grad[0, 0].numpy()), 0, 255)
    assert (to_uint8(result)[0, ..., 0] == expected).mean() > 0.99  # signs of what rounds to 0 aside


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_of_a_grey_picture_use_all_of_the_budget(name):
    x = grey(40, 40) * 0.5 + 0.25
    found = np.abs(changes(round_8bit(x), apply_protection(name, round_8bit(x), None, SETTINGS)))
    assert (found == 6).mean() > (0.4 if name == "smooth" else 0.999)


def test_the_spectrum_matched_control_is_as_grey_as_what_it_is_matched_to(tiny):
    x = grey(48, 48)
    protected = apply_protection("random", x, None, SETTINGS)
    control = spectrum_matched(x, protected, levels=6)
    assert stays_grey(control)
    assert 0.6 < (changes(x, control) ** 2).sum() / (changes(x, protected) ** 2).sum() <= 1.01
    coloured = apply_protection("random", x, None, replace(SETTINGS, keep_grey=False))
    assert not stays_grey(spectrum_matched(x, coloured, levels=6))


def test_values_off_the_grid_stay_grey(tiny):
    x = grey() * 0.999  # no picture of 8 bits
    assert stays_grey(apply_protection("strong", x, tiny, SETTINGS))
