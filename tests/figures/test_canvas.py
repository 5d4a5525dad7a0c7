"""Figures measured in pixels, and the palette of magnitudes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from antipure.methods.figures.canvas import BACKGROUND, drawn, heat_colours, pixel_figure


def test_a_figure_has_the_size_it_was_asked_for():
    for size in range(1, 300, 7):
        pixels = drawn(pixel_figure(size, 2 * size, BACKGROUND))
        assert pixels.shape == (2 * size, size, 3)
        assert (pixels == BACKGROUND).all()


def test_larger_values_are_brighter():
    colours = heat_colours(np.linspace(-0.5, 1.5, 401))
    brightness = colours.astype(float) @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(brightness) >= -1).all()
    assert (colours[:100] == colours[0]).all()
    assert (colours[-100:] == colours[-1]).all()
    assert brightness[-1] - brightness[0] > 200
    assert heat_colours(np.zeros((2, 5))).shape == (2, 5, 3)


def test_no_figure_touches_pyplot():
    code = (
        "import sys; from antipure.methods.figures.loss_curve import loss_curve;"
        "loss_curve([{'total': 1.0}]); print('matplotlib.pyplot' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
