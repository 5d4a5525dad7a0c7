"""Load Pixel Denoiser: what it offers, and the pair to protect against."""

from __future__ import annotations

import pytest
import torch
from antipure.methods.attacks.ensemble import CombinedDenoiser, members_of
from antipure.methods.errors import AntiPureError
from antipure.methods.pictures import round_8bit
from antipure.nodes.denoisers import LoadDenoiser
from antipure.nodes.protect import Protect
from antipure.nodes.purify import DiffusionPurify


def test_the_pair_is_the_two_that_it_names():
    assert LoadDenoiser.INPUT_TYPES()["required"]["denoiser"][0][:4] == [
        "bundled", "bundled_pair", "bundled_held_out", "bundled_judge",
    ]  # fmt: skip
    (pair,) = LoadDenoiser().load("bundled_pair", "fp32")
    assert isinstance(pair, CombinedDenoiser)
    assert pair.mode == "mean"
    for member, name in zip(members_of(pair), ("bundled", "bundled_held_out"), strict=True):
        (alone,) = LoadDenoiser().load(name, "fp32")
        assert member.name == alone.name == name
        x, t = torch.rand(1, 3, 64, 64) * 2 - 1, torch.tensor([9])
        with torch.no_grad():
            torch.testing.assert_close(member.predict_noise(x, t), alone.predict_noise(x, t))
    assert LoadDenoiser.IS_CHANGED("bundled_pair") == LoadDenoiser.IS_CHANGED("bundled")


def test_a_picture_is_protected_against_the_pair_and_not_purified_by_it():
    (pair,) = LoadDenoiser().load("bundled_pair", "fp32")
    image = round_8bit(torch.rand(1, 32, 32, 3))
    shown, _, report = Protect().protect(image, pair, "strong", 8.0, 1, 0)
    assert 0 < float((shown - image).abs().max()) <= 8 / 255 + 1e-6
    with pytest.raises(AntiPureError, match="Combined denoisers"):
        DiffusionPurify().purify(image, pair, "gridpure", 1, 1, 0.1, 0)
