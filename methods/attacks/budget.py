"""The L-infinity ball around a picture, in 8-bit levels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import AntiPureError, sizes
from .visibility import FULL, drawn_together, visible_budget


class Budget:
    """The pictures within `levels` of `picture` (scaled by a mask), in units of 8-bit levels.

    picture: B×3×H×W in 0..1. levels: > 0. mask: B×1×H×W in 0..1 or None; 0 keeps a pixel as it is.
    keep_grey: only grey pictures count as being near a grey one (R = G = B everywhere). A coloured perturbation would
        be seen at once there, and whoever converts the picture to grey again would average part of it away.
    visibility: one of `visibility.SETTINGS`; but for `full` pixels get less where a change is seen, and the channels of
        a pixel may differ by `apart` levels only (of a picture that is not of 8 bits, as rounding shows it).
    """

    def __init__(
        self,
        picture: Tensor,
        levels: float,
        mask: Tensor | None = None,
        keep_grey: bool = True,
        visibility: str = FULL,
    ):
        self.picture = picture
        self.grey = is_grey(picture) if keep_grey else torch.zeros_like(picture[:, :1, :1, :1], dtype=torch.bool)
        self._any_grey = bool(self.grey.any())
        allowed, self.apart = visible_budget(picture, levels, visibility)
        self.allowed = levels * torch.ones_like(picture[:, :1]) if allowed is None else allowed
        if mask is not None:
            self.allowed = self.allowed * mask.to(picture)
            self.apart = None if self.apart is None else self.apart * mask.to(picture)
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
        inside = self._evened(values, values).maximum(self.lower).minimum(self.upper)
        if self.apart is None:
            return inside
        original = self.original
        low, high = self.lower - original, self.upper - original
        values = original + drawn_together(inside - original, self.apart, low, high)
        return values.maximum(self.lower).minimum(self.upper)

    def scatter(self, values: Tensor, generator: torch.Generator) -> Tensor:
        """values in 0..255, each moved by up to its budget, evenly distributed, and projected."""
        offset = torch.rand(self.picture.shape, generator=generator).to(self.picture) * 2 - 1
        if self._any_grey:  # not their mean, which seldom comes near the border
            offset = torch.where(self.grey, offset[:, :1], offset)
        return self.project(values + self.allowed * offset)

    def direction(self, gradient: Tensor, precondition: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Where a step goes: the gradient after `precondition`; of grey pictures the plain gradient by their grey."""
        return self._evened(gradient if precondition is None else precondition(gradient), gradient)

    def _evened(self, values: Tensor, whole: Tensor) -> Tensor:
        """values, but for grey pictures the mean of `whole` over the channels, in each of them."""
        return torch.where(self.grey, whole.mean(1, keepdim=True), values) if self._any_grey else values

    def quantise(self, values: Tensor) -> Tensor:
        """Nearest 8-bit picture *inside* the ball, as k/255 in 0..1; untouched pixels stay bit for bit."""
        # In place: pictures may be large, and this is where most of their copies are alive.
        whole, highest = values.round(), self.upper.floor()
        bound = self.lower.ceil()
        free = (bound <= highest) & (self.allowed > 0)
        whole = whole.clamp_(bound, highest)
        if self.apart is not None:
            shown = self.original.round()
            low, high = ((edge - shown) * free for edge in (bound, highest))
            whole = shown + drawn_together((whole - shown) * free, self.apart.floor(), low, high, whole=True)
        whole = whole.div_(255)
        return torch.where(free, whole, self.picture, out=whole)


def is_grey(picture: Tensor) -> Tensor:
    """Whether each of B×3×H×W pictures has R = G = B at every pixel: B×1×1×1, bool."""
    return (picture == picture[:, :1]).flatten(1).all(1).view(-1, 1, 1, 1)


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
        raise AntiPureError(f"The mask has shape {sizes(mask.shape)}; for this picture it must be {sizes(expected)}.")
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise AntiPureError("The mask holds values outside 0..1; give 1 where the picture may change and 0 elsewhere.")
