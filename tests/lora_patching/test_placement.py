"""Warnings that are harder to paint over: small and all over the picture, and the figure after painting."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from antipure.methods.lora_patching.warning import (
    painted_over,
    picture_warning,
    text_warning,
    tiled_warning,
    visibility,
    warned,
)

BLANK = torch.ones(1, 3, 20, 40)
BLANK[..., 5:15, 10:30] = 0
DRAW = {
    "text": text_warning,
    "two lines": partial(text_warning, text="AI\nFAKE"),
    "picture": partial(picture_warning, BLANK),
}


@pytest.mark.parametrize("kind", DRAW)
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (32, 32)])
def test_tiles_cover_the_picture_and_repeat(kind, size):
    for seed in range(6):
        warning = tiled_warning(DRAW[kind], *size, seed)
        assert warning.shape == (1, 3, *size)
        assert float(warning.min()) >= -1
        assert float(warning.max()) <= 1
        assert torch.equal(warning, tiled_warning(DRAW[kind], *size, seed))
        ink = (warning != 0).any(1)[0].float()
        # In each half of the picture, up and down, left and right, a good part of the ink.
        for half in (*ink.chunk(2, 0), *ink.chunk(2, 1)):
            assert float(half.sum()) > 0.25 * float(ink.sum())
        assert 0.1 < float(ink.mean()) < 0.95


def test_every_seed_has_its_own_place_and_size():
    tiles = [tiled_warning(text_warning, 64, 64, seed) for seed in range(20)]
    assert len({tile.numpy().tobytes() for tile in tiles}) == 20
    pixels = torch.zeros(1, 3, 64, 64)
    alike = [float(visibility(warned(pixels, a), pixels, b)) for a, b in zip(tiles, tiles[1:], strict=False)]
    assert max(alike) < 0.5  # whoever looks for another patch's tiles does not find these


def test_painting_the_middle_takes_the_middle_warning_and_leaves_tiles():
    """A network that prints perfectly; the attacker pastes the picture where such a warning usually stands."""
    stream = torch.Generator().manual_seed(0)
    picture, edited = torch.rand(5, 3, 64, 64, generator=stream), torch.rand(5, 3, 64, 64, generator=stream)
    usual = text_warning(64, 64)
    left = {}
    for name, warning in (("middle", usual), ("tiled", tiled_warning(text_warning, 64, 64, 0))):
        printed = (warned(edited * 2 - 1, warning) + 1) / 2
        painted = painted_over(printed, picture, usual)
        left[name] = visibility(painted * 2 - 1, edited * 2 - 1, warning)
        assert (visibility(printed * 2 - 1, edited * 2 - 1, warning) > 0.8).all()
    assert (left["middle"] < 0.2).all()
    assert (left["tiled"] > 0.5).all()
