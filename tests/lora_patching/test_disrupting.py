"""Disrupting: the attack against a plain re-implementation, masked L2 by hand, and the bundled toy under attack."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from antipure.methods.attacks.loss import FunctionLoss
from antipure.methods.attacks.pgd import pgd
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.controls import apply_control
from antipure.methods.errors import AntiPureError
from antipure.methods.generators import Generator, load_generator
from antipure.methods.generators.loading import BUNDLED, generator_from_state
from antipure.methods.generators.procedural_faces import draw_faces, random_attributes
from antipure.methods.generators.stargan import StarGANNetwork
from antipure.methods.lora_patching.defence_metrics import edit_mask, masked_l2, success_rate
from antipure.methods.lora_patching.disrupting import DISRUPTING, LEVELS, disrupt
from antipure.methods.pictures import random_stream, round_8bit
from torch import nn


@pytest.fixture
def generator():
    torch.manual_seed(0)
    return generator_from_state(StarGANNetwork(4, 5, 1).state_dict(), size=16)


@pytest.fixture
def picture():
    return round_8bit(torch.rand(2, 3, 16, 20, generator=torch.Generator().manual_seed(4)))


def test_disrupt_equals_a_plain_loop(generator, picture):
    edits = ("Male", "Old")
    result = disrupt(generator, picture, edits, replace(DISRUPTING, seeds=[3, 8]))
    for i, seed in enumerate((3, 8)):
        x = picture[i : i + 1] * 2 - 1
        start = torch.rand(x.shape, generator=random_stream(seed, -1)) * 2 - 1
        adv = (x + 0.05 * start).clamp(-1, 1)
        for _ in range(10):
            adv.requires_grad_()
            loss = sum((generator.edit(adv, e) - generator.edit(x, e).detach()).square().mean() for e in edits)
            (gradient,) = torch.autograd.grad(loss, adv)
            adv = adv.detach() + 0.01 * gradient.sign()
            adv = torch.minimum(torch.maximum(adv, x - 0.05), x + 0.05).clamp(-1, 1)
        # The plain loop ends off the 8-bit grid, ours on it: at most one level from there (rounding, inside the ball).
        close = (result[i : i + 1] * 255 - (adv + 1) * 127.5).abs() < 1
        assert close.float().mean() > 0.99
    assert (result * 255 - picture * 255).abs().max() <= LEVELS
    assert (result * 255).sub((result * 255).round()).abs().max() < 1e-3


def test_disrupting_moves_outputs_more_than_random_noise_does(generator, picture):
    def change(other):
        return float((generator.edit(other * 2 - 1, "Male") - generator.edit(picture * 2 - 1, "Male")).square().mean())

    noise = torch.randint(0, 2, picture.shape, generator=torch.Generator().manual_seed(0)) * 12 - 6
    assert change(disrupt(generator, picture, ["Male"])) > 3 * change((picture + noise / 255).clamp(0, 1))


def test_the_mask_and_the_seed_are_kept(generator, picture):
    mask = torch.zeros(2, 1, 16, 20)
    mask[..., 5:] = 1
    result = disrupt(generator, picture, ["Male"], replace(DISRUPTING, steps=2, mask=mask))
    assert torch.equal(result[..., :5], picture[..., :5])
    assert not torch.equal(result[..., 5:], picture[..., 5:])
    assert torch.equal(result, disrupt(generator, picture, ["Male"], replace(DISRUPTING, steps=2, mask=mask)))
    assert not torch.equal(
        result, disrupt(generator, picture, ["Male"], replace(DISRUPTING, steps=2, mask=mask, seeds=1))
    )


def test_bad_requests_are_refused(generator, picture):
    with pytest.raises(AntiPureError, match="no edit 'Bald'"):
        disrupt(generator, picture, ["Bald"])
    with pytest.raises(AntiPureError, match="No edit"):
        disrupt(generator, picture, [])
    with pytest.raises(AntiPureError):
        disrupt(generator, picture, settings=replace(DISRUPTING, levels=0))
    with pytest.raises(AntiPureError, match="The picture holds NaN"):
        disrupt(generator, torch.full_like(picture, float("nan")))


def test_pictures_are_looked_at_once_and_never_in_the_loop(generator, monkeypatch):
    """A look waits for a GPU. Other sizes than the generator's go through its resizing in every step."""
    looked, isfinite = [], torch.isfinite
    monkeypatch.setattr(torch, "isfinite", lambda x: looked.append(x.shape) or isfinite(x))
    disrupt(generator, torch.rand(1, 3, 24, 30), ["Male", "Old"], replace(DISRUPTING, steps=3))
    assert len(looked) == 1 + 3  # the picture, and every step's gradient


def test_pgd_steps_are_constant_without_decay():
    """A loss that pulls one way: n steps of s levels end n·s away, and with decay nearer."""
    x = torch.full((1, 3, 4, 4), 0.5)
    x[0, 0, 0, 0] = 0.6  # a grey picture would be moved in grey alone
    x = round_8bit(x)

    def up(clean):
        return FunctionLoss(lambda pixels, _: [pixels.sum()])

    assert torch.allclose(
        (pgd(x, up, AttackSettings(levels=20, steps=4), step_levels=2, decay=False) - x) * 255, torch.tensor(8.0)
    )
    assert torch.allclose((pgd(x, up, AttackSettings(levels=20, steps=4), step_levels=2) - x) * 255, torch.tensor(5.0))
    start = pgd(
        x,
        lambda c: FunctionLoss(lambda pixels, _: [(0 * pixels).sum()]),
        AttackSettings(levels=9, steps=1),
        random_start=True,
    )
    offset = ((start - x) * 255).round()
    assert offset.abs().max() <= 9
    assert len(offset.unique()) > 10


def test_masked_l2_by_hand():
    x = torch.zeros(3, 3, 2, 2)
    plain, output = x.clone(), x.clone()
    plain[0, :, 0, 0] = 0.2  # sums to 0.6: in the mask
    plain[0, :, 0, 1] = -0.15  # sums to 0.45: not
    plain[1, 0, 1, 1] = 0.7
    output[0, :, 0, 0] = torch.tensor([0.3, 0.2, 0.4])
    output[0, :, 1] = 5  # outside the mask: does not count
    output[1, 0, 1, 1] = 0.1
    assert edit_mask(plain, x).flatten(1).tolist() == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    l2 = masked_l2(output, plain, x)
    torch.testing.assert_close(l2[:2], torch.tensor([(0.01 + 0.04) / 3, 0.36 / 3]))
    assert l2[2].isnan()
    assert success_rate(l2) == 0.5
    assert success_rate(l2, threshold=0.01) == 1
    assert math.isnan(success_rate(l2[2:]))
    with pytest.raises(AntiPureError):
        masked_l2(output, plain[:2], x)


class OneEdit(Generator):
    """A module that maps pixels to pixels, as a generator with one edit."""

    name = "module"

    def __init__(self, network: nn.Module):
        super().__init__(network, edits=("edit",), size=64, multiple=1)

    def _call(self, pixels, edit):
        return self.network(pixels)


def test_any_module_can_be_disrupted(picture):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 3, padding=1), nn.Tanh())
    result = disrupt(OneEdit(module), picture, settings=replace(DISRUPTING, steps=2))
    assert (result - picture).abs().max() > 3 / 255


# The bundled toy, on faces it was not trained on.


@pytest.fixture(scope="module")
def toy():
    return load_generator()


@pytest.fixture(scope="module")
def held_out():
    seeds = range(1_000_000, 1_000_012)
    hair, glasses = random_attributes(seeds)
    return seeds, hair, glasses, round_8bit(draw_faces(seeds))


def test_the_toy_is_small_and_knows_its_edits(toy):
    assert toy.edits == ("black hair", "blond hair", "brown hair", "glasses", "no glasses")
    assert (toy.name, toy.size, toy.device.type) == ("StarGAN", 64, "cpu")
    assert BUNDLED.stat().st_size < 2 * 2**20


def test_the_toy_edits_faces_it_never_saw(toy, held_out):
    """The output is much nearer to the true edited face than the picture is, where the two differ."""
    seeds, hair, glasses, picture = held_out
    for edit, truth in (
        ("blond hair", draw_faces(seeds, torch.full_like(hair, 1), glasses)),
        ("no glasses", draw_faces(seeds, hair, torch.zeros_like(glasses))),
    ):
        changes = ((truth - picture).abs().sum(1, keepdim=True) > 0.05).float()
        before = (changes * (picture - truth).abs()).sum()
        after = (changes * ((toy.edit(picture * 2 - 1, edit) + 1) / 2 - truth).abs()).sum()
        assert after < 0.5 * before


def test_the_toy_is_disrupted_by_the_attack_and_not_by_noise(toy, held_out):
    _, hair, _, picture = held_out
    picture = picture[hair != 1][:4]
    pixels = picture * 2 - 1
    plain = toy.edit(pixels, "blond hair")

    def rate(other):
        return success_rate(masked_l2(toy.edit(other * 2 - 1, "blond hair"), plain, pixels))

    assert rate(disrupt(toy, picture, ["blond hair"])) >= 0.75
    assert rate(apply_control("random", picture, AttackSettings(levels=LEVELS))) <= 0.25
