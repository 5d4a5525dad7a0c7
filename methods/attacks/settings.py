"""What whoever protects a picture chooses, whatever the protection: made once, where the picture enters."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import AntiPureError
from ..progress import Progress, silent
from .budget import check_budget, check_mask
from .visibility import FULL, check_visibility


@dataclass(frozen=True)
class AttackSettings:
    """Budget, effort and randomness of an attack.

    levels: radius of the L-infinity ball in 8-bit levels, above 0 and at most 255. steps: of gradient ascent, at
    least 1. mask: B×1×H×W in 0..1, scales the budget per pixel; None: all of it everywhere. seeds: one for all
    pictures, or one per picture. progress: called after each step with the picture as it is then and the loss,
    within a step of several batches with the picture as it was.
    keep_grey: a picture with R = G = B everywhere gets a grey perturbation; others are never touched by it.
    visibility: one of `visibility.SETTINGS`: `full` uses the whole budget everywhere, the others less where it shows.
    """

    levels: float = 8
    steps: int = 100
    mask: Tensor | None = None
    seeds: int | list[int] = 0
    progress: Progress = silent
    keep_grey: bool = True
    visibility: str = FULL

    def check(self, picture: Tensor) -> None:
        """Raise `AntiPureError` for a budget, steps, mask or visibility that does not serve this B×3×H×W picture."""
        check_budget(self.levels, self.steps)
        check_mask(self.mask, picture)
        check_visibility(self.visibility)

    def seeds_of(self, count: int) -> list[int]:
        """A seed for each of `count` pictures; raises `AntiPureError` where another number of them was given."""
        seeds = [self.seeds] * count if isinstance(self.seeds, int) else list(self.seeds)
        if len(seeds) != count:
            raise AntiPureError(f"{len(seeds)} seeds for {count} pictures; give one seed or one for each.")
        return seeds

    def mask_of(self, part: slice) -> Tensor | None:
        """The mask of some of the pictures, None where there is none."""
        return None if self.mask is None else self.mask[part].clone()
