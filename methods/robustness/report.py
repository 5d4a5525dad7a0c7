"""What a robustness report holds, and what may be concluded from it. Made by `robustness.measure`."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

from torch import Tensor

CLEAN, PROTECTION, MATCHED, RANDOM, SMOOTH = "clean", "protection", "matched", "random", "smooth"
CONTROL_TITLES = {MATCHED: "same spectrum", RANDOM: "random", SMOOTH: "blur"}
# Distortions below are counted as this one: two pictures a purifier has made equal have a ratio of 1.
FLOOR = 1e-4
# From how many times its control's distortion on a protection survives, or survives in part. Two draws of the same
# noise differ by a tenth or so.
SURVIVES, PARTLY = 3.0, 1.5


@dataclass(frozen=True)
class Looks:
    """What is seen of a version of a picture, see `metrics.visibility`: peak share 0..1, CIEDE2000 (mean, 95th
    percentile), luma and chroma after an eye-like blur in 8-bit levels."""

    peak_share: float
    ciede2000: float
    ciede2000_p95: float
    seen_luma: float
    seen_chroma: float


@dataclass(frozen=True)
class Cell:
    """One picture after one purifier, a value per seed: structural distortion and detail ratio against Pure(clean),
    PSNR in dB to the original (to its view, where the purifier changes the size). latent: latent shift against
    Pure(clean), for each of `Report.autoencoders`."""

    distortion: tuple[float, ...]
    detail: tuple[float, ...]
    psnr: tuple[float, ...]
    latent: tuple[tuple[float, ...], ...] = ()

    @property
    def mean(self) -> float:
        """Mean structural distortion."""
        return sum(self.distortion) / len(self.distortion)


@dataclass(frozen=True)
class Row:
    """One version of one picture before the purifiers, and its cells behind them.

    picture: from 0. kind: "clean", "protection", "matched", "random" or "smooth". protection: the one it is, or is a
    control of; "" for clean. psnr (dB), ssim, levels: its cost (controls: of the first seed's). cells: one a purifier.
    curve: mean structural distortion after each of `Report.iterations`. looks: of the first seed; None in older
    reports. latent: latent shift of the version itself, a value per seed for each of `Report.autoencoders`.
    """

    picture: int
    kind: str
    protection: str
    psnr: float
    ssim: float
    levels: float
    cells: tuple[Cell, ...]
    curve: tuple[float, ...] = ()
    looks: Looks | None = None
    latent: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Column:
    """A purifier or transform. diffusion: whether a diffusion model takes part. denoiser: that model's name, as far as
    known. made_against: whether the protections were made against it; None where nobody said. view: whether it leaves
    pictures at another size, as trainers see them."""

    name: str
    diffusion: bool
    denoiser: str = ""
    made_against: bool | None = None
    view: bool = False


@dataclass(frozen=True)
class Worst:
    """The purifier that leaves least of a protection of a picture, as ratio to its spectrum-matched control.

    level: of the lower one of the ratios to both controls, see `level_of`.
    """

    picture: int
    protection: str
    column: Column
    ratio: float
    level: str


@dataclass(frozen=True)
class Report:
    """Everything that was measured. See `measure`.

    size: height and width. rows: `Row`s, picture by picture. curve_of: the GrIDPure behind the curves; "" without
    curves. iterations: where they were read. examples: 8-bit pictures 1×3×h×w in 0..1, at most 256×256 pixels
    of the middle of one picture, by (purifier, protection); "" for unpurified, and for the original. autoencoders:
    names of the VAEs whose latent shift was measured.
    """

    protections: tuple[str, ...]
    columns: tuple[Column, ...]
    seeds: tuple[int, ...]
    size: tuple[int, int]
    rows: tuple[Row, ...]
    curve_of: str = ""
    iterations: tuple[int, ...] = ()
    example: int = 0
    examples: dict[tuple[str, str], Tensor] = field(default_factory=dict, compare=False, repr=False)
    autoencoders: tuple[str, ...] = ()

    @property
    def pictures(self) -> int:
        """How many pictures were measured."""
        return 1 + max(row.picture for row in self.rows)

    @property
    def judging(self) -> tuple[Column, ...]:
        """The columns that judge: those with a diffusion model, or all where there is none."""
        return tuple(column for column in self.columns if column.diffusion) or self.columns

    @property
    def controls(self) -> tuple[str, ...]:
        """The kinds of controls that were measured; older reports have no "smooth"."""
        kinds = {row.kind for row in self.rows}
        return tuple(kind for kind in CONTROL_TITLES if kind in kinds)

    def row(self, picture: int, kind: str, protection: str = "") -> Row:
        """The row of a version of a picture."""
        wanted = (picture, kind, protection)
        return next(row for row in self.rows if (row.picture, row.kind, row.protection) == wanted)

    def cell(self, picture: int, kind: str, protection: str, column: Column) -> Cell:
        """The cell of a version of a picture after a purifier."""
        return self.row(picture, kind, protection).cells[self.columns.index(column)]

    def ratio(self, picture: int, protection: str, column: Column, control: str = MATCHED) -> float:
        """Mean distortion of a protection over that of its control (see `controls`), both at least `FLOOR`."""
        cells = (self.cell(picture, kind, protection, column) for kind in (PROTECTION, control))
        ours, theirs = (max(cell.mean, FLOOR) for cell in cells)
        return ours / theirs

    def spread(self, picture: int, protection: str, column: Column, control: str = MATCHED) -> float:
        """Standard deviation over the seeds of the ratio; NaN for one seed."""
        cells = (self.cell(picture, kind, protection, column) for kind in (PROTECTION, control))
        pairs = zip(*(cell.distortion for cell in cells), strict=True)
        ratios = [max(ours, FLOOR) / max(theirs, FLOOR) for ours, theirs in pairs]
        return statistics.stdev(ratios) if len(ratios) > 1 else math.nan

    def within_spread(self, picture: int, protection: str, column: Column, control: str = MATCHED) -> bool:
        """Whether some seed's control has at least the distortion that some seed's protection has."""
        ours, theirs = (self.cell(picture, kind, protection, column) for kind in (PROTECTION, control))
        return len(self.seeds) > 1 and min(ours.distortion) <= max(theirs.distortion)

    def mean_ratio(self, protection: str, column: Column, control: str = MATCHED) -> float:
        """`ratio`, mean over the pictures."""
        return sum(self.ratio(i, protection, column, control) for i in range(self.pictures)) / self.pictures

    def lowest(self, protection: str) -> Column:
        """The judging column with the lowest `mean_ratio`."""
        return min(self.judging, key=lambda column: self.mean_ratio(protection, column))

    def worst(self, picture: int, protection: str) -> Worst:
        """The per-picture worst case over `judging`."""
        column = min(self.judging, key=lambda c: self.ratio(picture, protection, c))
        ratios = [self.ratio(picture, protection, column, control) for control in (MATCHED, RANDOM)]
        return Worst(picture, protection, column, ratios[0], level_of(min(ratios)))

    def worst_of_all(self, protection: str) -> Worst:
        """The worst of the per-picture worst cases."""
        return min((self.worst(i, protection) for i in range(self.pictures)), key=lambda worst: worst.ratio)

    def over_attackers(self, protection: str, control: str = MATCHED) -> float:
        """The ratio after each picture's own worst of `judging`, mean over the pictures."""
        worst = (min(self.ratio(i, protection, c, control) for c in self.judging) for i in range(self.pictures))
        return sum(worst) / self.pictures

    def latent(self, kind: str, protection: str, vae: str, column: Column | None = None) -> float:
        """Latent shift of a version of the pictures, as it is or after a purifier; mean over pictures and seeds."""
        return statistics.fmean(self._latent(i, kind, protection, vae, column) for i in range(self.pictures))

    def latent_ratio(self, protection: str, vae: str, column: Column | None = None, control: str = MATCHED) -> float:
        """Latent shift of a protection over that of its control, mean over the pictures."""
        return statistics.fmean(self._latent_ratio(i, protection, vae, column, control) for i in range(self.pictures))

    def latent_worst(self, protection: str, vae: str, control: str = MATCHED) -> float:
        """`latent_ratio` after each picture's own worst attacker: nothing at all, a purifier, a transform or a view."""
        attackers = (None, *self.columns)
        return statistics.fmean(
            min(self._latent_ratio(i, protection, vae, column, control) for column in attackers)
            for i in range(self.pictures)
        )

    def _latent(self, picture: int, kind: str, protection: str, vae: str, column: Column | None) -> float:
        row = self.row(picture, kind, protection)
        found = row.latent if column is None else row.cells[self.columns.index(column)].latent
        return statistics.fmean(found[self.autoencoders.index(vae)])

    def _latent_ratio(self, picture: int, protection: str, vae: str, column: Column | None, control: str) -> float:
        ours, theirs = (self._latent(picture, kind, protection, vae, column) for kind in (PROTECTION, control))
        return max(ours, FLOOR) / max(theirs, FLOOR)


def level_of(ratio: float) -> str:
    """What a ratio means: "survives" (3 and more), "partly" (1.5 and more), "no more than noise"."""
    return "survives" if ratio >= SURVIVES else "partly" if ratio >= PARTLY else "no more than noise"
