"""Tables and sheets of `benchmarks.customization`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar

from antipure.methods.customization.gap import customization_gap
from antipure.methods.figures.inspection_sheet import labelled_sheet
from antipure.methods.figures.text_table import text_table
from torch import Tensor

from .work import half_width


@dataclass(frozen=True)
class Result:
    """One customization. psnr: of the picture it was trained on to the clean one (at most 99; None: no picture).

    The others: `customization_metrics.probe_loss` and `judge_samples`.
    """

    FIGURES: ClassVar[tuple[str, ...]] = ("loss", "swd", "kid", "spectrum")
    subject: str
    version: str
    purified: bool
    seed: int
    psnr: float | None
    loss: float
    swd: float
    kid: float
    spectrum: float


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


def gaps(results: list[Result]) -> dict[Result, float]:
    """The customization gap of every result, to the clean picture's with the same subject and seed."""
    clean = {(r.subject, r.seed): r.loss for r in results if r.version == "clean" and not r.purified}
    return {r: customization_gap(r.loss, clean[r.subject, r.seed]) for r in results}


def markdown(results: list[Result], base: str) -> str:
    """Tables before and after purification, and how far each version is behind the one with the largest gap."""
    gap = gaps(results)
    versions = list(dict.fromkeys(r.version for r in results if r.version != base))
    parts = [
        "Mean ± 95 % interval over the seeds' means (± over pictures × seeds). Gap: thousandths of the denoising "
        "loss on clean crops above customizing on the clean picture; higher protects more. SWD, KID (bundled denoiser's"
        " middle block) and spectrum (dB): samples against clean crops."
    ]

    def rows(purified: bool, names: list[str]) -> str:
        lines = []
        for name in names:
            chosen = [r for r in results if r.version == name and (r.purified == purified or name == base)]
            shown = "–" if name == base else f"{fmean(r.psnr for r in chosen):.1f}"
            cells = [Figure.of(chosen, gap.__getitem__).text(1000)]
            cells += [Figure.of(chosen, lambda r, key=key: getattr(r, key)).text(1000) for key in ("swd", "kid")]
            cells.append(Figure.of(chosen, lambda r: r.spectrum).text(digits=2))
            title = "not customized" if name == base else name
            lines.append([title, shown, *cells])
        return text_table(("version", "PSNR", "gap × 1000", "SWD × 1000", "KID × 1000", "spectrum, dB"), lines)

    for purified, title in ((False, "Customized on the picture as it is"), (True, "Customized on it purified")):
        parts.append(f"**{title}**\n\n{rows(purified, [base, *versions])}")
    by = {(r.version, r.subject, r.seed): gap[r] for r in results if r.purified}
    best = max(versions, key=lambda v: fmean(value for (name, *_), value in by.items() if name == v))
    lines = []
    leaders = [r for r in results if r.version == best and r.purified]
    for name in versions:
        if name != best:
            paired = {r: gap[r] - by[name, r.subject, r.seed] for r in leaders}
            above = sum(value > 0 for value in paired.values())
            lines.append((name, Figure.of(leaders, paired.__getitem__).text(1000), f"{above} of {len(paired)}"))
    table = text_table((f"{best} less", "difference of gaps × 1000", "pairs above 0"), lines)
    parts.append(f"**Purified, `{best}` has the largest gap**; paired by picture and seed\n\n{table}")
    return "\n\n".join(parts)


def sheet(pictures: dict[str, Tensor]) -> Tensor:
    """A subject's pictures by name, four in a row: a version, its samples, the same purified, its samples."""
    first = {name: p for name, p in pictures.items() if name == "original" or name.startswith("base")}
    blanks = {" " * (i + 1): pictures["original"] * 0 + 1 for i in range(4 - len(first))}
    return labelled_sheet({**first, **blanks, **{k: v for k, v in pictures.items() if k not in first}})
