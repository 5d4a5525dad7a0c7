"""Tables and sheets of `benchmarks.customization`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar

from antipure.methods.customization.gap import PROBE_RANGES, customization_gap
from antipure.methods.figures.inspection_sheet import labelled_sheet
from antipure.methods.figures.text_table import text_table
from torch import Tensor

from .work import half_width

BASE = "base"  # the model as it is, not customized
CLEAN, NONE = "clean", "none"
REFERENCE = "reference"  # customized on the clean picture as an attacker sees it


@dataclass(frozen=True)
class Result:
    """One customization.

    after: what the attacker did first. view: "" where that left the picture at its size and cut, else the same text.
    psnr: of the picture it was trained on to the clean one at its size (at most 99; None: no picture).
    The others: `gap.probe_losses` and `judge_samples` (None: no samples).
    """

    LOSSES: ClassVar[tuple[str, ...]] = tuple(PROBE_RANGES)
    SAMPLES: ClassVar[tuple[str, ...]] = ("swd", "kid", "spectrum")
    subject: str
    version: str
    after: str
    seed: int
    view: str
    psnr: float | None
    loss_20_100: float
    loss_100_400: float
    swd: float | None = None
    kid: float | None = None
    spectrum: float | None = None


@dataclass(frozen=True)
class Figure:
    """Mean over pictures and seeds; half intervals over the seeds' means and over all values."""

    mean: float
    over_seeds: float
    over_all: float

    @classmethod
    def of(cls, results: list[Result], value: Callable[[Result], float]) -> Figure:
        by_seed = [fmean(value(r) for r in results if r.seed == seed) for seed in sorted({r.seed for r in results})]
        values = [value(r) for r in results]
        return cls(fmean(values), half_width(by_seed), half_width(values))

    def text(self, scale: float = 1, digits: int = 1) -> str:
        mean, over_seeds, over_all = (f"{v * scale:.{digits}f}" for v in (self.mean, self.over_seeds, self.over_all))
        if math.isnan(self.over_seeds):  # one seed
            return mean if math.isnan(self.over_all) else f"{mean} (± {over_all})"
        return f"{mean} ± {over_seeds} (± {over_all})"


def gaps(results: list[Result], loss: str) -> dict[Result, float]:
    """The customization gap of every result in a figure of `Result.LOSSES`.

    It is taken to the clean picture's with the same subject and seed, seen as the attacker's customization sees it.
    """
    clean = {
        (r.subject, r.seed, r.view): getattr(r, loss)
        for r in results
        if r.version == REFERENCE or (r.version == CLEAN and r.after == NONE)
    }
    return {r: customization_gap(getattr(r, loss), clean[r.subject, r.seed, r.view]) for r in results}


def worst(gap: dict[Result, float]) -> dict[str, dict[tuple[str, int], Result]]:
    """By version, and by subject and seed: the result of the attacker who learned most."""
    found: dict[str, dict[tuple[str, int], Result]] = {}
    for r, value in gap.items():
        if r.version in (BASE, REFERENCE):
            continue
        least = found.setdefault(r.version, {})
        place = (r.subject, r.seed)
        if place not in least or value < gap[least[place]]:
            least[place] = r
    return found


def markdown(results: list[Result]) -> str:
    """Tables of the gap at each range of timesteps: versions × attackers, and the worst of these for each version."""
    versions = list(dict.fromkeys(r.version for r in results if r.version not in (BASE, REFERENCE)))
    after = list(dict.fromkeys(r.after for r in results))
    parts = [
        "Mean ± 95 % interval over the seeds' means (± over pictures × seeds). Gap: thousandths of the denoising "
        "loss on clean crops above customizing on the clean picture; higher protects more. Worst: the smallest over "
        "the columns, of each picture and seed (by the one that has it most often): noise alone makes it negative, so "
        "read it against the controls. PSNR: of the pictures as they are."
    ]
    for loss, (low, high) in PROBE_RANGES.items():
        gap = gaps(results, loss)
        table = _gap_table(results, gap, versions, after)
        parts.append(f"**Customization gap × 1000, timesteps {low}-{high}**, by what was done first\n\n{table}")
    if all(r.swd is not None for r in results):
        title = (
            "**Samples against clean crops**: SWD × 1000 / KID × 1000 (bundled denoiser's middle block) / spectrum, dB"
        )
        parts.append(f"{title}\n\n{_sample_table(results, versions, after)}")
    if len(versions) > 1:
        parts.append(_leader(gaps(results, Result.LOSSES[0]), versions))
    return "\n\n".join(parts)


def _gap_table(results: list[Result], gap: dict[Result, float], versions: list[str], after: list[str]) -> str:
    views = {r.after: r.view for r in results}
    least = worst(gap)

    def cell(chosen: list[Result]) -> str:
        return Figure.of(chosen, gap.__getitem__).text(1000) if chosen else "–"

    base = [[r for r in results if r.version == BASE and r.view == views[text]] for text in after]
    lines = [["not customized", "–", *map(cell, base), ""]]
    for name in versions:
        own = [r for r in results if r.version == name]
        shown = fmean(r.psnr for r in own if r.after == NONE)  # type: ignore[misc]  # customized, so there is a picture
        at_worst = list(least[name].values())
        by = Counter(r.after for r in at_worst).most_common(1)[0][0]
        cells = [cell([r for r in own if r.after == text]) for text in after]
        lines.append([name, f"{shown:.1f}", *cells, f"{cell(at_worst)} ({by})"])
    return text_table(("version", "PSNR", *after, "worst"), lines)


def _sample_table(results: list[Result], versions: list[str], after: list[str]) -> str:
    def cell(chosen: list[Result]) -> str:
        if not chosen:
            return "–"
        swd, kid, spectrum = (fmean(getattr(r, name) for r in chosen) for name in Result.SAMPLES)
        return f"{swd * 1000:.1f} / {kid * 1000:.1f} / {spectrum:.2f}"

    lines = [
        [name, *(cell([r for r in results if r.version == name and r.after == text]) for text in after)]
        for name in (BASE, *versions)
    ]
    return text_table(("version", *after), lines)


def _leader(gap: dict[Result, float], versions: list[str]) -> str:
    """How far each version is behind the one with the largest gap after the worst attacker."""
    least = worst(gap)
    best = max(versions, key=lambda v: fmean(gap[r] for r in least[v].values()))
    lines = []
    for name in versions:
        if name != best:
            places = [place for place in least[best] if place in least[name]]
            paired = {least[best][place]: gap[least[best][place]] - gap[least[name][place]] for place in places}
            above = sum(value > 0 for value in paired.values())
            figure = Figure.of(list(paired), paired.__getitem__).text(1000)
            lines.append((name, figure, f"{above} of {len(paired)}"))
    table = text_table((f"{best} less", "difference of gaps × 1000", "pairs above 0"), lines)
    low, high = PROBE_RANGES[Result.LOSSES[0]]
    return (
        f"**After the worst attacker, `{best}` has the largest gap** (timesteps {low}-{high}); paired by picture and "
        f"seed\n\n{table}"
    )


def sheet(pictures: dict[str, Tensor]) -> Tensor:
    """A subject's pictures by name, four in a row: a version and its samples, the next and its samples."""
    first = {name: p for name, p in pictures.items() if name == "original" or name.startswith(BASE)}
    first = dict(list(first.items())[:4])
    others = {name: p for name, p in pictures.items() if name not in first}
    blanks = {" " * (i + 1): pictures["original"] * 0 + 1 for i in range(4 - len(first))}
    return labelled_sheet({**first, **blanks, **others})
