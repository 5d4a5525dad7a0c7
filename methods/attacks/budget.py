"""The L-infinity ball around a picture, in 8-bit levels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import AntiPureError


class Budget:
    """The pictures within `levels` of `picture` (scaled by a mask), in units of 8-bit levels.

    picture: 1×3×H×W in 0..1. levels: > 0. mask: 1×1×H×W in 0..1 or None; 0 keeps a pixel as it is.
    """

    def __init__(self, picture: Tensor, levels: float, mask: Tensor | None = None):
        self.picture = picture
        self.allowed = levels * (torch.ones_like(picture[:, :1]) if mask is None else mask.to(picture))
        original = self.original
        self.lower = (original - self.allowed).clamp_(min=0)
        self.upper = (original + self.allowed).clamp_(max=255)

    @property
    def original(self) -> Tensor:
        """The picture in 8-bit levels, whole where it is one of 8 bits; computed anew, so the caller's own."""
        values = self.picture * 255
        nearest = values.round()
        return torch.where((values - nearest).abs() < 1e-3, nearest, values)

    def project(self, values: Tensor) -> Tensor:
        """The nearest point of the ball; values in 0..255."""
        return values.maximum(self.lower).minimum(self.upper)

    def quantise(self, values: Tensor) -> Tensor:
        """Nearest 8-bit picture *inside* the ball, as k/255 in 0..1; untouched pixels stay bit for bit."""
        # In place: pictures may be large, and this is where most of their copies are alive.
        whole, highest = values.round(), self.upper.floor()
        bound = self.lower.ceil()
        free = (bound <= highest) & (self.allowed > 0)
        whole = whole.clamp_(bound, highest).div_(255)
        return torch.where(free, whole, self.picture, out=whole)


def check_budget(levels: float, steps: int) -> None:
    """Raise `AntiPureError` for a budget or a number of steps that makes no sense."""
    if not 0 < levels <= 255:
        raise AntiPureError(f"levels is {levels:g}; the budget must be above 0 and at most 255 8-bit levels.")
    if steps < 1:
        raise AntiPureError(f"steps is {steps}; at least 1 is needed.")


def check_mask(mask: Tensor | None, picture: Tensor) -> None:
    """Raise `AntiPureError` unless mask is None or B×1×H×W in 0..1 for this B×3×H×W picture."""
    if mask is None:
        return
    expected = (len(picture), 1, *picture.shape[-2:])
    if tuple(mask.shape) != expected:
        raise AntiPureError(f"The mask has shape {tuple(mask.shape)}; for this picture it must be {expected}.")
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise AntiPureError("The mask holds values outside 0..1; give 1 where the picture may change and 0 elsewhere.")
