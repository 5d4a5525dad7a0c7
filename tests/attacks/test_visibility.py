"""Budgets that follow what eyes see: against scikit-image and brute force, and what must hold for every protection.

| what | set against | tolerance |
|---|---|---|
| CIEDE2000 of one level | scikit-image's `rgb2lab` and `deltaE_ciede2000`, colour by colour | 2e-4 |
| texture | numpy, pixel by pixel | 1e-3 |
| channels drawn together | the best interval of a fine grid | the grid's step |
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from antipure.methods.antipure.objective import PRESETS
from antipure.methods.antipure.perceptual import shaped_budget
from antipure.methods.antipure.protect import protect
from antipure.methods.attacks import visibility
from antipure.methods.attacks.budget import Budget
from antipure.methods.attacks.loss import FunctionLoss
from antipure.methods.attacks.pgd import pgd
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.attacks.visibility import SETTINGS, drawn_together, seen_per_level, texture, visible_budget
from antipure.methods.controls import CONTROLS, apply_control
from antipure.methods.errors import AntiPureError
from antipure.methods.metrics.visibility import ciede2000
from antipure.methods.pictures import round_8bit, to_uint8
from antipure.methods.protections import NAMES, NO_PROTECTION, apply_protection
from skimage.color import deltaE_ciede2000, rgb2lab

GENTLER = [name for name in SETTINGS if name != "full"]
NEEDS_A_VAE = ("photoguard", "mist", "mist_textural", "pid", "anti_dreambooth_fsmg", "anti_dreambooth_aspl", "simac")


def noise(height: int = 24, width: int = 20, seed: int = 0, batch: int = 1) -> torch.Tensor:
    return round_8bit(torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)))


def patchwork(seed: int = 0) -> torch.Tensor:
    """Flat fills of 16×16 pixels, one of them textured: 1×3×32×48, 8 bits."""
    generator = torch.Generator().manual_seed(seed)
    fills = torch.rand(1, 3, 2, 3, generator=generator).repeat_interleave(16, 2).repeat_interleave(16, 3)
    fills[..., 16:, 32:] += 0.5 * torch.rand(1, 3, 16, 16, generator=generator) - 0.25
    return round_8bit(fills.clamp(0, 1))


def changes(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(to_uint8(after).astype(int) - to_uint8(before)).permute(0, 3, 1, 2)


def apart(change: torch.Tensor) -> torch.Tensor:
    return change.amax(1, keepdim=True) - change.amin(1, keepdim=True)


def holds(before: torch.Tensor, after: torch.Tensor, levels: float, name: str, mask=1.0) -> None:
    """The result lies in the budget of this setting, channel by channel and pixel by pixel, after rounding."""
    allowed, differ = visible_budget(before, levels, name)
    change = changes(before, after)
    assert (change.abs() <= allowed * mask + 1e-4).all()
    assert (apart(change) <= differ * mask + 1e-4).all()


def test_one_level_is_what_scikit_image_says():
    colours = noise(3, 7, seed=2)
    colours[..., 0, :3] = torch.tensor([[0.0, 1.0, 0.5]] * 3)
    lightness, channel = seen_per_level(colours)
    rgb = colours[0].permute(1, 2, 0).double().numpy()
    moves = np.array([[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]) / 255
    for y, x in np.ndindex(3, 7):
        here = rgb2lab(rgb[y, x])
        there = [
            [deltaE_ciede2000(here, rgb2lab(np.clip(rgb[y, x] + way * m, 0, 1))) for m in moves] for way in (1, -1)
        ]
        seen = np.max(there, 0)
        assert lightness[0, 0, y, x].item() == pytest.approx(seen[0], abs=2e-4)
        assert channel[0, 0, y, x].item() == pytest.approx(seen[1:].max(), abs=2e-4)


def test_large_pictures_are_looked_at_in_pieces(monkeypatch):
    x = noise(9, 11, batch=2)
    whole = seen_per_level(x)
    monkeypatch.setattr(visibility, "_PIXELS", 17)
    for one, other in zip(whole, seen_per_level(x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


def test_texture_is_the_contrast_on_the_quietest_side():
    x = noise(14, 13, seed=5)
    luma = (x[0].double().numpy() * 255 * np.array([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    found = texture(x)

    def rough(y: int, x: int) -> float:
        there = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        return max(abs(luma[y, x] - luma[p]) for p in there if 0 <= p[0] < 14 and 0 <= p[1] < 13)

    for y, column in [(4, 4), (6, 5), (9, 8), (5, 7)]:
        squares = [
            np.mean([rough(y + i * down, column + j * along) for i in range(5) for j in range(5)])
            for down in (-1, 1)
            for along in (-1, 1)
        ]
        assert found[0, 0, y, column].item() == pytest.approx(min(squares), abs=1e-3)


def test_texture_of_plains_edges_and_small_pictures():
    assert texture(torch.full((1, 3, 9, 9), 0.3)).abs().max() < 1e-3
    for height, width in ((1, 1), (1, 2), (3, 40), (40, 4)):
        assert texture(noise(height, width)).shape == (1, 1, height, width)
    edge = torch.zeros(1, 3, 20, 20)
    edge[..., 10:] = 100 / 255
    beside = texture(edge)[0, 0]
    assert torch.allclose(beside[:, 9:11], torch.tensor(20.0), atol=1e-3)
    assert beside[:, :9].max() < 1e-3
    assert beside[:, 11:].max() < 1e-3


def test_channels_are_drawn_together_with_the_least_change():
    generator = torch.Generator().manual_seed(1)
    offset = torch.randn(1, 3, 1, 300, generator=generator) * 5
    reach = torch.rand(1, 1, 1, 300, generator=generator) * 12
    free = torch.full_like(offset, 100.0)
    found = drawn_together(offset, reach, -free, free)
    starts = torch.linspace(-40, 40, 16001).view(-1, 1, 1)
    values, widths = offset[0, :, 0].T[None], reach[0, 0, 0][None, :, None]
    costs = (values.maximum(starts).minimum(starts + widths) - values).square().sum(-1)
    assert ((found - offset).square().sum(1).flatten() <= costs.amin(0) + 1e-3).all()
    assert (found.amax(1) - found.amin(1) <= reach[:, 0] + 1e-4).all()
    already = (offset.amax(1, keepdim=True) - offset.amin(1, keepdim=True) <= reach).expand_as(offset)
    assert already.any()
    assert torch.allclose(found[already], offset[already], atol=1e-5)


@pytest.mark.parametrize("name", GENTLER)
@pytest.mark.parametrize("levels", [0.4, 1, 6.4, 8, 40])
@pytest.mark.parametrize("kind", ["noise", "patchwork", "ends"])
def test_any_perturbation_is_brought_into_the_budget(name, levels, kind):
    x = {"noise": noise(), "patchwork": patchwork(), "ends": (noise() > 0.5).float()}[kind]
    budget = Budget(x, levels, visibility=name)
    generator = torch.Generator().manual_seed(3)
    for scale in (0.3, 1, 4):
        values = budget.original + levels * scale * torch.randn(x.shape, generator=generator)
        inside = budget.project(values)
        torch.testing.assert_close(budget.project(inside), inside, rtol=0, atol=1e-3)
        result = budget.quantise(inside.clone())
        holds(x, result, levels, name)
        assert torch.equal(round_8bit(result), result)


@pytest.mark.parametrize("name", GENTLER)
def test_a_picture_between_the_levels_is_changed_no_further(name):
    x = patchwork() * 0.97 + 0.0123
    result = apply_control("random", x, AttackSettings(8, visibility=name))
    allowed, differ = visible_budget(x, 8, name)
    exact = (result.double() - x.double()) * 255
    assert (exact.abs() <= allowed + 1e-3).all()
    assert (apart(changes(x, result)) <= differ + 1e-4).all()


def test_full_is_the_plain_ball():
    x = noise()
    plain, full = Budget(x, 5), Budget(x, 5, visibility="full")
    values = plain.original + 9 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert full.apart is None
    assert torch.equal(plain.project(values), full.project(values))
    assert torch.equal(
        full.project(values), values.maximum(plain.original - 5).minimum(plain.original + 5).clamp(0, 255)
    )


@pytest.mark.parametrize("name", [n for n in NAMES if n not in NEEDS_A_VAE])
def test_every_protection_keeps_to_it(name, tiny):
    x = patchwork()
    results = {s: apply_protection(name, x, tiny, AttackSettings(8, 2, seeds=1, visibility=s)) for s in SETTINGS}
    for setting in GENTLER:
        holds(x, results[setting], 8, setting)
    if name != NO_PROTECTION:
        energies = [float((r - x).square().sum()) for r in results.values()]
        assert energies[0] > energies[1] > energies[2] > 0


@pytest.mark.parametrize("setting", GENTLER)
def test_masks_shaped_budgets_and_batches_go_with_it(setting, tiny):
    x = torch.cat([patchwork(1), patchwork(2)])
    mask = torch.rand(2, 1, 32, 48, generator=torch.Generator().manual_seed(4))
    mask[..., :8] = 0
    settings = AttackSettings(8, 2, mask, [5, 6], visibility=setting)
    result = protect(x, tiny, replace(PRESETS["unrolled"], shaped=True), settings)
    holds(x, result, 8, setting, mask * shaped_budget(x))
    assert torch.equal(result[..., :8], x[..., :8])
    alone = AttackSettings(8, 2, mask[1:], 6, visibility=setting)
    assert torch.equal(protect(x[1:], tiny, replace(PRESETS["unrolled"], shaped=True), alone), result[1:])


@pytest.mark.parametrize("setting", GENTLER)
def test_grey_pictures_stay_grey(setting, tiny):
    x = patchwork()[:, :1].repeat(1, 3, 1, 1)
    result = protect(x, tiny, PRESETS["unrolled"], AttackSettings(8, 2, visibility=setting))
    holds(x, result, 8, setting)
    assert not torch.equal(result, x)
    assert torch.equal(result[:, :1].expand_as(result), result)


def test_flat_ground_gets_no_colour_at_the_gentlest_and_is_hardly_seen():
    for colour in ([0.5, 0.5, 0.5], [0.9, 0.2, 0.1], [0.05, 0.1, 0.3], [1.0, 1.0, 1.0], [0.3, 0.8, 0.4]):
        x = round_8bit(torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 32, 32)).contiguous()
        seen = {}
        for setting in SETTINGS:
            result = apply_control("random", x, AttackSettings(8, visibility=setting))
            seen[setting] = float(ciede2000(x, result)[0])
        assert apart(changes(x, result)).max() == 0, colour
        assert seen["gentle"] < 1.0
        assert seen["gentle"] < seen["balanced"] < seen["full"]


def test_texture_keeps_the_whole_budget():
    x = round_8bit(0.25 + 0.5 * torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(8)))
    for setting in GENTLER:
        allowed, _ = visible_budget(x, 8, setting)
        assert (allowed == 8).float().mean() > 0.95, setting


def test_the_loop_climbs_within_it():
    """A loss that wants every channel as high as it goes ends at the border wherever the border is a whole number."""
    x = patchwork() * 0.5 + 0.25
    x = round_8bit(x)
    rising = FunctionLoss(lambda pixels, _: iter([pixels.sum()]))
    result = pgd(x, lambda clean: rising, AttackSettings(8, 20, visibility="balanced"))
    allowed, _ = visible_budget(x, 8, "balanced")
    assert torch.equal(changes(x, result).float(), allowed.floor().expand_as(x))


def test_controls_have_the_same_budget():
    x = patchwork()
    for name in CONTROLS:
        for setting in GENTLER:
            holds(x, apply_control(name, x, AttackSettings(8, visibility=setting)), 8, setting)


def test_an_unknown_setting_is_one_sentence(tiny):
    with pytest.raises(AntiPureError, match="no visibility 'faint'; choose one of full, balanced, gentle"):
        protect(noise(), tiny, PRESETS["strong"], AttackSettings(8, 2, visibility="faint"))
