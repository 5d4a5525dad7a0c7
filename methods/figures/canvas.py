"""What the figures share: colours, and matplotlib figures measured in pixels, drawn without pyplot's global state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Colour = tuple[int, int, int]
BACKGROUND, PANEL, FAINT = (24, 24, 27), (34, 34, 38), (60, 60, 66)
INK, SOFT = (235, 235, 235), (150, 150, 155)
DPI = 100


def rgb(colour: Sequence[int]) -> tuple[float, float, float]:
    """8-bit values as matplotlib takes them."""
    red, green, blue = (value / 255 for value in colour)
    return red, green, blue


def pixel_figure(width: int, height: int, background: Colour) -> Figure:
    """An empty figure of width×height pixels."""
    from matplotlib.figure import Figure

    # The little more keeps the division's rounding from costing a pixel.
    return Figure(((width + 0.01) / DPI, (height + 0.01) / DPI), dpi=DPI, facecolor=rgb(background))


def pixel_axes(figure: Figure, left: int, top: int, right: int, bottom: int) -> Axes:
    """Axes with margins of so many pixels to the figure's four sides."""
    width, height = figure.get_size_inches() * DPI
    return figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height))


def drawn(figure: Figure) -> np.ndarray:
    """The figure's pixels, H×W×3, 8 bits."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def style_axes(axes: Axes, face: Colour, grid: Colour, text: Colour) -> None:
    """A filled panel with a grid behind the curves, and no frame."""
    axes.set_facecolor(rgb(face))
    axes.grid(color=rgb(grid), linewidth=0.6)
    axes.tick_params(colors=rgb(text), labelsize=9, length=0)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def heat_colours(values: np.ndarray) -> np.ndarray:
    """Values in 0..1, any shape, as colours from dark to bright, perceptually even: the same shape × 3, 8 bits."""
    from matplotlib import colormaps

    return np.asarray(colormaps["inferno"](np.clip(values, 0, 1), bytes=True))[..., :3]
