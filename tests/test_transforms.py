"""Ordinary transforms of pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from antipure.methods.errors import AntiPureError
from antipure.methods.transforms import jpeg
from PIL import Image


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_jpeg_is_pillows_for_every_picture_of_the_batch(quality):
    picture = torch.rand(2, 3, 17, 24, generator=torch.Generator().manual_seed(0))
    result = jpeg(picture, quality)
    for one, found in zip(picture, result, strict=True):
        file = io.BytesIO()
        levels = (one * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(levels).save(file, format="JPEG", quality=quality)
        expected = np.asarray(Image.open(file))
        assert np.array_equal((found * 255).round().byte().permute(1, 2, 0).numpy(), expected)
    assert result.dtype == picture.dtype


def test_lower_quality_changes_more():
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    errors = [float((jpeg(picture, q) - picture).square().mean()) for q in (95, 75, 20)]
    assert errors == sorted(errors)


@pytest.mark.parametrize("quality", [0, 96])
def test_qualities_that_pillow_does_not_know_are_refused(quality):
    with pytest.raises(AntiPureError, match="1..95"):
        jpeg(torch.rand(1, 3, 8, 8), quality)
