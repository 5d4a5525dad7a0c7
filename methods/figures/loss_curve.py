"""The losses of a training as a picture."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from ..errors import AntiPureError
from ..pictures import from_uint8
from .canvas import drawn, pixel_axes, pixel_figure, rgb, style_axes

COLOURS = {"total": (30, 30, 30), "clean": (31, 119, 180), "attacked": (214, 39, 40), "mmfa": (44, 160, 44)}
WHITE, GRID, TEXT = (255, 255, 255), (225, 225, 225), (90, 90, 90)
SMALLEST = (200, 120)
DECADES = 4


def loss_curve(history: list[dict[str, float]], width: int = 640, height: int = 360) -> Tensor:
    """Every term over the steps, on a logarithmic axis, smoothed over a fiftieth of them: 1×3×height×width in 0..1.

    history: `TrainingResult.history`. Raises `AntiPureError` when there is nothing to draw or no room for it.
    """
    if not history:
        raise AntiPureError("There are no losses to draw; train for at least one step.")
    if width < SMALLEST[0] or height < SMALLEST[1]:
        raise AntiPureError(f"A curve of {width}×{height} cannot be read; use at least {SMALLEST[0]}×{SMALLEST[1]}.")
    from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator

    curves = {name: _smooth([max(row[name], 1e-12) for row in history]) for name in COLOURS if name in history[0]}
    low = math.floor(min(np.log10(v).min() for v in curves.values()) * 2) / 2
    high = max(math.ceil(max(np.log10(v).max() for v in curves.values()) * 2) / 2, low + 0.5)
    low = max(low, high - DECADES)  # a loss that starts at 0 would leave no room for the others
    figure = pixel_figure(width, height, WHITE)
    axes = pixel_axes(figure, 64, 30, 16, 40)
    style_axes(axes, WHITE, GRID, TEXT)
    axes.set_yscale("log")
    axes.set_ylim(10**low, 10**high)
    axes.set_xlim(1, max(len(history), 2))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high - low < 2 else (1,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True) if len(history) > 1 else FixedLocator([1]))
    axes.set_xlabel("step", color=rgb(TEXT), fontsize=9)
    for name, values in curves.items():
        values = values if len(values) > 1 else np.repeat(values, 2)  # one step: a level line
        steps, shown = np.arange(1, len(values) + 1), values.clip(10**low, 10**high)
        axes.plot(steps, shown, color=rgb(COLOURS[name]), linewidth=1.5, label=name, clip_on=False)
    axes.legend(
        loc="lower right",  # of a box above the axes
        bbox_to_anchor=(1, 1),
        ncols=len(curves),
        fontsize=9,
        frameon=False,
        labelcolor="linecolor",
        handlelength=1.5,
        columnspacing=1.5,
    )
    return from_uint8(drawn(figure))


def _smooth(values: list[float]) -> np.ndarray:
    """Mean over a window that ends at each step."""
    window = max(1, len(values) // 50)
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
