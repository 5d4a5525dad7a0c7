"""How algorithms tell how far they are: one protocol for attacks, purifiers, training and measurements."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Progress(Protocol):
    """Called after every step, and within long ones; may raise to cancel, and what it interrupts restores its changes.

    done, total: in the caller's own units, done <= total; within a step done is no whole number. picture: 1×3×H×W in
    0..1, what there is to look at by now, or None. loss: the latest one, or None where there is none.
    """

    def __call__(
        self, done: float, total: int, picture: Tensor | None = None, loss: Tensor | float | None = None, /
    ) -> None: ...


def silent(done: float, total: int, picture: Tensor | None = None, loss: Tensor | float | None = None, /) -> None:
    """The `Progress` of whoever does not want to know."""


def part(progress: Progress, before: int, cost: int, whole: int) -> Progress:
    """The `Progress` of a piece of work that is `cost` of `whole` units, `before` of which are done when it begins.

    The piece counts in units of its own. Where it consists of several pieces, each with its own count, it stays at its
    end rather than pass it.
    """

    def report(done: float, total: int, picture: Tensor | None = None, loss: Tensor | float | None = None, /) -> None:
        progress(before + min(cost * done // max(total, 1), cost), whole, picture, loss)

    return report
