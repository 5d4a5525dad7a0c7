"""The losses of a training as a picture, drawn with Pillow."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..errors import AntiPureError

COLOURS = {"total": (30, 30, 30), "clean": (31, 119, 180), "attacked": (214, 39, 40), "mmfa": (44, 160, 44)}
MARGIN = (64, 16, 16, 32)  # left, top, right, bottom
SMALLEST = (200, 120)
DECADES = 4


def loss_curve(history: list[dict[str, float]], width: int = 640, height: int = 360) -> Tensor:
    """Every term over the steps, on a logarithmic axis, smoothed over a fiftieth of them: 1×3×height×width in 0..1.

    history: `TrainingResult.history`. Raises `AntiPureError` when there is nothing to draw or no room for it.
    """
    from PIL import Image, ImageDraw

    if not history:
        raise AntiPureError("There are no losses to draw; train for at least one step.")
    if width < SMALLEST[0] or height < SMALLEST[1]:
        raise AntiPureError(f"A curve of {width}×{height} cannot be read; use at least {SMALLEST[0]}×{SMALLEST[1]}.")
    curves = {name: _smooth([max(row[name], 1e-12) for row in history]) for name in COLOURS if name in history[0]}
    logs = {name: np.log10(values) for name, values in curves.items()}
    low = math.floor(min(v.min() for v in logs.values()) * 2) / 2
    high = max(math.ceil(max(v.max() for v in logs.values()) * 2) / 2, low + 0.5)
    low = max(low, high - DECADES)  # a loss that starts at 0 would leave no room for the others
    logs = {name: values.clip(low, high) for name, values in logs.items()}
    left, top, right, bottom = MARGIN[0], MARGIN[1], width - MARGIN[2], height - MARGIN[3]

    def place(step: float, log: float) -> tuple[float, float]:
        x = left + (right - left) * (step / max(len(history) - 1, 1))
        return x, bottom - (bottom - top) * (log - low) / (high - low)

    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for half in range(round(2 * low), round(2 * high) + 1):
        y = place(0, half / 2)[1]
        draw.line([(left, y), (right, y)], fill=(225, 225, 225))
        draw.text((6, y - 6), f"{10 ** (half / 2):.2g}", fill=(90, 90, 90))
    draw.line([(left, top), (left, bottom), (right, bottom)], fill=(90, 90, 90))
    draw.text((left, bottom + 8), "1", fill=(90, 90, 90))
    label = f"step {len(history)}"
    draw.text((right - draw.textlength(label), bottom + 8), label, fill=(90, 90, 90))
    for i, (name, values) in enumerate(logs.items()):
        points = [place(step, value) for step, value in enumerate(values)]
        draw.line(points if len(points) > 1 else [points[0], (right, points[0][1])], fill=COLOURS[name], width=2)
        draw.text((right - 70, top + 4 + 14 * i), name, fill=COLOURS[name])
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def _smooth(values: list[float]) -> np.ndarray:
    """Mean over a window that ends at each step."""
    window = max(1, len(values) // 50)
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
