"""The losses: every term against its formula, the whole against an evaluation tile by tile, gradients against
finite differences."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from antipure.kernels.filters import gaussian_blur
from antipure.methods.antipure.guidance import l_errt, l_fre, paper_terms
from antipure.methods.antipure.objective import PRESETS, Objective
from antipure.methods.antipure.perceptual import balance_colours
from antipure.methods.antipure.protect import antipure_loss, protect
from antipure.methods.antipure.unrolled import (
    high_pass,
    random_half,
    random_orientation,
    unrolled_purification,
    unrolled_term,
)
from antipure.methods.attacks.pgd import pgd
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.diffusion.denoiser import Denoiser
from antipure.methods.diffusion.loss import l_ddpm
from antipure.methods.errors import AntiPureError
from antipure.methods.pictures import pad_reflect, random_positions, random_stream, round_8bit, to_pixels
from antipure.methods.purification.transforms import resize
from scipy import ndimage
from scipy.fft import dctn

MIXED = Objective(ddpm=0.7, pfg=3.0, etg=0.4, unrolled=5.0, patch_size=4, t_p=20, t_err=250, unrolled_steps=2)
# Half size rounds to 8 bits and passes the gradient straight through: not what a difference quotient sees.
SMOOTH_STRONG = replace(PRESETS["strong"], halved=0)
OBJECTIVES = {"paper": PRESETS["paper"], "unrolled": PRESETS["unrolled"], "strong": SMOOTH_STRONG, "mixed": MIXED}


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_pixels(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=stream(seed)) * 2 - 1


def total(loss, pixels: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return sum(loss.terms(pixels, random_stream(seed)))


def slow_high_pass(x: np.ndarray, window: int) -> np.ndarray:
    """x minus the mean over the window's part inside the picture; 3 pixels before, 4 after for a window of 8."""
    h, w = x.shape[-2:]
    out = np.empty_like(x)
    for i in range(h):
        for j in range(w):
            rows = range(max(0, i - (window - 1) // 2), min(h, i + window // 2 + 1))
            columns = range(max(0, j - (window - 1) // 2), min(w, j + window // 2 + 1))
            out[..., i, j] = x[..., i, j] - x[..., rows, :][..., columns].mean((-2, -1))
    return out


def slow_fre(x: np.ndarray, size: int) -> float:
    """Sigmoid of the mean over patches and channels of 4/s² times the sum of the high coefficients."""
    sums = []
    for channel in x:
        for y in range(0, channel.shape[0] - size + 1, size):
            for left in range(0, channel.shape[1] - size + 1, size):
                patch = dctn(channel[y : y + size, left : left + size], norm="ortho")
                sums.append(patch[size // 2 :, size // 2 :].sum() * 4 / size**2)
    return 1 / (1 + math.exp(-np.mean(sums)))


def test_l_ddpm_and_l_errt_are_mean_squares_per_sample():
    a, b = torch.randn(2, 4, 3, 5, 7, generator=stream())
    expected = [np.mean((a[i].double().numpy() - b[i].double().numpy()) ** 2) for i in range(4)]
    np.testing.assert_allclose(l_ddpm(a, b).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(l_errt(a, b).numpy(), np.negative(expected), rtol=1e-5)


@pytest.mark.parametrize(("size", "height", "width"), [(8, 16, 24), (4, 11, 9), (2, 2, 2)])
def test_l_fre_is_the_sigmoid_of_the_signed_high_frequency_mean(size, height, width):
    x = 20 * torch.randn(2, 3, height, width, generator=stream())
    expected = [slow_fre(sample.double().numpy(), size) for sample in x]
    assert max(abs(e - 0.5) for e in expected) > 0.01
    np.testing.assert_allclose(l_fre(x, size).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (8, 8), (11, 13)])
@pytest.mark.parametrize("window", [8, 5, 4])
def test_high_pass_takes_away_the_local_mean(height, width, window):
    x = torch.randn(2, 3, height, width, dtype=torch.float64, generator=stream())
    np.testing.assert_allclose(high_pass(x, window).numpy(), slow_high_pass(x.numpy(), window), atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 9), (16, 16), (37, 20)])
def test_high_pass_leaves_nothing_of_a_constant_up_to_the_borders(height, width):
    assert high_pass(torch.full((1, 3, height, width), 0.83)).abs().max() < 1e-6


def test_high_pass_keeps_a_checkerboard():
    x = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1
    assert (high_pass(x[None, None]) - x)[..., 4:-4, 4:-4].abs().max() < 1e-6


def slow_paper_terms(denoiser: Denoiser, tile: torch.Tensor, generator: torch.Generator, o: Objective) -> float:
    """The paper's bracket for one tile (1×3×T×T), a forward of its own per term, in float64 around the network."""
    t = int(torch.randint(o.t_p, (1,), generator=generator))
    eps = torch.randn(tile.shape[1:], generator=generator)[None]
    abar = float(denoiser.alphas_cumprod[t])
    x_t = math.sqrt(abar) * tile + math.sqrt(1 - abar) * eps
    first = denoiser.predict_noise(x_t, torch.tensor([t])).double().numpy()
    second = denoiser.predict_noise(x_t, torch.tensor([o.t_err - 1])).double().numpy()
    ddpm = np.mean((eps.double().numpy() - first) ** 2)
    x0_hat = (x_t.double().numpy() - math.sqrt(1 - abar) * first) / math.sqrt(abar)
    errt = -np.mean((second - first) ** 2)
    fre = slow_fre(x0_hat[0], o.patch_size)
    return o.ddpm * ddpm + o.pfg * math.exp(abar - 1) * fre + o.etg * math.exp(errt)


def slow_unrolled_term(
    denoiser: Denoiser, tile: torch.Tensor, clean: torch.Tensor, generator: torch.Generator, o: Objective
) -> float:
    t = o.unrolled_t
    if o.unrolled_t_low:
        t = int(torch.randint(o.unrolled_t_low, o.unrolled_t + 1, (1,), generator=generator))
    if o.turned:
        turned = float(torch.rand((), generator=generator)) < o.turned
        orientation = int(torch.randint(8, (), generator=generator))
        if turned:
            quarters, mirrored = orientation % 4, orientation >= 4
            tile, clean = (torch.from_numpy(np.rot90(x.numpy(), quarters, (-2, -1)).copy()) for x in (tile, clean))
            if mirrored:
                tile, clean = tile[..., torch.arange(15, -1, -1)], clean[..., torch.arange(15, -1, -1)]
    abar = float(denoiser.alphas_cumprod[t - 1])
    z = tile
    for _ in range(o.unrolled_steps):
        eps = torch.randn(tile.shape[1:], generator=generator)[None]
        x_t = math.sqrt(abar) * z + math.sqrt(1 - abar) * eps
        predicted = denoiser.predict_noise(x_t, torch.tensor([t - 1]))
        z = ((x_t - math.sqrt(1 - abar) * predicted) / math.sqrt(abar)).clamp(-1, 1)
    return float(np.mean(slow_high_pass((z - clean).double().numpy(), 4) ** 2))


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(("height", "width"), [(16, 16), (24, 40), (7, 20)])
def test_the_whole_loss_is_the_mean_over_tiles_of_the_formula(tiny, name, height, width):
    o = OBJECTIVES[name]
    clean, pixels = random_pixels(height, width), random_pixels(height, width, 1)
    with torch.no_grad():
        value = total(antipure_loss(tiny, o, clean), pixels, 3).item()
        generator = random_stream(3)
        size = (max(height, 16), max(width, 16))
        x, reference = pad_reflect(pixels, *size), pad_reflect(clean, *size)
        positions = random_positions(*size, 16, generator)
        root = int(torch.randint(2**62, (), generator=generator))
        values = []
        for i, (y, left) in enumerate(positions):
            own = random_stream(root, i)
            tile = x[..., y : y + 16, left : left + 16]
            term = 0.0
            if o.ddpm or o.pfg or o.etg:
                term += slow_paper_terms(tiny, tile, own, o)
            if o.unrolled:
                before = reference[..., y : y + 16, left : left + 16]
                term += o.unrolled * slow_unrolled_term(tiny, tile, before, own, o)
            values.append(term)
    assert value == pytest.approx(np.mean(values), rel=2e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(("height", "width"), [(24, 40), (7, 50), (50, 7)])
def test_small_memory_gives_the_same_loss_and_gradient_in_more_batches(make_tiny, name, height, width):
    clean, pixels = random_pixels(height, width), random_pixels(height, width, 1)
    results = []
    for memory in (2**30, 1):
        denoiser = make_tiny()
        denoiser.memory_bytes = memory
        loss = antipure_loss(denoiser, OBJECTIVES[name], clean)
        leaf = pixels.clone().requires_grad_()
        count, value = 0, 0.0
        for term in loss.terms(leaf, random_stream(0)):
            term.backward()
            count, value = count + 1, value + term.item()
        results.append((count, value, leaf.grad))
    (few, value, gradient), (many, split_value, split_gradient) = results
    assert few == 1
    assert many > 1
    assert split_value == pytest.approx(value, rel=1e-5)
    assert (split_gradient - gradient).norm() <= 1e-5 * gradient.norm()


def test_the_number_of_batches_follows_the_measured_activations(make_tiny):
    denoiser = make_tiny()
    denoiser.memory_bytes = 2 * 16 * 16 * denoiser.bytes_per_pixel() * 5 + 1
    objective = Objective(ddpm=0, pfg=0, etg=0, unrolled=1, unrolled_steps=5)  # 5 forwards' activations at a time
    loss = antipure_loss(denoiser, objective, random_pixels(16, 64))
    generator = random_stream(1)
    tiles = len(random_positions(16, 64, 16, random_stream(1)))
    assert len(list(loss.terms(random_pixels(16, 64), generator))) == math.ceil(tiles / 2)


def test_one_forward_per_batch_serves_all_three_terms_of_the_paper(spy):
    x = random_pixels(16, 16)
    total(antipure_loss(spy, PRESETS["paper"], x), x)
    assert spy.shapes == [(2, 3, 16, 16)], "the tile at t and at t_err, in one call"
    spy.shapes.clear()
    total(antipure_loss(spy, Objective(etg=0), x), x)
    assert spy.shapes == [(1, 3, 16, 16)]
    spy.shapes.clear()
    total(antipure_loss(spy, PRESETS["strong"], x), x)
    assert spy.shapes == [(1, 3, 16, 16)] * PRESETS["strong"].unrolled_steps


def test_timesteps_are_drawn_from_1_to_t_p_per_tile_and_t_err_is_fixed(spy):
    tiles = random_pixels(16, 16).expand(400, 3, 16, 16)
    paper_terms(spy, tiles, [random_stream(i) for i in range(400)], Objective(t_p=10, t_err=100))
    (seen,) = spy.timesteps_seen
    assert set(seen[:400]) == set(range(10)), "0-based"
    assert max(seen[:400].count(t) for t in range(10)) < 70
    assert set(seen[400:]) == {99}


def test_the_unrolled_objective_purifies_at_its_timestep(spy):
    x = random_pixels(16, 16)
    total(antipure_loss(spy, Objective(ddpm=0, pfg=0, etg=0, unrolled=1, unrolled_steps=4, unrolled_t=7), x), x)
    assert spy.timesteps_seen == [[6]] * 4


class Smooth(Denoiser):
    """A small differentiable network in float64, with a learned dependence on t; close to predicting zero noise."""

    tile, multiple = 8, 1

    def __init__(self):
        generator = stream(7)
        self.alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
        self.first = torch.randn(6, 3, 3, 3, dtype=torch.float64, generator=generator) * 0.3
        self.second = torch.randn(3, 6, 3, 3, dtype=torch.float64, generator=generator) * 0.3

    def encode(self, pixels):
        return pixels

    def decode(self, latent):
        return latent

    def predict(self, x_t, t):
        shift = (t.double() / 100).view(-1, 1, 1, 1)
        return F.conv2d(torch.tanh(F.conv2d(x_t, self.first, padding=1) + shift), self.second, padding=1), None

    def bytes_per_pixel(self):
        return 1.0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_hold_against_central_differences(name):
    denoiser = Smooth()
    clean = random_pixels(8, 13).double() * 0.1  # far from the clamp's edges
    loss = antipure_loss(denoiser, OBJECTIVES[name], clean)
    leaf = (clean + 0.02 * torch.randn(clean.shape, generator=stream(2))).requires_grad_()
    value = total(loss, leaf)
    assert value.dtype == torch.float64
    (gradient,) = torch.autograd.grad(value, leaf)
    with torch.no_grad():
        for seed in range(4):
            direction = torch.randn(clean.shape, dtype=torch.float64, generator=stream(10 + seed))
            h = 1e-4
            slope = (total(loss, leaf + h * direction) - total(loss, leaf - h * direction)) / (2 * h)
            assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-9)


def test_the_denoisers_parameters_get_no_gradient(tiny):
    for objective in OBJECTIVES.values():
        x = random_pixels(16, 20)
        leaf = x.clone().requires_grad_()
        total(antipure_loss(tiny, objective, x), leaf).backward()
        assert leaf.grad.abs().max() > 0
        assert all(p.grad is None and not p.requires_grad for p in tiny.unet.parameters())


def test_a_uniform_shift_earns_nothing_in_the_unrolled_objective(tiny):
    clean = torch.cat([random_pixels(16, 16), random_pixels(16, 16, 1)])

    def term(reference):
        return unrolled_term(tiny, clean, reference, [random_stream(0), random_stream(1)], PRESETS["strong"])

    assert term(clean).min() > 0
    torch.testing.assert_close(term(clean + 0.3), term(clean), rtol=1e-4, atol=1e-8)
    assert not torch.allclose(term(clean.flip(-1)), term(clean), rtol=1e-2), "but structure counts"


def test_each_tile_draws_its_own_timestep_from_the_range(spy):
    tiles = random_pixels(16, 16).expand(300, 3, 16, 16)
    objective = Objective(ddpm=0, pfg=0, etg=0, unrolled=1, unrolled_steps=2, unrolled_t=12, unrolled_t_low=9)
    unrolled_term(spy, tiles, tiles, [random_stream(i) for i in range(300)], objective)
    first, second = spy.timesteps_seen
    assert set(first) == {8, 9, 10, 11}, "0-based"
    assert first == second, "one for the whole chain"
    assert max(first.count(t) for t in range(8, 12)) < 110


def test_the_eight_orientations_are_those_of_a_square_and_the_same_for_the_clean_tile():
    tile = random_pixels(6, 6)
    tiles, generators = tile.expand(200, 3, 6, 6), [random_stream(i) for i in range(200)]
    turned, clean = random_orientation([tiles, tiles + 1], 1.0, generators)
    assert torch.equal(clean, turned + 1)
    found = {t.numpy().tobytes() for t in turned}
    sides = [tile[0].numpy(), tile[0].numpy()[..., ::-1]]
    assert found == {np.rot90(side, k, (-2, -1)).copy().tobytes() for side in sides for k in range(4)}


def test_a_share_of_the_tiles_is_turned():
    tiles = random_pixels(6, 6).expand(400, 3, 6, 6)
    assert torch.equal(random_orientation([tiles], 0.0, [random_stream(i) for i in range(400)])[0], tiles)
    (turned,) = random_orientation([tiles], 0.5, [random_stream(i) for i in range(400)])
    share = (turned != tiles).flatten(1).any(1).float().mean()
    assert abs(share - 0.5 * 7 / 8) < 0.08, "one of the eight orientations is the tile's own"


def test_half_size_is_the_transform_and_only_for_the_chosen():
    tiles = (random_pixels(16, 16).expand(60, 3, 16, 16) * 0.8).contiguous()
    halved, clean = random_half([tiles, -tiles], 0.3, [random_stream(i) for i in range(60)])
    chosen = (halved != tiles).flatten(1).any(1)
    assert 8 <= chosen.sum() <= 28
    assert torch.equal((clean != -tiles).flatten(1).any(1), chosen)
    expected = resize((tiles[:1] + 1) / 2, 0.5) * 2 - 1
    torch.testing.assert_close(halved[chosen], expected.expand(int(chosen.sum()), -1, -1, -1))


def test_less_grey_leaves_a_perturbation_with_less_grey(tiny):
    """The share of the perturbation's energy that the three channels have in common falls."""
    x = round_8bit(torch.rand(1, 3, 24, 24, generator=stream(5)) * 0.5 + 0.25)

    def grey_share(luminance):
        objective = Objective(ddpm=0, pfg=0, etg=0, unrolled=1, unrolled_steps=1, luminance=luminance)
        delta = protect(x, tiny, objective, AttackSettings(levels=8, steps=6)) - x
        return (delta.mean(1).square().mean() / delta.square().mean()).item()

    assert grey_share(0.0) < 0.6 * grey_share(1.0)


def test_protect_is_pgd_on_the_objective(tiny):
    x = round_8bit(torch.rand(1, 3, 20, 24, generator=stream(5)))
    objective = PRESETS["unrolled"]
    settings = AttackSettings(levels=6, steps=2, seeds=3)
    expected = pgd(x, partial(antipure_loss, tiny, objective), settings)
    assert torch.equal(protect(x, tiny, objective, settings), expected)
    mask = torch.zeros(1, 1, 20, 24)
    mask[..., 5:15] = 1
    shaped = protect(x, tiny, PRESETS["strong_shaped"], replace(settings, mask=mask))
    assert torch.equal(shaped * (1 - mask), x * (1 - mask)), "the user's mask holds, too"


def test_unrolled_purification_stays_in_the_models_range(tiny):
    x = 3 * random_pixels(16, 16)
    pure = unrolled_purification(tiny, x, [random_stream(0)], 2, 30)
    assert pure.abs().max() <= 1


def test_presets_say_what_they_are():
    paper, strong = PRESETS["paper"], PRESETS["strong"]
    assert (paper.ddpm, paper.pfg, paper.etg, paper.unrolled) == (1, 0.5, 0.5, 0)
    assert (paper.t_p, paper.t_err, paper.patch_size) == (10, 100, 8)
    assert (strong.ddpm, strong.pfg, strong.etg) == (0, 0, 0)
    assert strong.unrolled > 0
    first = PRESETS["unrolled"]
    assert first == Objective(ddpm=0, pfg=0, etg=0, unrolled=1), "shared workflows may name the first version"
    assert replace(PRESETS["strong_shaped"], shaped=False) == strong
    assert replace(PRESETS["fast"], start_blur=0, step_share=1) == strong, "the same objective"


@pytest.mark.parametrize(("asked", "run"), [(100, 9), (40, 3), (1, 1)])
def test_fast_is_strong_from_the_blurred_picture_in_few_steps(tiny, asked, run):
    x = round_8bit(torch.rand(2, 3, 18, 20, generator=stream(5)))
    done = []
    fast = protect(
        x, tiny, PRESETS["fast"], AttackSettings(levels=6, steps=asked, progress=lambda *args: done.append(args[:2]))
    )
    assert done[-1] == (2 * run, 2 * run)
    blurred = torch.from_numpy(ndimage.gaussian_filter(x.numpy(), 1.0, mode="nearest", axes=(2, 3)))
    start = gaussian_blur(x, 1.0)
    torch.testing.assert_close(start, blurred, rtol=0, atol=2e-6)
    expected = protect(x, tiny, PRESETS["strong"], AttackSettings(levels=6, steps=run))
    assert (fast - x).abs().max() * 255 <= 6 + 1e-3
    assert not torch.equal(fast, expected)
    strong = PRESETS["strong"]
    assert torch.equal(
        fast,
        pgd(
            x,
            partial(antipure_loss, tiny, strong),
            AttackSettings(levels=6, steps=run),
            start=start,
            precondition=partial(balance_colours, luminance=strong.luminance),
        ),
    )


@pytest.mark.parametrize("name", ["strong", "paper"])
def test_pgd_raises_the_loss_it_is_given(tiny, name):
    """On noise it has not seen, beyond what random signs of the same size reach."""
    x = round_8bit(torch.rand(1, 3, 20, 24, generator=stream(5)))
    make_loss = partial(antipure_loss, tiny, PRESETS[name])
    protected = pgd(x, make_loss, AttackSettings(levels=8, steps=12))
    signs = (torch.randint(2, x.shape, generator=stream(1)) * 2 - 1) * 8 / 255
    loss = make_loss(to_pixels(x))

    def evaluate(picture):
        with torch.no_grad():
            return np.mean([total(loss, to_pixels(picture), 1000 + s).item() for s in range(8)])

    before, random, after = evaluate(x), evaluate((x + signs).clamp(0, 1)), evaluate(protected)
    assert after > before
    assert after > random


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Objective(ddpm=0, pfg=0, etg=0), "All weights"),
        (Objective(t_p=0), "t_p is 0"),
        (Objective(t_p=1001, etg=0), "t_p is 1001"),
        (Objective(t_err=10), "t_err is 10"),
        (Objective(t_err=1001), "t_err is 1001"),
        (Objective(patch_size=0), "patch size is 0"),
        (Objective(patch_size=7), "patch size is 7"),
        (Objective(patch_size=18), "patch size of 18 does not fit into 16-px tiles"),
        (Objective(unrolled=1, unrolled_steps=0), "0 unrolled steps"),
        (Objective(unrolled=1, unrolled_t=0), "at timestep 0"),
        (Objective(unrolled=1, unrolled_t=1001), "at timestep 1001"),
        (Objective(unrolled_t=20, unrolled_t_low=21), "unrolled_t_low is 21"),
        (Objective(turned=1.5), "turned is 1.5"),
        (Objective(start_blur=-1), "start_blur is -1"),
        (Objective(step_share=0), "step_share is 0"),
        (Objective(halved=-0.1), "halved is -0.1"),
        (Objective(luminance=1.1), "luminance is 1.1"),
        (Objective(first_step=-0.1), "first_step is -0.1"),
        (Objective(view_least=0), "view_least is 0"),
        (Objective(views_as_is=2), "views_as_is is 2"),
        (Objective(pull=-1), "pull is -1"),
        (Objective(peak_share=0), "peak_share is 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_a_sentence(tiny, objective, message):
    with pytest.raises(AntiPureError, match=message):
        antipure_loss(tiny, objective, random_pixels(16, 16))


def test_settings_of_terms_that_are_off_do_not_matter(tiny):
    x = random_pixels(16, 16)
    off = Objective(etg=0, t_err=5, unrolled_t=5000, unrolled_steps=0)
    assert math.isfinite(total(antipure_loss(tiny, off, x), x).item())
    strong = Objective(ddpm=0, pfg=0, etg=0, unrolled=1, patch_size=64, t_err=0)
    assert math.isfinite(total(antipure_loss(tiny, strong, x), x).item())
