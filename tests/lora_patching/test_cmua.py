"""CMUA-Watermark: against a plain loop written from the paper, and what makes it universal."""

from __future__ import annotations

import pytest
import torch
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.errors import AntiPureError
from antipure.methods.generators.generator import Generator
from antipure.methods.lora_patching.cmua import universal_watermark, with_watermark
from antipure.methods.lora_patching.defence_report import defence_report
from antipure.methods.lora_patching.defence_table import INPUTS, STRONG, UNIVERSAL
from antipure.methods.lora_patching.disrupting import LEVELS
from antipure.methods.pictures import random_stream, round_8bit
from torch import nn

SIDE = 16


class Smooth(Generator):
    """A small network without normalisation: where a sign tips, only its neighbours notice."""

    name = "smooth"

    def __init__(self, seed):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 3, 3, padding=1), nn.Tanh())
        super().__init__(network, edits=("Male", "Old"), size=SIDE, multiple=1)

    def _call(self, pixels, edit):
        told = torch.full_like(pixels[:, :1], 0.5 if edit == "Male" else -0.5)
        return self.network(torch.cat([3 * pixels, told], 1))


@pytest.fixture(scope="module")
def generators():
    return [Smooth(0), Smooth(1)]


def some_faces(count, seed=4):
    # Away from black and white, where the ball would be cut.
    return round_8bit(0.2 + 0.6 * torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)))


def test_it_equals_a_plain_loop(generators):
    faces, edits, momentum = some_faces(5), ("Male", "Old"), 0.5
    found = universal_watermark(generators, faces, edits, AttackSettings(LEVELS, 4, seeds=7), batch=3)
    eps, step, watermark, run = 0.05, 0.01, None, 0
    for part in (faces[:3], faces[3:]):
        x = part * 2 - 1
        for generator in generators:
            for edit in edits:
                with torch.no_grad():
                    target = generator.edit(x, edit)
                start = torch.rand(x.shape, generator=random_stream(7 + run, -1)) * 2 - 1
                adv, run = x + eps * start, run + 1
                for _ in range(4):
                    adv.requires_grad_()
                    (gradient,) = torch.autograd.grad((generator.edit(adv, edit) - target).square().mean(), adv)
                    moved = (adv.detach() + step * gradient.sign() - x).clamp(-eps, eps).mean(0)
                    watermark = moved if watermark is None else momentum * watermark + (1 - momentum) * moved
                    adv = (x + watermark).clamp(-1, 1)
    difference = found[0] / 127.5 - watermark
    assert (difference.abs() < 2e-5).float().mean() > 0.98  # a sign may tip where a gradient is nearly 0
    assert difference.abs().max() < step
    assert found.abs().max() <= LEVELS


def test_one_watermark_breaks_pictures_and_networks_it_did_not_see(generators):
    """More than noise of the same size does, on held-out faces, for both networks at once."""
    watermark = universal_watermark(generators, some_faces(8), ["Male"])
    others = some_faces(6, seed=9)
    noise = (torch.randint(0, 2, (1, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(1)) * 2 - 1) * LEVELS
    marked, noisy = with_watermark(others, watermark), with_watermark(others, noise)
    assert (marked - others).abs().max() * 255 <= LEVELS
    for generator in generators:

        def moved(pictures, generator=generator):
            with torch.no_grad():
                a, b = generator.edit(torch.cat([others, pictures]) * 2 - 1, "Male").chunk(2)
            return float((a - b).square().mean())

        assert moved(marked) > 1.5 * moved(noisy)


def test_it_is_the_same_for_all_pictures_and_within_the_mask(generators):
    watermark = universal_watermark(generators[:1], some_faces(3), ["Male"], AttackSettings(LEVELS, 2))
    pictures = some_faces(4, seed=2)
    changes = ((with_watermark(pictures, watermark) - pictures) * 255).round()
    assert all(torch.equal(change, changes[0]) for change in changes)
    mask = torch.zeros(4, 1, SIDE, SIDE)
    mask[..., 8:] = 1
    masked = with_watermark(pictures, watermark, mask=mask)
    assert torch.equal(masked[..., :8], pictures[..., :8])
    white = with_watermark(torch.ones(1, 3, SIDE, SIDE), watermark)
    assert white.max() <= 1
    again = universal_watermark(generators[:1], some_faces(3), ["Male"], AttackSettings(LEVELS, 2))
    assert torch.equal(again, watermark)


def test_the_report_has_its_rows(generators):
    generator, faces = generators[0], some_faces(2, seed=3)
    watermark = universal_watermark([generator], some_faces(4), ["Male"], AttackSettings(LEVELS, 2))
    report = defence_report(generator, None, faces, edits=["Male"], watermark=watermark)
    assert [row.input for row in report.rows] == [*INPUTS, *STRONG, *UNIVERSAL]
    without = defence_report(generator, None, faces, edits=["Male"], strong=False)
    assert report.rows[: len(INPUTS)] == without.rows


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: universal_watermark([], some_faces(1)), "needs a network"),
        (lambda g: universal_watermark(g, some_faces(1), ["Bald"]), "No generator has the edit 'Bald'"),
        (lambda g: universal_watermark(g, some_faces(1), []), "No edit to disrupt"),
        (
            lambda g: universal_watermark(g, torch.rand(1, 3, 20, 20)),
            "The faces are 20×20; the watermark wants one size",
        ),
        (lambda g: with_watermark(torch.rand(1, 3, 20, 24), torch.zeros(1, 3, 16, 16)), "is 16×16, the picture 24×20"),
    ],
)
def test_bad_requests_are_refused(generators, call, message):
    with pytest.raises(AntiPureError, match=message):
        call(generators)
