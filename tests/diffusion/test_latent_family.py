"""Whose latents they are, from constructed ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from antipure.methods.diffusion.latent_family import better_family, colour_agreement


def test_agreement_is_the_mean_correlation_of_the_channels():
    generator = torch.Generator().manual_seed(0)
    latent, factors = torch.randn(1, 4, 6, 6, generator=generator), torch.randn(4, 3, generator=generator)
    picture = torch.rand(1, 3, 48, 48, generator=generator)
    shown = np.einsum("chw,cr->rhw", latent[0].numpy(), factors.numpy()).reshape(3, -1)
    small = picture[0].numpy().reshape(3, 6, 8, 6, 8).mean((2, 4)).reshape(3, -1)
    expected = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(shown, small, strict=True)])
    assert colour_agreement(latent, factors, picture) == pytest.approx(expected, abs=1e-6)
    assert colour_agreement(3 * latent, factors, 2 * picture - 1) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("agreements", "found"),
    [
        ({"A": 0.95, "B": 0.7}, None),
        ({"A": 0.7, "B": 0.95}, "B"),
        ({"A": 0.9, "B": 0.95}, None),
        ({"A": 0.1, "B": 0.5}, None),
        ({"A": -0.2, "B": 0.0}, None),
    ],
)
def test_another_family_must_be_clearly_better(agreements, found):
    assert better_family("A", agreements) == found
