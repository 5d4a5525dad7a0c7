"""What a robustness report says of looks and latents: rows for its tables and sentences for its verdict."""

from __future__ import annotations

from dataclasses import astuple
from statistics import fmean as mean

from ..metrics.visibility import is_stripe
from .report import MATCHED, PROTECTION, RANDOM, Looks, Report

LOOKS_HEADS = ("peak share", "CIEDE2000", "95 %", "seen luma", "seen chroma")


def looks_of(report: Report, protection: str) -> Looks | None:
    """The looks of a protection: the largest peak share, the rest as means over the pictures; None in older reports."""
    found = [report.row(i, PROTECTION, protection).looks for i in range(report.pictures)]
    if None in found:
        return None
    peak, *others = zip(*(astuple(looks) for looks in found if looks is not None), strict=True)
    return Looks(max(peak), *(mean(values) for values in others))


def looks_row(report: Report, protection: str) -> tuple[str, ...]:
    """Under `LOOKS_HEADS`; empty in older reports."""
    looks = looks_of(report, protection)
    if looks is None:
        return ()
    seen = (looks.ciede2000, looks.ciede2000_p95, looks.seen_luma, looks.seen_chroma)
    return (f"{100 * looks.peak_share:.2f} %", *(f"{value:.2f}" for value in seen))


def latent_rows(report: Report, protection: str) -> list[tuple[str, ...]]:
    """(after, then for each VAE the shift and its ratios to both controls), one row an attacker and the worst case."""
    rows = []
    for column in (None, *report.columns):
        cells = [
            (
                f"{report.latent(PROTECTION, protection, vae, column):.3f}",
                f"{report.latent_ratio(protection, vae, column):.2f}",
                f"{report.latent_ratio(protection, vae, column, RANDOM):.2f}",
            )
            for vae in report.autoencoders
        ]
        rows.append(("as it is" if column is None else column.name, *(text for cell in cells for text in cell)))
    worst = [
        text
        for vae in report.autoencoders
        for text in ("", *(f"{report.latent_worst(protection, vae, of):.2f}" for of in (MATCHED, RANDOM)))
    ]
    return [*rows, ("worst over attackers", *worst)]


def of_stripe(report: Report, protection: str) -> str:
    """The defect, as a sentence; "" where there is none."""
    looks = looks_of(report, protection)
    if looks is None or not is_stripe(looks.peak_share, *report.size):
        return ""
    return (
        f" A defect: {100 * looks.peak_share:.0f} % of its energy lies in one frequency, a stripe that shows on "
        "flat areas and that a small filter takes away."
    )


def of_latents(report: Report, protection: str) -> str:
    """How far it moves what VAEs see, for the one it moves least; "" without VAEs."""
    if not report.autoencoders:
        return ""
    least = min(report.autoencoders, key=lambda vae: report.latent_worst(protection, vae))
    return (
        f" The VAE {least} sees it {report.latent_ratio(protection, least):.1f} times as far from the original as "
        f"noise with the same spectrum, {report.latent_worst(protection, least):.1f} times after the worst of "
        f"{len(report.columns)} attackers."
    )
