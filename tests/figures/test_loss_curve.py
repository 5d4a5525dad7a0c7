"""The loss curve: a picture of the asked size whose lines lie where the losses say."""

from __future__ import annotations

import pytest
from antipure.methods.errors import AntiPureError
from antipure.methods.figures.loss_curve import COLOURS, loss_curve


@pytest.mark.parametrize("steps", [1, 2, 300])
def test_loss_curves(steps):
    history = [{"clean": 1 / (i + 1), "attacked": 2 / (i + 1), "mmfa": 0.0, "total": 3 / (i + 1)} for i in range(steps)]
    picture = loss_curve(history)
    assert picture.shape == (1, 3, 360, 640)
    assert 0 <= picture.min() < picture.max() <= 1
    colours = {tuple(c.tolist()) for c in (picture[0].flatten(1).T * 255).round().int().unique(dim=0)}
    assert {(30, 30, 30), (31, 119, 180), (214, 39, 40), (44, 160, 44)} <= colours


def test_loss_curves_of_nothing():
    with pytest.raises(AntiPureError, match="no losses"):
        loss_curve([])
    with pytest.raises(AntiPureError, match="cannot be read"):
        loss_curve([{"total": 1.0}], 20, 20)


def test_a_loss_that_starts_at_zero_leaves_room_for_the_others():
    curve = loss_curve([{"clean": 0.0, "total": 0.5}, {"clean": 0.1, "total": 0.2}])
    dark = (curve[0].mean(0) < 0.2)[:, 100:500].any(1)  # the total's line, without its label
    assert dark.sum() > 20, "less than half a decade, over a visible part of the height"


def test_lines_lie_at_their_losses():
    """On the logarithmic axis a tenth is as far below 1 as 1 is below 10."""
    heights = []
    for value in (10.0, 1.0, 0.1):
        history = [{"total": 100.0, "clean": value, "attacked": 0.01}] * 30
        pixels = (loss_curve(history)[0] * 255).round().int().permute(1, 2, 0)[40:, 200:400]
        rows = (pixels == pixels.new_tensor(COLOURS["clean"])).all(-1).all(1).nonzero().flatten()
        heights.append(rows.float().mean().item())
    top, middle, bottom = heights
    assert top < middle < bottom
    assert abs((middle - top) - (bottom - middle)) <= 1
