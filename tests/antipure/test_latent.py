"""The latent shift as an objective: against its formula, over windows and views, with VAEs, denoisers and both."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from antipure.kernels.rings import rings
from antipure.methods.antipure.latent import FLAT, LatentLoss
from antipure.methods.antipure.objective import PRESETS, Objective
from antipure.methods.antipure.protect import antipure_loss, protect
from antipure.methods.attacks.ensemble import VaeTargets, combine, encoders_of, without_vaes
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.diffusion.autoencoder import Autoencoder
from antipure.methods.errors import AntiPureError
from antipure.methods.metrics.latent import latent_shift
from antipure.methods.pictures import random_stream, round_8bit, to_pixels
from torch import nn

LATENT = Objective(ddpm=0, pfg=0, etg=0, latent=1)


class TinyVae(Autoencoder):
    """Two convolutions with a stride; sees which sizes it is given."""

    name, multiple, channels, device = "tiny", 4, 4, torch.device("cpu")

    def __init__(self, seed: int = 0):
        torch.manual_seed(seed)
        self.network = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.Tanh(), nn.Conv2d(8, 4, 4, 2, 1)).requires_grad_(
            False
        )
        self.sizes: list[tuple[int, ...]] = []

    def encode(self, pixels):
        assert not any(side % self.multiple for side in pixels.shape[-2:])
        self.sizes.append(tuple(pixels.shape[-2:]))
        return self.network(pixels)

    def decode(self, latent):
        return F.interpolate(latent[:, :3], scale_factor=4)


def picture(height: int = 24, width: int = 32, seed: int = 0) -> torch.Tensor:
    return round_8bit(torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)))


def value(loss: LatentLoss, pixels: torch.Tensor, seed: int = 3) -> list[float]:
    return [float(term) for term in loss.terms(pixels, random_stream(seed))]


def test_at_its_own_size_it_is_the_log_of_the_squared_latent_shift():
    vaes = [TinyVae(0), TinyVae(1)]
    clean, other = picture(), picture(seed=1)
    loss = LatentLoss(vaes, to_pixels(clean), 0.4, as_is=1.0)
    for vae, found in zip(vaes, value(loss, to_pixels(other)), strict=True):
        shift = float(latent_shift(clean, other, vae).value)  # over the standard deviation, not the unbiased one
        places = vae.network(to_pixels(clean)).numel()
        expected = torch.log(FLAT + torch.tensor(shift**2 * (places - 1) / places))
        assert found == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("pull", [0.5, 3.0])
def test_the_pull_adds_the_cosine_of_the_shift_to_the_way_towards_the_rings(pull):
    vaes = [TinyVae(0), TinyVae(1)]
    clean, other = to_pixels(picture()), to_pixels(picture(seed=1))
    arguments = (vaes, clean, 0.4, 1.0)
    without, pulled = (value(LatentLoss(*arguments, pull=weight), other) for weight in (0.0, pull))
    for vae, a, b in zip(vaes, without, pulled, strict=True):
        still, moved, aim = (vae.network(x).flatten() for x in (clean, other, rings(24, 32, 6)))
        expected = float(F.cosine_similarity(moved - still, aim - still, dim=0))
        assert (b - a) / pull == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_at_the_picture_itself_the_pull_has_a_slope_towards_the_rings():
    vae, clean = TinyVae(), to_pixels(picture())
    loss = LatentLoss([vae], clean, 0.4, 1.0, pull=1.0)
    _, gradient = loss.value_and_gradient(clean.clone().requires_grad_(), random_stream(0))
    assert gradient.isfinite().all()
    with torch.no_grad():
        aim, still = vae.network(rings(24, 32, 6)), vae.network(clean)
        shift = vae.network(clean + 1e-3 * gradient / gradient.abs().max()) - still
    assert F.cosine_similarity(shift.flatten(), (aim - still).flatten(), dim=0) > 0.2


@pytest.mark.parametrize("what", ["the rings themselves", "white inside a white ring"])
def test_where_a_view_is_the_rings_already_the_pull_asks_for_nothing(what):
    vae, side = TinyVae(), 800
    clean = rings(24, 32, 6) if what == "the rings themselves" else torch.ones(1, 3, side, side)
    without, pulled = (LatentLoss([vae], clean, 0.4, 1.0, pull=weight) for weight in (0.0, 2.0))
    without.side = pulled.side = 32
    same = 0
    for seed in range(20):
        x = (clean - 0.01).requires_grad_()
        a, b = (loss.value_and_gradient(x, random_stream(seed)) for loss in (without, pulled))
        assert b[0].isfinite()
        assert b[1].isfinite().all()
        same += torch.equal(a[0], b[0])
    assert same, "a view that lies within one colour of the rings"


@pytest.mark.parametrize("vae_seed", [0, 1, 2])
def test_a_pull_turns_the_shift_of_every_picture_towards_the_rings(vae_seed):
    vae = TinyVae(vae_seed)
    objective = replace(LATENT, views_as_is=1.0)

    def towards(o: Objective, clean: torch.Tensor) -> float:
        moved = protect(clean, VaeTargets((vae,)), o, AttackSettings(levels=8, steps=12, seeds=5))
        with torch.no_grad():
            still, after, aim = (vae.network(x) for x in (to_pixels(clean), to_pixels(moved), rings(24, 32, 6)))
        return float(F.cosine_similarity((after - still).flatten(), (aim - still).flatten(), dim=0))

    for seed in (0, 1):
        clean = picture(seed=seed)
        assert towards(replace(objective, pull=4.0), clean) > max(0.1, towards(objective, clean) + 0.1)


def test_each_vae_and_each_step_has_a_view_of_its_own_between_the_scales():
    vaes = [TinyVae(0), TinyVae(1)]
    loss = LatentLoss(vaes, to_pixels(picture(64, 64)), 0.5, as_is=0.0)
    for seed in range(30):
        value(loss, to_pixels(picture(64, 64, seed=1)), seed)
    sizes = {vae: {size[0] for size in vae.sizes} for vae in vaes}
    assert all(min(found) >= 32 and max(found) <= 64 and len(found) > 4 for found in sizes.values())
    assert vaes[0].sizes != vaes[1].sizes


def test_of_a_large_picture_it_sees_windows_of_a_constant_cost_everywhere():
    vae = TinyVae()
    loss = LatentLoss([vae], to_pixels(picture(96, 200)), 0.4, as_is=0.3)
    loss.side = 32
    pixels = to_pixels(picture(96, 200, seed=1)).requires_grad_()
    touched = torch.zeros(96, 200)
    for seed in range(60):
        _, gradient = loss.value_and_gradient(pixels, random_stream(seed))
        touched += gradient.abs().sum((0, 1)) > 0
    assert (touched > 0).float().mean() > 0.95
    assert max(h * w for h, w in vae.sizes) <= 2 * 36 * 36


def test_as_it_is_a_window_lies_on_the_encoders_grid():
    """What a window's latent moves is what the same part of the whole picture's latent moves."""
    vae = TinyVae()
    clean, other = picture(96, 128), picture(96, 128, seed=1)
    loss = LatentLoss([vae], to_pixels(clean), 0.4, as_is=1.0)
    loss.side = 32
    moved = vae.network(to_pixels(other)) - vae.network(to_pixels(clean))
    for seed in range(10):
        pixels = to_pixels(other).requires_grad_()
        (term,) = loss.terms(pixels, random_stream(seed))
        term.backward()
        seen = pixels.grad.abs().sum((0, 1)) > 0
        rows, columns = (torch.where(seen.any(side))[0] // vae.multiple for side in (1, 0))
        inside = (..., slice(rows[0] + 1, rows[-1]), slice(columns[0] + 1, columns[-1]))
        vae.sizes.clear()
        view = loss._drawn_view(vae.multiple, random_stream(loss._roots(random_stream(seed))[0]))
        windows = vae.network(view(to_pixels(other))) - vae.network(view(to_pixels(clean)))
        torch.testing.assert_close(
            windows[..., 1 : 1 + moved[inside].shape[-2], 1 : 1 + moved[inside].shape[-1]], moved[inside]
        )


def test_when_memory_runs_out_the_windows_become_smaller_and_then_no_more():
    loss = LatentLoss([TinyVae()], to_pixels(picture(300, 400)), 0.4, 0.3)
    sides = [loss.side]
    while loss.shrink():
        sides.append(loss.side)
    assert sides[-1] >= 64 > sides[-1] / 1.5
    assert all(a > b for a, b in zip(sides, sides[1:], strict=False))
    assert not LatentLoss([TinyVae()], to_pixels(picture(60, 60)), 0.4, 0.3).shrink()


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (25, 30), (64, 33)])
def test_pictures_of_any_size_are_protected_within_the_ball(size):
    clean = picture(*size)
    protected = protect(clean, VaeTargets((TinyVae(),)), LATENT, AttackSettings(4, 6))
    assert float(((protected - clean) * 255).abs().max()) <= 4 + 1e-3
    assert not torch.equal(protected, clean)


def test_the_shift_grows_and_more_than_by_random_signs():
    clean, vae = picture(48, 48), TinyVae()
    protected = protect(clean, VaeTargets((vae,)), LATENT, AttackSettings(8, 20))
    signs = torch.randint(2, clean.shape, generator=torch.Generator().manual_seed(5)) * 2.0 - 1
    random = (clean + 8 / 255 * signs).clamp(0, 1)
    assert float(latent_shift(clean, protected, vae).value) > 1.3 * float(latent_shift(clean, random, vae).value)


def test_each_target_contributes_the_terms_it_has_the_model_for(tiny):
    vaes, clean = VaeTargets((TinyVae(),)), to_pixels(picture(32, 32))
    robust = PRESETS["robust"]
    alone = antipure_loss(vaes, robust, clean)
    both = antipure_loss(combine(tiny, vaes, "mean"), robust, clean)
    pixel = antipure_loss(tiny, robust, clean)
    assert [len(loss.members) for loss in (alone, both, pixel)] == [1, 2, 1]
    with pytest.raises(AntiPureError, match="diffusion model"):
        antipure_loss(vaes, PRESETS["strong"], clean)
    with pytest.raises(AntiPureError, match="VAE"):
        antipure_loss(tiny, LATENT, clean)


def test_targets_are_found_behind_combinations(tiny, make_tiny):
    vaes, more = VaeTargets((TinyVae(0), TinyVae(1))), VaeTargets((TinyVae(2),))
    other = make_tiny(seed=9)
    target = combine(combine(vaes, tiny, "mean"), combine(more, other, "worst"), "mean")
    assert encoders_of(target) == [*vaes.autoencoders, *more.autoencoders]
    denoisers = without_vaes(target)
    assert denoisers.members == (tiny, other)
    assert without_vaes(combine(vaes, tiny, "mean")) is tiny
    assert without_vaes(combine(vaes, more, "mean")) is None
    with target.session() as batching:
        assert len(batching.members) == 4


def test_no_fourier_bin_holds_more_than_its_share_even_on_a_flat_picture(tiny):
    flat = torch.full((1, 3, 48, 48), 0.5)
    target = combine(tiny, VaeTargets((TinyVae(),)), "mean")
    for objective, below in ((PRESETS["robust"], True), (replace(PRESETS["robust"], peak_share=1), False)):
        change = (protect(flat, target, objective, AttackSettings(8, 12)) - flat).double()
        power = torch.fft.fft2(change).abs().square().sum((0, 1))
        pairs = power + power.flip(0, 1).roll((1, 1), (0, 1))
        assert (float(pairs.max() / power.sum()) < 0.012) == below


def test_same_seed_same_bytes_and_no_influence_of_the_batch(tiny):
    target = combine(tiny, VaeTargets((TinyVae(),)), "mean")
    pair = torch.cat([picture(40, 40), picture(40, 40, seed=1)])
    settings = AttackSettings(8, 5, seeds=[7, 8])
    together = protect(pair, target, PRESETS["robust"], settings)
    assert torch.equal(together, protect(pair, target, PRESETS["robust"], settings))
    alone = protect(pair[1:], target, PRESETS["robust"], AttackSettings(8, 5, seeds=8))
    assert torch.equal(together[1:], alone)
