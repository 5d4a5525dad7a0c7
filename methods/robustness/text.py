"""A robustness report as a plain verdict, as Markdown and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from statistics import fmean as mean

from ..figures.text_table import text_table
from .headline import headlines
from .looks import LOOKS_HEADS, latent_rows, looks_of, looks_row, of_latents, of_stripe
from .report import (
    CLEAN,
    CONTROL_TITLES,
    FLOOR,
    LATENT_FLOOR,
    MATCHED,
    PARTLY,
    PROTECTION,
    RANDOM,
    SMOOTH,
    SURVIVES,
    Column,
    Report,
    level_of,
)

FORMAT, VERSION = "antipure-robustness", 2
_WORDS = {"survives": "the protection survives", "partly": "the protection survives in part"}
_HARDLY = 1.1  # from here on "hardly more than noise" is said of the lowest level


# Verdict -----------------------------------------------------------------------------------------------------


def verdict(report: Report) -> str:
    """What was found, in a few sentences for each protection, and no more than was measured.

    It names the first judging purifier and the worst case. A level is the lower one of the ratios to both controls.
    """
    several = len(report.protections) > 1
    lines = [
        (f"{name}: " if several else "")
        + _of_protection(report, name, several)
        + _of_blur(report, name)
        + of_stripe(report, name)
        + of_latents(report, name)
        for name in report.protections
    ]
    seeds = "one seed of the noise" if len(report.seeds) == 1 else f"{len(report.seeds)} seeds of the noise"
    end = f"Measured with {seeds}; other purifiers, and what a model learns, were not measured."
    if not report.judging[0].diffusion:
        end = f"Only transforms were measured, with {seeds}; what a purifier behind them leaves is open."
    return "\n".join([*lines, end]) if several else f"{lines[0]} {end}"


def _of_protection(report: Report, protection: str, several: bool) -> str:
    first, worst = report.judging[0], report.worst_of_all(protection)
    pictures = range(report.pictures)
    where = "On this picture" if report.pictures == 1 else f"On these {report.pictures} pictures"
    where = where[0].lower() + where[1:] if several else where
    times = f"{report.mean_ratio(protection, first):.1f}"
    if report.pictures > 1:
        ratios = [report.ratio(i, protection, first) for i in pictures]
        times += f" ({min(ratios):.1f} to {max(ratios):.1f})"
    elif len(report.seeds) > 1:
        times += f" ± {report.spread(0, protection, first):.1f}"
    found = (
        f"{where}, {_named(first, with_denoiser=True)} leaves {times} times what it leaves of noise with the same "
        f"spectrum{_judgement(report, protection, first, pictures)}."
    )
    if report.pictures == 1 and len(report.judging) == 1:
        return found
    if report.pictures == 1 and worst.column == first:
        return f"{found} None of the {len(report.judging)} measured purifiers leaves less."
    after = (
        "" if len(report.judging) == 1 else f" after {_named(worst.column, worst.column.denoiser != first.denoiser)}"
    )
    on = "" if report.pictures == 1 else f" on picture {worst.picture + 1}"
    judged = _judgement(report, protection, worst.column, [worst.picture]).replace(": ", ", ", 1)
    return f"{found} Weakest{after}{on}: {worst.ratio:.1f} times{judged}."


def _of_blur(report: Report, protection: str) -> str:
    """How much of the distortion a mere blur has; "" for reports without that control."""
    if SMOOTH not in report.controls or not report.judging[0].diffusion:
        return ""
    ratio = report.mean_ratio(protection, report.judging[0], SMOOTH)
    text = f" A mere blur within the same levels leaves {1 / ratio:.1f} times as much"
    if level_of(ratio) == level_of(0):
        text += ": whether the protection does more than take detail away, only training a model on it can tell"
    return f"{text}."


def _judgement(report: Report, protection: str, column: Column, pictures: Iterable[int]) -> str:
    """What comes behind a ratio: the other control where it says less, the level, and whether it may be chance."""
    pictures = list(pictures)
    matched, random = (
        mean(report.ratio(i, protection, column, control) for i in pictures) for control in (MATCHED, RANDOM)
    )
    level = level_of(min(matched, random))
    text = ""
    if level != level_of(matched):
        text = f", but only {random:.1f} times what it leaves of random noise of the same levels"
    noise = f"{'hardly' if min(matched, random) >= _HARDLY else 'no'} more than noise"
    text += f": {_WORDS.get(level, noise)}"
    by_chance = [
        any(report.within_spread(i, protection, column, control) for control in (MATCHED, RANDOM)) for i in pictures
    ]
    if any(by_chance) and level != level_of(0):
        on = "" if report.pictures == 1 or len(pictures) == 1 else f" on {sum(by_chance)} of them"
        text += f", though{on} the spread of the {len(report.seeds)} seeds covers the difference"
    return text


def _named(column: Column, with_denoiser: bool) -> str:
    told = {None: "", True: " (made against it)", False: " (not made against it)"}[column.made_against]
    network = f" with the {column.network} {column.denoiser}" if with_denoiser and column.denoiser else ""
    return column.name + network + told


# Markdown ----------------------------------------------------------------------------------------------------


def markdown(report: Report) -> str:
    """Verdict, cost, a table of purifiers for each protection, worst cases and curves; means over the pictures."""
    pictures = range(report.pictures)
    height, width = report.size
    count = "1 picture" if report.pictures == 1 else f"{report.pictures} pictures"
    seeds = ", ".join(map(str, report.seeds))
    parts = [
        "# Robustness Report",
        *(f"**{line}**" for line in headlines(report).split("\n")),
        verdict(report).replace("\n", "\n\n"),
        f"{count} of {width}×{height} pixels; seed{'s' if len(report.seeds) > 1 else ''} {seeds}"
        + "".join(f"; {networks}" for networks in report.networks)
        + ".",
        "## Cost",
        text_table(
            ("protection", "PSNR", "SSIM", "levels", *(LOOKS_HEADS if looks_of(report, report.protections[0]) else ())),
            [
                (
                    _cell(name),
                    f"{mean(row.psnr for row in rows):.2f}",
                    f"{mean(row.ssim for row in rows):.3f}",
                    f"{max(row.levels for row in rows):.0f}",
                    *looks_row(report, name),
                )
                for name in report.protections
                for rows in [[report.row(i, PROTECTION, name) for i in pictures]]
            ],
        ),
    ]
    for name in report.protections:
        parts += [f"## {_cell(name)} after each purifier", _after(report, name)]
    if report.autoencoders:
        heads = (
            "after",
            *(head for vae in report.autoencoders for head in (_cell(vae), "/ same spectrum", "/ random")),
        )
        for name in report.protections:
            parts += [f"## Latent shift of {_cell(name)}", text_table(heads, latent_rows(report, name))]
    if report.pictures > 1:
        worst = [report.worst(i, name) for i in pictures for name in report.protections]
        rows = [(str(w.picture + 1), _cell(w.protection), w.column.name, f"{w.ratio:.2f}", w.level) for w in worst]
        parts += [
            "## Worst case of each picture",
            text_table(("picture", "protection", "after", "ratio", "level"), rows, 3),
        ]
    if report.iterations:
        parts += [f"## Structural distortion over iterations of {report.curve_of}", _curves(report)]
    blur = (
        " *Blur*: the picture blurred as far as that level reaches; it attacks nothing, and its ratio says how far the "
        "distortion is more than detail taken away."
        if SMOOTH in report.controls
        else ""
    )
    parts.append(
        "Structural distortion (1 - contrast-structure term of SSIM) and detail ratio compare the purified protected "
        "picture with the purified clean one, same noise. *Same spectrum*: noise with the perturbation's spectrum; "
        "*random*: random signs of the same largest level. The ratio to the first is the figure to read: from "
        f"{SURVIVES:g} on a protection survives, from {PARTLY:g} on in part, below it leaves no more than noise. "
        f"Distortions below {FLOOR:g} count as {FLOOR:g}. Transforms without a network stand in brackets: they "
        "remove little of anything, so their ratios judge nothing. The lowest in bold. *Worst over attackers*: each "
        "picture after its own worst purifier, mean over the pictures."
        + blur
        + (
            " *Latent shift*: how far the picture moves in a VAE's latent space, against the original (purified "
            "alike), over the latent's own standard deviation; its worst case counts transforms and views, too. For "
            f"the ratios, shifts below {LATENT_FLOOR:g} count as {LATENT_FLOOR:g}."
            if report.autoencoders
            else ""
        )
    )
    return "\n\n".join(parts) + "\n"


def _after(report: Report, name: str) -> str:
    pictures = range(report.pictures)
    lowest = report.lowest(name)

    def line(column: Column) -> tuple[str, ...]:
        def average(kind: str, of: str = "distortion") -> float:
            protection = "" if kind == CLEAN else name
            return mean(mean(getattr(report.cell(i, kind, protection, column), of)) for i in pictures)

        ratios = [f"{report.mean_ratio(name, column, control):.2f}" for control in report.controls]
        if len(report.seeds) > 1:
            ratios[0] += f" ± {mean(report.spread(i, name, column) for i in pictures):.2f}"
        others = zip(report.controls[1:], ratios[1:], strict=True)
        shown = column.name if column in report.judging else f"({column.name})"
        shown += {None: "", True: ", made against", False: ""}[column.made_against]
        bold = "**" if column == lowest else ""
        return (
            bold + shown + bold,
            f"{average(PROTECTION):.4f}",
            f"{average(MATCHED):.4f}",
            bold + ratios[0] + bold,
            *(v for kind, ratio in others for v in (f"{average(kind):.4f}", ratio)),
            f"{average(PROTECTION, 'detail'):.2f}",
            f"{average(PROTECTION, 'psnr'):.2f}",
            f"{average(CLEAN, 'psnr'):.2f}",
        )

    controls = [head for kind in report.controls for head in (CONTROL_TITLES[kind], "ratio")]
    heads = ("purifier", "distortion", *controls, "detail ratio", "PSNR after", "clean, PSNR after")
    worst = [f"{report.over_attackers(name, control):.2f}" for control in report.controls]
    others = [text for ratio in worst[1:] for text in ("", ratio)]
    last = ("worst over attackers", "", "", worst[0], *others, "", "", "")
    return text_table(heads, [*(line(column) for column in report.columns), last])


def _curves(report: Report) -> str:
    names = {PROTECTION: "{}", **{kind: "{}, " + CONTROL_TITLES[kind] for kind in report.controls}}
    lines = [(names[kind].format(_cell(name)), kind, name) for name in report.protections for kind in names]
    pictures = range(report.pictures)
    rows = [
        (
            str(iterations),
            *(f"{mean(report.row(p, kind, name).curve[i] for p in pictures):.4f}" for _, kind, name in lines),
        )
        for i, iterations in enumerate(report.iterations)
    ]
    return text_table(("iterations", *(title for title, _, _ in lines)), rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# JSON --------------------------------------------------------------------------------------------------------


def to_dict(report: Report) -> dict:
    """The report as plain JSON values; format "antipure-robustness", version 2.

    Version 2 adds to version 1, and moves nothing: purifiers[].view, purifiers[].network (what `denoiser` names),
    thresholds.latent_floor, autoencoders, over_attackers, rows[].looks, rows[].latent and cells[].latent (by VAE, one
    value a seed).

    rows[].cells[purifier] holds distortion, detail and psnr, one value per seed. JSON knows no infinity: the PSNR of
    equal pictures is null. thresholds, worst and verdict follow from the rest.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "verdict": verdict(report),
        "headlines": headlines(report).split("\n"),
        "size": list(report.size),
        "seeds": list(report.seeds),
        "protections": list(report.protections),
        "purifiers": [
            {"name": c.name, "diffusion": c.diffusion, "denoiser": c.denoiser, "made_against": c.made_against,
             "view": c.view, "network": c.network}
            for c in report.columns
        ],
        "thresholds": {"survives": SURVIVES, "partly": PARTLY, "floor": FLOOR, "latent_floor": LATENT_FLOOR},
        "worst": [
            {"picture": w.picture, "protection": name, "purifier": w.column.name, "ratio": w.ratio,
             "level": w.level}
            for i in range(report.pictures) for name in report.protections for w in [report.worst(i, name)]
        ],
        "curve": {"of": report.curve_of, "iterations": list(report.iterations)},
        "example": report.example,
        "autoencoders": list(report.autoencoders),
        "over_attackers": [
            {
                "protection": name,
                "ratio": report.over_attackers(name),
                "latent": {vae: report.latent_worst(name, vae) for vae in report.autoencoders},
            }
            for name in report.protections
        ],
        "rows": [
            {
                "picture": row.picture, "kind": row.kind, "protection": row.protection,
                "psnr": _finite(row.psnr), "ssim": row.ssim, "levels": row.levels,
                "looks": None if row.looks is None else asdict(row.looks),
                "latent": _by_vae(report, row.latent),
                "cells": {
                    column.name: {
                        "distortion": list(cell.distortion),
                        "detail": list(cell.detail),
                        "psnr": [_finite(value) for value in cell.psnr],
                        "latent": _by_vae(report, cell.latent),
                    }
                    for column, cell in zip(report.columns, row.cells, strict=True)
                },
                "curve": list(row.curve),
            }
            for row in report.rows
        ],
    }  # fmt: skip


def to_json(report: Report) -> str:
    """`to_dict` as text."""
    return json.dumps(to_dict(report), indent=1, ensure_ascii=False, allow_nan=False)


def _by_vae(report: Report, latent: tuple[tuple[float, ...], ...]) -> dict[str, list[float]]:
    return {vae: list(values) for vae, values in zip(report.autoencoders, latent, strict=True)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
