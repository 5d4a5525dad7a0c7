"""Combined denoisers: the loss is the members' mean, or that of the member disturbed least."""

from __future__ import annotations

import pytest
import torch
from antipure.methods.antipure.objective import PRESETS, Objective
from antipure.methods.antipure.protect import antipure_loss
from antipure.methods.attacks.ensemble import CombinedDenoiser, combine, members_of
from antipure.methods.attacks.loss import Loss
from antipure.methods.attacks.pgd import pgd
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.errors import AntiPureError
from antipure.methods.pictures import random_stream
from antipure.nodes import NODE_CLASS_MAPPINGS

DDPM = Objective(pfg=0, etg=0)


@pytest.fixture(scope="module")
def pair(make_tiny):
    return make_tiny(seed=1), make_tiny(seed=2)


def picture(size: int = 24) -> torch.Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def values(loss, pixels: torch.Tensor) -> float:
    return sum(float(term) for term in loss.terms(pixels, torch.Generator().manual_seed(3)))


def test_a_chain_of_one_mode_counts_every_denoiser_once(make_tiny):
    a, b, c = (make_tiny(seed=i) for i in range(3))
    chain = combine(combine(a, b, "mean"), c, "mean")
    assert chain.members == (a, b, c)
    nested = combine(combine(a, b, "worst"), a, "mean")
    assert len(nested.members) == 2
    assert members_of(nested) == [a, b]
    assert members_of(a) == [a]


class Fixed(Loss):
    """A loss of constant value with a known gradient."""

    def __init__(self, value: float):
        self.value = value
        self.shrunk = 0

    def terms(self, pixels, generator):
        yield self.value + 0 * pixels.sum() + pixels.mean() * self.value
        yield 0 * pixels.sum()

    def shrink(self) -> bool:
        self.shrunk += 1
        return self.value > 1


def test_mean_and_worst(pair):
    losses = [Fixed(1.0), Fixed(3.0)]
    zeros = torch.zeros(1, 3, 4, 4)
    assert values(CombinedDenoiser(pair, "mean").combine(losses), zeros) == 2
    assert values(CombinedDenoiser(pair, "worst").combine(losses), zeros) == 1


def test_out_of_memory_shrinks_every_member(pair):
    losses = [Fixed(1.0), Fixed(3.0)]
    assert CombinedDenoiser(pair).combine(losses).shrink()
    assert [loss.shrunk for loss in losses] == [1, 1]


class Noted(Fixed):
    """Notes what is asked of it, and the stream's first number each time."""

    def __init__(self, value: float):
        super().__init__(value)
        self.log = []

    def prepare(self, pixels, generator):
        self.log.append(("prepare", int(torch.randint(2**62, (), generator=generator))))

    def terms(self, pixels, generator):
        self.log.append(("terms", int(torch.randint(2**62, (), generator=generator))))
        yield from super().terms(pixels, generator)

    def stepped(self):
        self.log.append(("stepped", None))


@pytest.mark.parametrize(("mode", "asked"), [("mean", [1, 1]), ("worst", [2, 1])])
def test_members_prepare_on_their_own_streams_and_only_who_was_taken_steps(pair, mode, asked):
    losses = [Noted(1.0), Noted(3.0)]
    pgd(picture(16), lambda clean: CombinedDenoiser(pair, mode).combine(losses), AttackSettings(levels=4, steps=1))
    for loss, times in zip(losses, asked, strict=True):
        kinds, numbers = zip(*loss.log, strict=True)
        stepped = mode == "mean" or loss is losses[0]
        assert kinds == ("prepare", *["terms"] * times, *["stepped"] * stepped)
        assert len({number for number in numbers if number is not None}) == 1, "one stream for all of a step"
    assert losses[0].log[0] != losses[1].log[0]


@pytest.mark.parametrize("mode", ["mean", "worst"])
def test_protects_reproducibly_against_both(pair, mode):
    both = combine(*pair, mode)
    first, again = (
        pgd(picture(), lambda clean: antipure_loss(both, DDPM, clean), AttackSettings(levels=4, steps=3))
        for _ in range(2)
    )
    assert torch.equal(first, again)
    assert 0 < (first - picture()).abs().max() * 255 <= 4 + 2e-3


def test_the_mean_gradient_is_the_mean_of_the_members(pair):
    clean = picture(16) * 2 - 1
    losses = [antipure_loss(denoiser, PRESETS["strong"], clean) for denoiser in pair]
    root = torch.Generator().manual_seed(0)
    streams = [random_stream(int(torch.randint(2**62, (), generator=root))) for _ in pair]

    def gradient(loss, generator) -> torch.Tensor:
        pixels = (clean * 0.9).requires_grad_()
        for term in loss.terms(pixels, generator):
            term.backward()
        return pixels.grad

    combined = antipure_loss(combine(*pair, "mean"), PRESETS["strong"], clean)
    expected = sum(gradient(*each) for each in zip(losses, streams, strict=True)) / 2
    assert torch.allclose(gradient(combined, torch.Generator().manual_seed(0)), expected, rtol=1e-4, atol=1e-9)


def test_purifying_with_several_denoisers_is_refused(pair):
    image = picture().permute(0, 2, 3, 1)
    with pytest.raises(AntiPureError, match="Combined denoisers are for protecting"):
        NODE_CLASS_MAPPINGS["AntiPureDiffusionPurify"]().purify(image, combine(*pair, "mean"), "gridpure", 2, 1, 0.1, 0)


def test_protect_node_takes_a_combination(pair):
    image = picture().permute(0, 2, 3, 1)
    (both,) = NODE_CLASS_MAPPINGS["AntiPureCombineDenoisers"]().build(*pair, "worst")
    with torch.inference_mode():
        protected, _, report = NODE_CLASS_MAPPINGS["AntiPureProtect"]().protect(image, both, "strong", 3.0, 2, 0)
    assert 0 < (protected - image).abs().max() * 255 <= 3 + 2e-3
    assert "strong" in report


def test_unknown_mode_is_refused(pair):
    with pytest.raises(AntiPureError, match="no mode 'sum'"):
        combine(*pair, "sum")
