"""`benchmarks.latent_terms`: the terms on latents against closed forms, and where its fewer tiles lie."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from antipure.benchmarks import latent_terms
from antipure.methods.diffusion.denoiser import Denoiser
from antipure.methods.pictures import random_stream


class Blocks(Denoiser):
    """Latents are means of 8×8 pixels, and there is no noise at any timestep: what is purified stays as it is."""

    latent, clip_x0, tile, multiple = True, False, 64, 8
    alphas_cumprod = torch.ones(100)

    def encode(self, pixels):
        return F.avg_pool2d(pixels, 8)

    def decode(self, latent):
        raise AssertionError("the decoder is not asked")

    def predict(self, x_t, t):
        return torch.ones_like(x_t), None

    def bytes_per_pixel(self):
        return 1.0


def test_latent_terms_are_the_distance_of_latents_and_ask_no_decoder():
    clean = torch.rand(1, 3, 64, 64) - 0.5
    moved = clean + 0.1 * torch.randn(1, 3, 64, 64)
    whole = replace(latent_terms.STRONG, halved=0)
    terms = latent_terms.latent_unrolled(Blocks(), 0, whole)
    means = (moved - clean).reshape(3, 8, 8, 8, 8).mean((2, 4))
    assert terms(moved, clean, [random_stream(1)]) == pytest.approx(float((means**2).mean()), rel=1e-4)
    shifted = clean + 0.1
    assert terms(shifted, clean, [random_stream(1)]) == pytest.approx(0.01, rel=1e-4)
    high_passed = latent_terms.latent_unrolled(Blocks(), 4, whole)
    assert high_passed(shifted, clean, [random_stream(1)]) == pytest.approx(0, abs=1e-9)
    assert high_passed(moved, clean, [random_stream(1)]) > 1e-5


def test_the_papers_loss_without_a_decoder():
    """Without noise L_ddpm is (1 - eps)², ETG's distance 0, and PFG of a flat latent 1/2."""
    flat, streams = torch.full((1, 3, 64, 64), 0.3), [random_stream(2)]
    value = latent_terms.latent_paper(Blocks())(flat, flat, streams)
    again = random_stream(2)
    torch.randint(latent_terms.PAPER.t_p, (1,), generator=again)
    eps = torch.randn(3, 8, 8, generator=again)
    expected = (1 - eps).square().mean() + 0.5 * 0.5 + 0.5
    assert float(value) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("name", ["moving", "scattered", "some of the grid"])
def test_four_tiles_cover_the_picture_over_the_steps(name):
    covered = torch.zeros(128, 128)
    for seed in range(200):
        positions = latent_terms.TILES[name](128, 128, 64, random_stream(seed))
        assert len(positions) == 4
        for top, left in positions:
            assert 0 <= top <= 64
            assert 0 <= left <= 64
            covered[top : top + 64, left : left + 64] += 1
    assert covered.min() > 0.1 * 200


def test_a_row_is_told_by_a_text():
    assert latent_terms.Row.parsed("strong, latents@30") == latent_terms.Row("strong, latents", 30)
    assert latent_terms.Row.parsed("strong@40@moving") == latent_terms.Row("strong", 40, "moving")
