"""PGD: the ball, the mask, seeds, and the loop against a plain re-implementation and losses with known answers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from antipure.methods.antipure.objective import PRESETS
from antipure.methods.antipure.protect import antipure_loss
from antipure.methods.attacks.loss import FunctionLoss, Loss
from antipure.methods.attacks.pgd import CHECK_EVERY, pgd
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.errors import AntiPureError
from antipure.methods.pictures import random_stream, round_8bit

SIZES = [(1, 1), (1, 9), (2, 33), (7, 8), (8, 7), (15, 16), (16, 16), (17, 15), (9, 100), (33, 64), (199, 1), (7, 200)]


def picture(height: int, width: int, seed: int = 0, batch: int = 1) -> torch.Tensor:
    """Random 8-bit pictures."""
    return round_8bit(torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)))


def saved(result: torch.Tensor) -> np.ndarray:
    """What ComfyUI's SaveImage writes, as floats."""
    return np.clip(255.0 * result.numpy(), 0, 255).astype(np.uint8).astype(np.float64)


def linear_loss(clean: torch.Tensor, weights: torch.Tensor | None = None):
    """A loss with a known gradient: fresh random weights every step, or the given ones."""

    def loss(pixels, generator):
        w = torch.randn(pixels.shape, generator=generator) if weights is None else weights
        yield (pixels * w).sum()

    return FunctionLoss(loss)


def off_grid(kind: str) -> torch.Tensor:
    x = torch.rand(1, 3, 24, 17, generator=torch.Generator().manual_seed(3))
    x[..., 0, :] = 0
    x[..., 1, :] = 1
    return {
        "8-bit": round_8bit(x),
        "continuous": x,
        "float16": round_8bit(x).half(),
        "bfloat16": round_8bit(x).bfloat16(),
        "float64": x.double(),
    }[kind]


@pytest.mark.parametrize("levels", [0.3, 0.5, 1, 6.4, 7.65, 8, 255])
@pytest.mark.parametrize("kind", ["8-bit", "continuous", "float16", "bfloat16", "float64"])
def test_the_saved_picture_lies_in_the_ball(kind, levels):
    x = off_grid(kind)
    result = pgd(x, linear_loss, AttackSettings(levels=levels, steps=3), step_levels=2 * levels)
    assert result.dtype == torch.float32
    original = 255 * x.double().numpy()
    inside = np.abs(saved(result) - original) <= levels + 1e-3
    # Where no 8-bit value lies in the ball, the pixel is left as it was.
    untouched = (result == x.float()).numpy()
    assert (inside | untouched).all()
    if levels >= 0.5:
        assert inside.all()
        assert torch.equal(result, round_8bit(result))
    assert result.min() >= 0
    assert result.max() <= 1


@pytest.mark.parametrize("levels", [0.3, 0.99])
def test_a_budget_below_one_level_leaves_an_8_bit_picture_alone(levels):
    x = picture(9, 9)
    assert torch.equal(pgd(x, linear_loss, AttackSettings(levels=levels, steps=3)), x)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("preset", ["strong", "paper"])
def test_any_size_stays_in_the_ball(tiny, height, width, preset):
    x = picture(height, width)
    objective = PRESETS[preset]
    result = pgd(x, partial(antipure_loss, tiny, objective), AttackSettings(levels=6.4, steps=2), step_levels=6)
    assert result.shape == x.shape
    assert torch.equal(result, round_8bit(result))
    assert np.abs(saved(result) - saved(x)).max() <= 6
    assert not torch.equal(result, x)


@pytest.mark.parametrize("kind", ["8-bit", "continuous", "float16"])
def test_masked_pixels_are_untouched_bit_for_bit(kind):
    x = off_grid(kind)
    mask = torch.zeros(1, 1, *x.shape[-2:])
    mask[..., 5:12, 3:] = 1
    result = pgd(x, linear_loss, AttackSettings(levels=8, steps=2, mask=mask), step_levels=8)
    outside = (mask == 0).expand_as(x)
    assert torch.equal(result[outside], x.float()[outside])
    assert not torch.equal(result[~outside], x.float()[~outside])


def test_a_soft_mask_scales_the_budget_per_pixel():
    x = torch.full((1, 3, 16, 32), 128 / 255)
    mask = torch.linspace(0, 1, 32).expand(1, 1, 16, 32)
    weights = torch.randn(x.shape)
    settings = AttackSettings(levels=8, steps=16, mask=mask, keep_grey=False)
    result = pgd(x, partial(linear_loss, weights=weights), settings)
    expected = 128 + np.sign(weights.numpy()) * np.floor(8 * mask.numpy().astype(np.float64) + 1e-5)
    np.testing.assert_array_equal(saved(result), expected)


@pytest.mark.parametrize("steps", [1, 2, 5, 16, 40])
def test_a_linear_loss_ends_in_the_corner_of_the_ball(steps):
    x = picture(20, 31)
    x[..., :3, :] = 2 / 255
    x[..., 3:6, :] = 253 / 255
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    weights[..., -1, :] = 0
    result = pgd(x, partial(linear_loss, weights=weights), AttackSettings(levels=8, steps=steps))
    expected = np.clip(saved(x) + 8 * np.sign(weights.numpy()), 0, 255)
    np.testing.assert_array_equal(saved(result), expected)


def test_a_quadratic_loss_ends_at_the_nearest_point_of_the_ball():
    x = picture(20, 31)
    peak = saved(x) + np.random.default_rng(0).uniform(-14, 14, x.shape)

    def make_loss(clean):
        target = torch.from_numpy(peak / 127.5 - 1).float()

        def loss(pixels, generator):
            yield -(pixels - target).square().sum()

        return FunctionLoss(loss)

    result = pgd(x, make_loss, AttackSettings(levels=8, steps=60))
    expected = np.clip(np.clip(peak, saved(x) - 8, saved(x) + 8), 0, 255)
    assert np.abs(saved(result) - expected).max() <= 0.5 + 0.05


@pytest.mark.parametrize(
    ("levels", "steps", "step_levels", "first"),
    [(8, 20, None, 1.0), (8, 16, None, 1.0), (8, 10, None, 1.6), (16, 1, None, 32.0), (6.4, 7, 3.0, 3.0)],
)
def test_the_loop_is_the_papers_loop(levels, steps, step_levels, first):
    """Sign steps decaying linearly, and projection: step by step in numpy."""
    x = picture(6, 11)
    seen = []
    pgd(
        x,
        linear_loss,
        AttackSettings(
            levels=levels,
            steps=steps,
            seeds=5,
            progress=lambda done, total, current, value: seen.append((current.double().numpy() * 255, value.item())),
        ),
        step_levels=step_levels,
    )
    original = saved(x)
    current = original.copy()
    assert len(seen) == steps
    for step in range(steps):
        gradient = torch.randn(x.shape, generator=random_stream(5, step)).double().numpy()
        expected_value = ((current / 127.5 - 1) * gradient).sum()
        current = current + (first - first * step / steps) * np.sign(gradient)
        current = np.clip(np.clip(current, original - levels, original + levels), 0, 255)
        np.testing.assert_allclose(seen[step][0], current, atol=2e-4)
        np.testing.assert_allclose(seen[step][1], expected_value, rtol=1e-4, atol=1e-3)


def gradients_of(x: torch.Tensor, make_loss) -> torch.Tensor:
    """The gradient that one PGD step sees."""
    leaves = []

    def spying(clean):
        loss = make_loss(clean)

        def wrapped(pixels, generator):
            leaves.append(pixels)
            yield from loss.terms(pixels, generator)

        return FunctionLoss(wrapped)

    pgd(x, spying, AttackSettings(steps=1))
    return leaves[0].grad.clone()


def test_splitting_the_loss_into_terms_does_not_change_its_gradient():
    x = picture(12, 10)

    def pieces(pixels):
        return [pixels[..., :4, :].pow(3).sum(), pixels[..., 4:9, :].exp().sum(), pixels.mean().square()]

    split = gradients_of(x, lambda clean: FunctionLoss(lambda pixels, _: iter(pieces(pixels))))
    whole = gradients_of(x, lambda clean: FunctionLoss(lambda pixels, _: [sum(pieces(pixels))]))
    torch.testing.assert_close(split, whole, rtol=1e-6, atol=1e-7)
    pixels = (x * 2 - 1).double()
    expected = 2 * pixels.mean() / pixels.numel() * torch.ones_like(pixels)
    expected[..., :4, :] += 3 * pixels[..., :4, :] ** 2
    expected[..., 4:9, :] += pixels[..., 4:9, :].exp()
    torch.testing.assert_close(whole.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_loss_without_the_picture_in_it_is_an_error():
    def make_loss(clean):
        return FunctionLoss(lambda pixels, _: iter([pixels.sum(), clean.sum()]))

    with pytest.raises(AntiPureError, match="does not depend on the picture"):
        pgd(torch.full((1, 3, 4, 4), 0.5), make_loss, AttackSettings(steps=1))


def test_progress_gets_the_sum_of_the_terms():
    values = []
    x = picture(5, 5)
    pgd(
        x,
        lambda clean: FunctionLoss(lambda pixels, _: [2 * pixels.sum(), pixels.square().sum()]),
        AttackSettings(steps=1, progress=lambda done, total, current, value: values.append(value.item())),
    )
    pixels = saved(x) / 127.5 - 1
    assert values == [pytest.approx(2 * pixels.sum() + (pixels**2).sum(), rel=1e-5)]


def test_each_picture_of_a_batch_is_treated_as_if_alone(tiny):
    x = picture(18, 21, batch=3)
    mask = torch.rand(3, 1, 18, 21, generator=torch.Generator().manual_seed(2))

    def attack(x, **settings):
        loss = partial(antipure_loss, tiny, PRESETS["strong"])
        return pgd(x, loss, AttackSettings(levels=8, steps=2, **settings), step_levels=8)

    together = attack(x, seeds=[4, 9, 4], mask=mask)
    for i, seed in enumerate((4, 9, 4)):
        assert torch.equal(together[i : i + 1], attack(x[i : i + 1], seeds=seed, mask=mask[i : i + 1]))
    shared = attack(x, seeds=4)
    assert torch.equal(shared[1:2], attack(x[1:2], seeds=4))


def test_seeds_decide_the_bytes(tiny):
    x = picture(17, 16)

    def attack(x, seeds):
        loss = partial(antipure_loss, tiny, PRESETS["strong"])
        return pgd(x, loss, AttackSettings(levels=8, steps=2, seeds=seeds), step_levels=8)

    first = attack(x, seeds=1)
    torch.manual_seed(99)
    assert torch.equal(first, attack(x, seeds=1))
    assert not torch.equal(first, attack(x, seeds=2))
    twins = attack(x.repeat(2, 1, 1, 1), seeds=[1, 2])
    assert not torch.equal(twins[0], twins[1])


def test_the_global_random_state_is_left_alone(tiny):
    state = torch.get_rng_state()
    pgd(picture(16, 16), partial(antipure_loss, tiny, PRESETS["paper"]), AttackSettings(steps=1))
    assert torch.equal(state, torch.get_rng_state())


def test_inputs_are_left_alone():
    x, mask = picture(8, 8), torch.rand(1, 1, 8, 8)
    before, mask_before = x.clone(), mask.clone()
    pgd(x, linear_loss, AttackSettings(steps=2, mask=mask))
    assert torch.equal(x, before)
    assert torch.equal(mask, mask_before)


def test_progress_counts_all_steps_of_all_pictures():
    x = picture(8, 9, batch=3)
    calls = []
    result = pgd(x, linear_loss, AttackSettings(levels=8, steps=4, progress=lambda *args: calls.append(args)))
    assert [c[:2] for c in calls] == [(i, 12) for i in range(1, 13)]
    for i, (_, _, current, value) in enumerate(calls):
        assert current.shape == (1, 3, 8, 9)
        assert value.shape == ()
        assert not value.requires_grad
        assert (current - x[i // 4]).abs().max() * 255 <= 8 + 1e-3
    for i in range(3):
        assert (calls[4 * i + 3][2] - result[i]).abs().max() * 255 <= 0.5 + 1e-3


class Cancelled(BaseException):
    """As ComfyUI's InterruptProcessingException may be."""


@pytest.mark.parametrize("preset", ["strong", "paper"])
def test_cancelling_passes_through_and_leaves_the_denoiser_as_it_was(make_tiny, preset):
    denoiser = make_tiny()
    before = {k: v.clone() for k, v in denoiser.unet.state_dict().items()}

    def cancel(done, total, current, value):
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        pgd(
            picture(16, 16), partial(antipure_loss, denoiser, PRESETS[preset]), AttackSettings(steps=5, progress=cancel)
        )
    assert all(torch.equal(v, before[k]) for k, v in denoiser.unet.state_dict().items())
    for parameter in denoiser.unet.parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


def test_it_works_inside_inference_mode_with_inference_tensors(tiny):
    def attack(x, mask):
        loss = partial(antipure_loss, tiny, PRESETS["strong"])
        return pgd(x, loss, AttackSettings(steps=2, mask=mask), step_levels=8)

    x, mask = picture(16, 20), torch.rand(1, 1, 16, 20)
    expected = attack(x, mask=mask)
    with torch.inference_mode():
        inside = attack(x.clone(), mask=mask.clone())
        assert x.clone().is_inference()
        assert torch.is_inference_mode_enabled()
    with torch.no_grad():
        assert torch.equal(expected, attack(x, mask=mask))
    assert torch.equal(expected, inside)
    assert not expected.requires_grad


@pytest.mark.parametrize(
    "broken",
    [
        lambda pixels: (pixels - 2).sqrt().sum(),
        lambda pixels: (pixels * torch.tensor(float("inf"))).sum(),
        lambda pixels: (pixels - pixels).sqrt().sum(),
    ],
    ids=["nan", "inf", "infinite slope"],
)
def test_a_gradient_that_is_not_finite_is_an_error(broken):
    with pytest.raises(AntiPureError, match="gradient is not finite"):
        pgd(picture(4, 4), lambda clean: FunctionLoss(lambda pixels, _: [broken(pixels)]), AttackSettings(steps=2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": 0}, "levels is 0"),
        ({"levels": -1}, "levels is -1"),
        ({"levels": 256}, "levels is 256"),
        ({"levels": float("nan")}, "levels is nan"),
        ({"steps": 0}, "steps is 0"),
        ({"seeds": [1, 2, 3]}, "3 seeds for 2 pictures"),
        ({"seeds": []}, "0 seeds for 2 pictures"),
        ({"mask": torch.ones(1, 1, 8, 8)}, "mask has shape"),
        ({"mask": torch.ones(2, 3, 8, 8)}, "mask has shape"),
        ({"mask": torch.ones(2, 1, 8, 9)}, "mask has shape"),
        ({"mask": torch.full((2, 1, 8, 8), 1.5)}, "outside 0..1"),
        ({"mask": torch.full((2, 1, 8, 8), -0.1)}, "outside 0..1"),
        ({"mask": torch.full((2, 1, 8, 8), float("nan"))}, "outside 0..1"),
        ({"picture": torch.zeros(2, 8, 8, 3)}, "B×3×H×W"),
        ({"picture": torch.full((2, 3, 8, 8), float("nan"))}, "NaN"),
        ({"picture": torch.zeros(2, 3, 8, 0)}, "no pixels"),
    ],
)
def test_impossible_requests_are_refused_with_a_sentence(arguments, message):
    with pytest.raises(AntiPureError, match=message):
        pgd(arguments.pop("picture", picture(8, 8, batch=2)), linear_loss, AttackSettings(**{"steps": 1, **arguments}))


def test_out_of_memory_is_tried_again_with_less_and_gives_the_same_result(no_room):
    tiles = [4]

    class Hungry(Loss):
        def terms(self, pixels, generator):
            noise = torch.randn(pixels.shape, generator=generator)
            yield (pixels * noise).sum()
            if tiles[0] > 1:
                no_room()

        def shrink(self) -> bool:
            tiles[0] //= 2
            return tiles[0] > 0

    first = pgd(picture(8, 8), lambda clean: Hungry(), AttackSettings(levels=4, steps=3))
    assert tiles == [1]
    assert torch.equal(first, pgd(picture(8, 8), lambda clean: Hungry(), AttackSettings(levels=4, steps=3)))


def test_out_of_memory_for_a_single_tile_is_one_sentence(no_room):
    def make_loss(clean):
        def loss(pixels, generator):
            yield pixels.sum()
            no_room()

        return FunctionLoss(loss)

    whose = "The GPU has" if no_room.gpu else "There is"
    with pytest.raises(AntiPureError, match=f"^{whose} not enough memory for the gradient of a single tile"):
        pgd(picture(8, 8), make_loss, AttackSettings(levels=4, steps=1))


def test_a_random_start_is_a_point_of_the_ball():
    x, mask = picture(24, 20), torch.ones(1, 1, 24, 20)
    mask[..., :5, :] = 0
    flat = partial(linear_loss, weights=torch.zeros(x.shape))  # no gradient: the start is the result
    settings = AttackSettings(levels=6.4, steps=1, mask=mask)
    run = partial(pgd, x, flat, settings, rounded=False)
    assert torch.equal(run(), x)
    start = run(random_start=True)
    offsets = (start - x) * 255
    assert offsets[..., :5, :].abs().max() == 0
    inside = offsets[..., 5:, :][(x[..., 5:, :] > 0.05) & (x[..., 5:, :] < 0.95)]
    assert 6 < inside.abs().max() <= 6.4 + 1e-3
    assert abs(float(inside.mean())) < 0.5
    assert float(inside.std()) == pytest.approx(6.4 / 3**0.5, rel=0.1)
    assert start.min() >= 0
    assert start.max() <= 1
    assert torch.equal(start, run(random_start=True))
    assert not torch.equal(start, pgd(x, flat, replace(settings, seeds=1), rounded=False, random_start=True))


def test_a_constant_step_and_no_rounding():
    x = torch.full((1, 3, 4, 5), 128 / 255)
    weights = torch.ones(x.shape)
    seen = []
    result = pgd(
        x,
        partial(linear_loss, weights=weights),
        AttackSettings(
            levels=6.375,
            steps=4,
            progress=lambda done, total, current, value: seen.append(float(current[0, 0, 0, 0] * 255 - 128)),
        ),
        step_levels=1.275,
        decay=False,
        rounded=False,
    )
    assert seen == pytest.approx([1.275, 2.55, 3.825, 5.1], abs=1e-3)
    torch.testing.assert_close(result, x + 5.1 / 255)


def test_pictures_run_together_as_they_do_alone():
    x = picture(9, 7, batch=3)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    weights[1] *= 1000

    def make_loss(clean):
        index = [int(torch.nonzero((2 * x - 1 - one).abs().amax((1, 2, 3)) < 1e-5)[0]) for one in clean]

        def loss(pixels, generator):
            yield (pixels * weights[index] + pixels.square() / 9).sum()

        return FunctionLoss(loss)

    shapes = []
    settings = AttackSettings(
        levels=8, steps=5, progress=lambda done, total, current, value: shapes.append((total, len(current)))
    )
    together = pgd(x, make_loss, settings, together=True)
    assert shapes == [(5, 3)] * 5
    assert torch.equal(together, pgd(x, make_loss, settings))
    with pytest.raises(AntiPureError, match="3 seeds for 1 pictures"):
        pgd(x, make_loss, replace(settings, seeds=[1, 2, 3]), together=True)


def test_a_start_is_brought_into_the_ball_and_gone_on_from():
    x, mask = picture(24, 20), torch.ones(1, 1, 24, 20)
    mask[..., :5, :] = 0
    far = torch.rand(x.shape, generator=torch.Generator().manual_seed(8)) * 1.4 - 0.2
    flat = partial(linear_loss, weights=torch.zeros(x.shape))  # no gradient: the start is the result
    start = pgd(x, flat, AttackSettings(levels=6, steps=1, mask=mask), start=far, rounded=False)
    expected = np.clip(far.numpy(), (x - 6 / 255).clamp(min=0).numpy(), (x + 6 / 255).clamp(max=1).numpy())
    expected[..., :5, :] = x[..., :5, :]
    np.testing.assert_allclose(start.numpy(), expected, atol=1e-6)
    assert torch.equal(
        pgd(x, linear_loss, AttackSettings(levels=6, steps=3), start=x),
        pgd(x, linear_loss, AttackSettings(levels=6, steps=3)),
    )
    both = pgd(x.repeat(2, 1, 1, 1), flat.func, AttackSettings(levels=6, steps=2), start=torch.cat([far, x]))
    assert torch.equal(both[:1], pgd(x, linear_loss, AttackSettings(levels=6, steps=2), start=far)), (
        "each picture has its own"
    )


@pytest.mark.parametrize("start", [torch.zeros(1, 3, 8, 9), torch.full((1, 3, 8, 8), float("nan"))])
def test_a_start_must_be_a_picture_of_that_size(start):
    with pytest.raises(AntiPureError, match="start"):
        pgd(picture(8, 8), linear_loss, AttackSettings(steps=1), start=start)


@pytest.mark.parametrize("bad", [0, 3, 11, 12])
def test_a_gradient_that_is_not_finite_for_one_step_only_is_noticed(bad):
    """The look is taken every few steps; a sign of nan must not be forgotten between them."""
    count = []

    def make_loss(clean):
        def loss(pixels, generator):
            count.append(1)
            yield (pixels * (float("nan") if len(count) == bad + 1 else 1.0)).sum()

        return FunctionLoss(loss)

    with pytest.raises(AntiPureError, match="gradient is not finite"):
        pgd(picture(4, 4), make_loss, AttackSettings(steps=13))
    assert len(count) <= bad + 1 + CHECK_EVERY
