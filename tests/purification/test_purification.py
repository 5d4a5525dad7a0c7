"""Purifiers: the DDPM step against diffusers' scheduler, GrIDPure against a slow loop, and an oracle that knows x0."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from antipure.methods.diffusion.denoiser import Denoiser
from antipure.methods.errors import AntiPureError
from antipure.methods.memory import is_out_of_memory
from antipure.methods.pictures import random_stream, round_8bit, to_picture, to_pixels
from antipure.methods.purification.ddpm import ddpm_step, respaced_timesteps, sdedit
from antipure.methods.purification.diffpure import diffpure
from antipure.methods.purification.gridpure import gridpure
from antipure.methods.purification.purify import METHODS, purify
from antipure.methods.purification.vae import vae_round_trip
from diffusers import DDPMScheduler


def picture(height: int, width: int, seed: int = 0, batch: int = 1) -> torch.Tensor:
    """Random 8-bit pictures, smooth enough to be purified like photographs."""
    x = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))
    return round_8bit(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))


def levels(x: torch.Tensor) -> np.ndarray:
    return np.rint(x.numpy() * 255).astype(int)


def scheduler_for(denoiser: Denoiser, variance_type: str = "fixed_small") -> DDPMScheduler:
    scheduler = DDPMScheduler(variance_type=variance_type, clip_sample=True)
    scheduler.alphas_cumprod = denoiser.alphas_cumprod
    return scheduler


@pytest.mark.parametrize("t", [0, 1, 2, 9, 99, 500, 999])
@pytest.mark.parametrize("variance_type", ["fixed_small", "learned_range"])
def test_a_step_is_diffusers_ddpm_step(tiny, t, variance_type):
    generator = torch.Generator().manual_seed(t)
    x_t, eps = torch.randn(2, 2, 3, 9, 7, generator=generator)
    variance = None
    output = eps
    if variance_type == "learned_range":
        variance = torch.rand(x_t.shape, generator=generator) * 2 - 1
        output = torch.cat([eps, variance], 1)
    expected = scheduler_for(tiny, variance_type).step(output, t, x_t, generator=torch.Generator().manual_seed(5))
    step_noise = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(5))
    actual = ddpm_step(tiny, x_t, eps, t, step_noise, variance)
    torch.testing.assert_close(actual, expected.prev_sample, rtol=1e-5, atol=2e-6)
    if t:
        assert not torch.equal(actual, ddpm_step(tiny, x_t, eps, t, None, variance)), "noise must be added above t = 0"


@pytest.mark.parametrize("timestep", [1, 2, 10, 150])
def test_denoising_visits_every_timestep_down_to_0_once(spy, timestep):
    steps = []
    z = torch.zeros(2, 3, 4, 4)
    with torch.no_grad():
        sdedit(spy, z, timestep, [random_stream(0), random_stream(1)], lambda: steps.append(1))
    assert spy.timesteps_seen == [[t, t] for t in reversed(range(timestep))]
    assert len(steps) == timestep


@pytest.mark.parametrize(("timestep", "substeps"), [(10, 5), (10, 10), (10, 1), (10, 3), (100, 7), (7, 6)])
def test_substeps_are_evenly_spaced_from_the_highest_down(spy, timestep, substeps):
    with torch.no_grad():
        sdedit(spy, torch.zeros(1, 3, 4, 4), timestep, [random_stream(0)], substeps=substeps)
    seen = [t for (t,) in spy.timesteps_seen]
    assert seen == respaced_timesteps(timestep, substeps)
    assert len(seen) == substeps
    assert seen[0] == timestep - 1
    gaps = -np.diff([*seen, -1])
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1
    assert respaced_timesteps(10, 5) == [9, 7, 5, 3, 1]


@pytest.mark.parametrize("name", ["gridpure", "diffpure"])
def test_all_substeps_are_todays_sampler_and_fewer_are_another(tiny, name):
    x = picture(18, 21)
    whole = PURIFIERS[name](x, tiny, seed=3)
    timestep = PURIFIERS[name].keywords["timestep"]
    assert torch.equal(PURIFIERS[name](x, tiny, seed=3, substeps=timestep), whole)
    assert not torch.equal(PURIFIERS[name](x, tiny, seed=3, substeps=2), whole)


class Gaussian(Denoiser):
    """The exact denoiser of pictures whose pixels are independent N(mean, deviation²): eps_hat = E[eps | x_t]."""

    tile, multiple, clip_x0 = None, 1, False

    def __init__(self, mean: float, deviation: float):
        self.alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
        self.mean, self.deviation = mean, deviation
        self.states: list[tuple[int, torch.Tensor]] = []

    def encode(self, pixels):
        return pixels

    def decode(self, latent):
        return latent

    def predict(self, x_t, t):
        self.states.append((int(t[0]), x_t))
        a = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        return (1 - a).sqrt() * (x_t - a.sqrt() * self.mean) / (a * self.deviation**2 + 1 - a), None

    def bytes_per_pixel(self):
        return 1.0


@pytest.mark.parametrize("substeps", [0, 50, 13, 2, 1])
def test_whatever_the_spacing_the_marginals_are_those_of_the_forward_process(substeps):
    """With a denoiser that knows the picture, x_t is N(sqrt(abar_t) x0, 1 - abar_t) at every timestep visited."""
    denoiser = Gaussian(0.3, 0.0)
    result = sdedit(denoiser, torch.full((1, 3, 200, 200), 0.3), 150, [random_stream(1)], substeps=substeps)
    torch.testing.assert_close(result, torch.full_like(result, 0.3), rtol=0, atol=1e-4)
    for t, x_t in denoiser.states:
        abar = float(denoiser.alphas_cumprod[t])
        assert float(x_t.mean()) == pytest.approx(abar**0.5 * 0.3, abs=5 * (1 - abar) ** 0.5 / 120000**0.5)
        assert float(x_t.var()) == pytest.approx(1 - abar, rel=5 * (2 / 120000) ** 0.5)


@pytest.mark.parametrize("substeps", [0, 20, 5, 1])
def test_a_gaussian_world_in_closed_form(substeps):
    """Every step is linear in x_t there: mean and variance follow from DDIM's own equation, in float64."""
    mean, deviation, x0, timestep = 0.2, 0.15, 0.6, 100
    denoiser = Gaussian(mean, deviation)
    result = sdedit(denoiser, torch.full((1, 3, 200, 200), x0), timestep, [random_stream(2)], substeps=substeps)
    count = substeps or timestep
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    expected, variance = np.sqrt(abar[timestep - 1]) * x0, 1 - abar[timestep - 1]
    times = [int(np.ceil((count - i) * timestep / count)) - 1 for i in range(count)]
    for t, before in zip(times, [*times[1:], None], strict=True):
        a, b = abar[t], 1.0 if before is None else abar[before]
        sigma = np.sqrt((1 - b) / (1 - a) * (1 - a / b))  # DDIM, eq. 16 with eta = 1
        # DDIM, eq. 12: sqrt(b) x0_hat + sqrt(1 - b - sigma²) eps_hat + sigma z, both linear in x_t
        eps_slope = np.sqrt(1 - a) / (a * deviation**2 + 1 - a)
        x0_slope = (1 - np.sqrt(1 - a) * eps_slope) / np.sqrt(a)
        eps_offset = -eps_slope * np.sqrt(a) * mean
        x0_offset = -np.sqrt(1 - a) * eps_offset / np.sqrt(a)
        along = np.sqrt(max(1 - b - sigma**2, 0))
        slope = np.sqrt(b) * x0_slope + along * eps_slope
        expected = slope * expected + np.sqrt(b) * x0_offset + along * eps_offset
        variance = slope**2 * variance + sigma**2
    assert float(result.mean()) == pytest.approx(expected, abs=1e-5 + 5 * (variance / 120000) ** 0.5)
    assert float(result.var()) == pytest.approx(variance, rel=0.03)


def test_progress_counts_the_substeps(tiny):
    for name in PURIFIERS:
        calls = []
        PURIFIERS[name](picture(16, 16), tiny, substeps=2, progress=lambda done, total, *_: calls.append((done, total)))  # noqa: B023
        assert calls[-1][0] == calls[-1][1] == 2 * 2 * (2 if name == "gridpure" else 1)


@torch.no_grad()
def slow_denoise(denoiser: Denoiser, tile: torch.Tensor, timestep: int, generator: torch.Generator) -> torch.Tensor:
    """One tile (1×3×T×T) by diffusers' scheduler."""
    scheduler = scheduler_for(denoiser)
    abar = float(denoiser.alphas_cumprod[timestep - 1])
    x = abar**0.5 * tile + (1 - abar) ** 0.5 * torch.randn(tile.shape, generator=generator)
    for t in range(timestep - 1, -1, -1):
        eps = denoiser.predict_noise(x, torch.tensor([t]))
        x = scheduler.step(eps, t, x, generator=generator).prev_sample
    return x


def slow_gridpure(x, denoiser, timestep, iterations, gamma, seed) -> np.ndarray:
    """GrIDPure as the paper tells it, tile after tile in numpy. x: 1×3×H×W. Returns 3×H×W levels."""
    tile, half = denoiser.tile, denoiser.tile // 2
    h, w = x.shape[-2:]
    height, width = max(h, tile), max(w, tile)
    current = np.pad(x[0].double().numpy(), ((0, 0), (0, height - h), (0, width - w)), mode="reflect")
    rows, columns = ([], [])
    for starts, size in ((rows, height), (columns, width)):
        start = 0
        while start + tile < size:
            starts.append(start)
            start += half
        starts.append(size - tile)
    for iteration in range(iterations):
        acc, count = np.zeros_like(current), np.zeros((height, width))
        index = 0

        def pure_tile(block, index, iteration):
            pixels = torch.from_numpy(2 * block - 1).float()[None]
            pure = slow_denoise(denoiser, pixels, timestep, random_stream(seed, iteration, index))
            return (pure[0].double().numpy() + 1) / 2

        for y in rows:
            for left in columns:
                area = np.s_[y : y + tile, left : left + tile]
                acc[(slice(None), *area)] += pure_tile(current[(slice(None), *area)], index, iteration)
                count[area] += 1
                index += 1
        areas = [np.s_[a, b] for a in (np.s_[:half], np.s_[-half:]) for b in (np.s_[:half], np.s_[-half:])]
        quarters = [current[(slice(None), *area)] for area in areas]
        composite = np.concatenate(
            [np.concatenate(quarters[:2], axis=2), np.concatenate(quarters[2:], axis=2)],
            axis=1,
        )
        pure = pure_tile(composite, index, iteration)
        pieces = (pure[:, :half, :half], pure[:, :half, half:], pure[:, half:, :half], pure[:, half:, half:])
        for area, piece in zip(areas, pieces, strict=True):
            acc[(slice(None), *area)] += piece
            count[area] += 1
        current = np.rint(np.clip((1 - gamma) * acc / count + gamma * current, 0, 1) * 255) / 255
    return np.rint(current[:, :h, :w] * 255).astype(int)


@pytest.mark.parametrize(
    ("height", "width", "timestep", "iterations", "gamma"),
    [(16, 16, 2, 2, 0.1), (24, 40, 3, 2, 0.1), (23, 50, 2, 3, 0.0), (60, 16, 2, 1, 0.9), (5, 7, 3, 2, 0.1)],
)
def test_gridpure_is_the_slow_loop(make_tiny, height, width, timestep, iterations, gamma):
    denoiser = make_tiny(tile=16)
    x = picture(height, width)
    fast = gridpure(x, denoiser, timestep=timestep, iterations=iterations, gamma=gamma, seed=4)
    slow = slow_gridpure(x, denoiser, timestep, iterations, gamma, 4)
    difference = np.abs(levels(fast)[0] - slow)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.002, "only values on the edge between two levels may round otherwise"
    assert not torch.equal(fast, x), "the purifier did something"


@pytest.mark.parametrize(("height", "width"), [(8, 12), (7, 9), (1, 1), (3, 30)])
def test_diffpure_is_the_slow_loop_on_the_mirrored_picture(make_tiny, height, width):
    denoiser = make_tiny(patch=2)
    assert denoiser.multiple == 4
    x = picture(height, width)
    fast = diffpure(x, denoiser, timestep=5, iterations=2, seed=3)
    padded = np.pad(x[0], ((0, 0), (0, -height % 4), (0, -width % 4)), mode="reflect")
    z = to_pixels(torch.from_numpy(padded))[None]
    for iteration in range(2):
        z = slow_denoise(denoiser, z, 5, random_stream(3, iteration))
    slow = round_8bit(to_picture(z[..., :height, :width]))
    assert fast.shape == x.shape
    assert np.abs(levels(fast) - levels(slow)).max() <= 1
    assert (fast != slow).float().mean() < 0.01


def test_diffpure_resizes_to_the_models_square_and_back(spy):
    x = picture(40, 25)
    result = diffpure(x, spy, timestep=3, resize=True, seed=1)
    assert set(spy.shapes) == {(1, 3, 16, 16)}
    assert result.shape == x.shape
    small = F.interpolate(to_pixels(x), (16, 16), mode="bicubic", antialias=True).clamp(-1, 1)
    pure = slow_denoise(spy.inner, small, 3, random_stream(1, 0))
    expected = round_8bit(to_picture(F.interpolate(pure, (40, 25), mode="bicubic", antialias=True)))
    assert np.abs(levels(result) - levels(expected)).max() <= 1
    spy.shapes.clear()
    diffpure(x, spy, timestep=3, resize=False)
    assert set(spy.shapes) == {(1, 3, 40, 26)}


class Oracle(Denoiser):
    """Knows what it is given to purify, and predicts exactly the noise that was added. Its model space is 2× pixels."""

    def __init__(self, tile: int | None = 16, multiple: int = 2, clip_x0: bool = False):
        self.alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
        self.tile, self.multiple, self.clip_x0 = tile, multiple, clip_x0
        self.known = torch.empty(0)

    def encode(self, pixels):
        self.known = pixels * 2
        return self.known

    def decode(self, latent):
        return latent / 2

    def predict(self, x_t, t):
        a = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        return (x_t - a.sqrt() * self.known) / (1 - a).sqrt(), None

    def bytes_per_pixel(self):
        return 1000.0


SIZES = [(1, 1), (1, 40), (2, 9), (15, 17), (16, 16), (24, 33), (47, 16), (100, 5), (200, 64), (31, 199)]
PURIFIERS = {
    "gridpure": partial(gridpure, timestep=3, iterations=2),
    "diffpure": partial(diffpure, timestep=4, iterations=2),
}


@pytest.mark.parametrize("name", PURIFIERS)
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("tile", "multiple"), [(16, 2), (15, 1), (None, 4), (None, 1)])
def test_a_perfect_denoiser_returns_the_picture_unchanged(name, height, width, tile, multiple):
    x = picture(height, width)
    assert torch.equal(PURIFIERS[name](x, Oracle(tile, multiple)), x)


@pytest.mark.parametrize("name", PURIFIERS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_any_size_comes_back_as_an_8_bit_picture_of_that_size(tiny, name, height, width):
    x = picture(height, width)
    result = PURIFIERS[name](x, tiny)
    assert result.shape == x.shape
    assert result.dtype == torch.float32
    assert torch.equal(result, round_8bit(result))
    assert not result.requires_grad


@pytest.mark.parametrize("name", PURIFIERS)
def test_purifying_keeps_no_graph(tiny, name):
    assert not PURIFIERS[name](picture(8, 8).requires_grad_(), tiny).requires_grad


@pytest.mark.parametrize("name", PURIFIERS)
def test_results_depend_on_the_seed_alone(tiny, name):
    x = picture(20, 33)
    first = PURIFIERS[name](x, tiny, seed=7)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert torch.equal(first, PURIFIERS[name](x, tiny, seed=7))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, PURIFIERS[name](x, tiny, seed=8))
    with torch.inference_mode():
        assert torch.equal(first, PURIFIERS[name](x.clone(), tiny, seed=7))


@pytest.mark.parametrize("name", PURIFIERS)
def test_each_picture_of_a_batch_is_purified_as_if_alone(tiny, name):
    x = picture(18, 21, batch=3)
    together = PURIFIERS[name](x, tiny, seed=2)
    for i in range(3):
        assert torch.equal(together[i : i + 1], PURIFIERS[name](x[i : i + 1], tiny, seed=2))


def test_small_memory_gives_the_same_picture_in_more_batches(make_tiny, spy_on):
    x = picture(40, 60)
    large, small = make_tiny(), make_tiny()
    small.memory_bytes = 1
    spies = [spy_on(denoiser) for denoiser in (large, small)]
    results = [gridpure(x, spied, timestep=3, iterations=2) for spied in spies]
    assert [shape[0] for shape in spies[0].shapes] == [4 * 7 + 1] * 6
    assert [shape[0] for shape in spies[1].shapes] == [1] * 6 * (4 * 7 + 1), "a batch per tile"
    difference = np.abs(levels(results[0]) - levels(results[1]))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001


def test_out_of_memory_halves_the_batch_and_changes_nothing(make_tiny, monkeypatch, no_room):
    """A device with room for five tiles, an estimate that says more."""
    x = picture(40, 60)
    roomy, small = make_tiny(), make_tiny()
    expected = gridpure(x, roomy, timestep=3, iterations=2)
    predict, sizes, calls = small.predict, [], []

    def limited(x_t, t):
        sizes.append(len(x_t))
        if len(x_t) > 5:
            no_room()
        return predict(x_t, t)

    monkeypatch.setattr(small, "predict", limited)
    result = gridpure(x, small, timestep=3, iterations=2, progress=lambda done, total, *_: calls.append((done, total)))
    assert [s for s in sizes if s > 5] == [29, 14, 7]
    assert [sizes.count(s) for s in (3, 2)] == [2 * 3 * 9, 2 * 3], "29 tiles: nine threes and a two"
    difference = np.abs(levels(result) - levels(expected))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001
    assert calls[-1][0] == calls[-1][1] == 2 * 3 * 29

    monkeypatch.setattr(small, "predict", no_room)
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        gridpure(x, small, timestep=3, iterations=2)
    assert is_out_of_memory(caught.value)


def test_gamma_keeps_that_share_of_the_input(tiny):
    x = picture(16, 24)
    pure = gridpure(x, tiny, timestep=5, iterations=1, gamma=0)
    blend = gridpure(x, tiny, timestep=5, iterations=1, gamma=0.75)
    assert (pure - x).abs().max() > 0.02
    inside = (pure > 0) & (pure < 1)  # the blend comes before the clamp
    assert ((0.25 * pure + 0.75 * x - blend).abs()[inside] <= 1 / 255 + 1e-6).all()


def test_a_learned_variance_is_used(make_tiny, monkeypatch):
    denoiser = make_tiny(out_channels=6)
    x = picture(16, 16)
    seen = []
    predict = denoiser.predict

    def other_variance(x_t, t):
        eps, variance = predict(x_t, t)
        seen.append(variance.shape)
        return eps, torch.ones_like(variance)

    small = gridpure(x, denoiser, timestep=20, iterations=1)
    monkeypatch.setattr(denoiser, "predict", other_variance)
    large = gridpure(x, denoiser, timestep=20, iterations=1)
    assert set(seen) == {(2, 3, 16, 16)}
    assert not torch.equal(small, large)


@pytest.mark.parametrize("name", PURIFIERS)
@pytest.mark.parametrize("memory", [1, 2**30])
def test_progress_counts_up_to_the_total(make_tiny, name, memory):
    denoiser = make_tiny()
    denoiser.memory_bytes = memory
    x = picture(20, 30, batch=2)
    calls = []
    result = PURIFIERS[name](x, denoiser, progress=lambda *args: calls.append(args))
    done, total, pictures = zip(*((*call, None)[:3] for call in calls), strict=True)
    assert len(set(total)) == 1
    assert done[-1] == total[-1]
    assert done[0] == (2 * 3 + 1 if name == "gridpure" and memory > 1 else 1), "steps of single tiles"
    assert set(np.diff(done)) <= {0, done[0]}
    finished = [p for p in pictures if p is not None]
    assert all(p.shape == (1, 3, 20, 30) for p in finished)
    assert torch.equal(round_8bit(finished[-1]), result[-1:])
    assert len(finished) == (4 if name == "gridpure" else 2)


class Cancelled(BaseException):
    pass


@pytest.mark.parametrize("name", PURIFIERS)
def test_cancelling_passes_through_at_once(spy, name):
    def cancel(*_):
        raise Cancelled

    with pytest.raises(Cancelled):
        PURIFIERS[name](picture(16, 16), spy, progress=cancel)
    assert len(spy.shapes) == 1


@pytest.mark.parametrize("name", PURIFIERS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"timestep": 0}, "timestep is 0"),
        ({"timestep": 1001}, "timestep is 1001"),
        ({"iterations": 0}, "run 0 iterations"),
        ({"substeps": -1}, "substeps is -1"),
        ({"timestep": 5, "substeps": 6}, "substeps is 6; it must lie in 1..5"),
        ({"picture": torch.full((1, 3, 8, 8), float("nan"))}, "NaN"),
        ({"picture": torch.zeros(1, 3, 0, 8)}, "no pixels"),
        ({"picture": torch.zeros(1, 8, 8, 3)}, "B×3×H×W"),
    ],
)
def test_impossible_requests_are_refused_with_a_sentence(tiny, name, arguments, message):
    with pytest.raises(AntiPureError, match=message):
        PURIFIERS[name](**{"picture": picture(8, 8), "denoiser": tiny, **arguments})


@pytest.mark.parametrize("gamma", [-0.1, 1, 1.5, float("nan")])
def test_gamma_outside_its_range_is_refused(tiny, gamma):
    with pytest.raises(AntiPureError, match="gamma is"):
        gridpure(picture(8, 8), tiny, gamma=gamma)


def test_resizing_needs_a_native_size(make_tiny):
    with pytest.raises(AntiPureError, match="no native size"):
        diffpure(picture(8, 8), make_tiny(tile=None), resize=True, timestep=2)


class Squeezing(Denoiser):
    """A pretended latent denoiser: its VAE keeps every second pixel."""

    latent, tile, multiple = True, None, 2
    alphas_cumprod = torch.linspace(0.99, 0.1, 10)

    def encode(self, pixels):
        return pixels[..., ::2, ::2]

    def decode(self, latent):
        return latent.repeat_interleave(2, -1).repeat_interleave(2, -2)

    def predict(self, x_t, t):
        raise AssertionError("a round trip predicts nothing")

    def bytes_per_pixel(self):
        return 1.0


def test_vae_round_trip_keeps_shape_and_changes_the_picture():
    original = picture(21, 35, batch=2)
    steps = []
    pure = vae_round_trip(original, Squeezing(), iterations=2, progress=lambda *args: steps.append(args[:2]))
    assert pure.shape == original.shape
    assert torch.equal(pure[..., ::2, ::2], original[..., ::2, ::2])
    assert not torch.equal(pure, original)
    assert steps == [(i, 4) for i in (1, 2, 3, 4)]


def test_vae_round_trip_needs_a_vae(tiny):
    with pytest.raises(AntiPureError, match="has no VAE"):
        vae_round_trip(picture(16, 16), tiny)


class Failing(Denoiser):
    """A denoiser whose network, encoder or decoder gives one value that is no number, from the second call on."""

    def __init__(self, inner: Denoiser, where: str, value: float):
        self.inner, self.where, self.value = inner, where, value
        self.alphas_cumprod, self.tile, self.multiple = inner.alphas_cumprod, inner.tile, inner.multiple
        self.clip_x0, self.latent, self.calls = True, True, 0

    def _spoil(self, where: str, values: torch.Tensor) -> torch.Tensor:
        if where == self.where:
            self.calls += 1
            if self.calls > 1:
                values = values.clone()
                values[0, 0, 0, 0] = self.value
        return values

    def encode(self, pixels):
        return self._spoil("encode", pixels)

    def decode(self, latent):
        return self._spoil("decode", latent)

    def predict(self, x_t, t):
        return self._spoil("predict", self.inner.predict(x_t, t)[0]), None

    def bytes_per_pixel(self):
        return self.inner.bytes_per_pixel()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("where", ["predict", "decode", "encode"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_picture_that_is_no_picture_is_never_returned(tiny, method, where, value):
    """NaN would be saved as black; an infinite prediction gives finite, saturated pixels, since x0_hat is clamped."""
    settings = {"timestep": 2, "iterations": 2}
    batch = picture(16, 16, batch=2)
    purify(method, batch, Failing(tiny, "nowhere", value), **settings)
    if method == "vae" and where == "predict":
        return  # it asks no network
    with pytest.raises(AntiPureError, match="gives NaN or infinite values for this picture, so nothing was purified"):
        purify(method, batch, Failing(tiny, where, value), **settings)
