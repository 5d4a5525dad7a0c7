"""A robustness report as one picture: heat-map table, curves over iterations, worst cases, before and after."""

from __future__ import annotations

import math
import re
import textwrap
from dataclasses import replace
from statistics import fmean as mean
from typing import Any

import numpy as np
from torch import Tensor

from ..figures.canvas import BACKGROUND, DPI, FAINT, INK, PANEL, SOFT, drawn, heat_colours, rgb, style_axes
from ..figures.fonts import BOLD, SANS, escaped, lacking
from ..figures.inspection_sheet import AMPLIFICATION
from ..pictures import from_uint8
from .looks import LOOKS_HEADS, looks_row, of_stripe
from .report import CLEAN, CONTROL_TITLES, MATCHED, PARTLY, PROTECTION, RANDOM, SMOOTH, SURVIVES, Column, Report
from .text import verdict

WIDTH, EDGE = 1480, 30
LABELS, COLUMNS = 190, 12  # width of the row labels; purifiers side by side before the table goes on below
TALL, SHORT, HEAD, GAP = 50, 24, 62, 52
PLOT = 300
GAIN = f"x{AMPLIFICATION}"
LINES = ((240, 180, 60), (90, 170, 250), (120, 200, 120), (220, 120, 200))
CONTROLS = {MATCHED: "noise, same spectrum", RANDOM: "random noise", SMOOTH: "blur, attacks nothing"}
DASHES: dict[str, Any] = {MATCHED: "--", RANDOM: ":", SMOOTH: "-."}
HIGHEST_RATIO = 10.0
DEFECT = (255, 120, 90)


def robustness_sheet(report: Report, purifiers: tuple[str, ...] = ()) -> Tensor:
    """The sheet, 1×3×H×W in 0..1, W = 1480.

    purifiers: whose pictures are shown, by name; the first judging one and each protection's worst case by default.
    """
    from matplotlib.figure import Figure

    report, told = _drawable(report)
    lines = [wrapped for line in (*verdict(report).split("\n"), *told) for wrapped in textwrap.wrap(line, 165)]
    blocks = [report.columns[i : i + COLUMNS] for i in range(0, len(report.columns), COLUMNS)]
    table = HEAD + SHORT + GAP + len(report.protections) * (TALL + len(report.controls) * SHORT + 8)
    strips = _strips(report, purifiers)
    side = (WIDTH - 2 * EDGE - 4 * 12) // 5
    strip = (side * _ratio(report) + 46) if strips else 0.0
    seen = bool(looks_row(report, report.protections[0])) * (SHORT * (2 + len(report.protections)) + 20)
    plots = bool(report.iterations) or report.pictures > 1
    top: float = 96 + 22 * len(lines)
    height = math.ceil(top + len(blocks) * table + seen + plots * PLOT + len(strips) * strip + EDGE)

    figure = Figure((WIDTH / DPI, height / DPI), dpi=DPI, facecolor=rgb(BACKGROUND))
    page = _Page(figure, height)
    _title(page, report, lines)
    for block in blocks:
        _table(page, report, block, top, table)
        top += table
    if seen:
        _looks(page, report, top)
        top += seen
    if plots:
        _plots(page, report, top)
        top += PLOT
    for shown in strips:
        _strip(page, report, shown, top, side)
        top += strip
    return from_uint8(drawn(figure))


def _drawable(report: Report) -> tuple[Report, list[str]]:
    """The report with numbers for those protections whose names cannot be drawn, and a line about each."""
    names = {}
    for i, name in enumerate(report.protections):
        if lacking(name, SANS, BOLD):
            number = f"protection {i + 1}"
            names[name] = number if number not in report.protections else f"{number} (of {len(report.protections)})"
    told = [f"{number} is {escaped(name, SANS, BOLD)}: the font has no such letters." for name, number in names.items()]
    rows = tuple(replace(row, protection=names.get(row.protection, row.protection)) for row in report.rows)
    examples = {(purifier, names.get(name, name)): shown for (purifier, name), shown in report.examples.items()}
    protections = tuple(names.get(name, name) for name in report.protections)
    return replace(report, protections=protections, rows=rows, examples=examples), told


class _Page:
    """A figure addressed in pixels from its top left corner."""

    def __init__(self, figure, height: int):
        self.figure, self.height = figure, height

    def text(self, x: float, y: float, text: str, size: float = 10, colour=INK, **settings) -> None:
        text = escaped(text, SANS, BOLD)  # such as a denoiser's file name
        settings = {"va": "top", "ha": "left", **settings}
        self.figure.text(
            x / WIDTH, 1 - y / self.height, text, fontsize=size, color=rgb(colour), parse_math=False, **settings
        )

    def axes(self, x: float, y: float, width: float, height: float):
        box = (x / WIDTH, 1 - (y + height) / self.height, width / WIDTH, height / self.height)
        return self.figure.add_axes(box)

    def canvas(self, x: float, y: float, width: float, height: float):
        """Axes without anything, in pixels from their top left corner."""
        axes = self.axes(x, y, width, height)
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        axes.axis("off")
        return axes


def _colour(ratio: float) -> tuple[float, float, float]:
    """Dark at 1 and below, bright at `HIGHEST_RATIO`, on a logarithmic scale."""
    share = 0.12 + 0.8 * math.log(max(ratio, 1)) / math.log(HIGHEST_RATIO)
    red, green, blue = heat_colours(np.asarray(share))
    return rgb((red, green, blue))


def _short(text: str, length: int = 22) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def _title(page: _Page, report: Report, lines: list[str]) -> None:
    h, w = report.size
    count = "1 picture" if report.pictures == 1 else f"{report.pictures} pictures"
    seeds = f"seed{'s' if len(report.seeds) > 1 else ''} {', '.join(map(str, report.seeds))}"
    models = sorted({column.denoiser for column in report.columns} - {""})
    settings = [f"{count} of {w}×{h}", seeds, *([f"denoiser {', '.join(models)}"] if models else [])]
    for name in report.protections:
        rows = [report.row(i, PROTECTION, name) for i in range(report.pictures)]
        levels, psnr = max(row.levels for row in rows), mean(row.psnr for row in rows)
        settings.append(f"{_short(name)}: {levels:.0f} levels, {psnr:.1f} dB")
    page.text(EDGE, 22, "Robustness Report", 17, weight="bold")
    page.text(EDGE, 56, _short("   ·   ".join(settings), 190), 10, SOFT)
    for i, line in enumerate(lines):
        page.text(EDGE, 84 + 22 * i, line, 11)


# Table -------------------------------------------------------------------------------------------------------


def _table(page: _Page, report: Report, block: tuple[Column, ...], top: float, height: float) -> None:
    axes = page.canvas(EDGE, top, WIDTH - 2 * EDGE, height)
    step = min((WIDTH - 2 * EDGE - LABELS) / len(block), 190)
    pictures = range(report.pictures)

    def put(x: float, y: float, text: str, size: float = 10, colour=INK, **settings) -> None:
        colour = colour if max(colour) <= 1 else rgb(colour)
        settings = {"ha": "center", "va": "center", "parse_math": False, **settings}
        axes.text(x, y, text, fontsize=size, color=colour, **settings)

    size = 9.5 if step > 130 else 8.5
    for i, column in enumerate(block):
        judges = column in report.judging
        title = re.sub(
            r"(:|\+|_(?=resized))", lambda found: f"\n{found[1]}" if found[1] == "+" else f"{found[1]}\n", column.name
        )
        mark = {None: "", True: "\nmade against", False: ""}[column.made_against]
        put(
            LABELS + (i + 0.5) * step,
            HEAD - 6,
            title + mark,
            size,
            INK if judges else SOFT,
            va="bottom",
            linespacing=1.1,
        )
    y = HEAD
    for name in report.protections:
        lowest = report.lowest(name)
        put(0, y + TALL / 2, _short(name, 17), 12, ha="left", weight="bold")
        for j, kind in enumerate(report.controls):
            put(14, y + TALL + (j + 0.5) * SHORT, CONTROLS[kind], 9, SOFT, ha="left")
        for i, column in enumerate(block):
            x, ratio = LABELS + i * step, report.mean_ratio(name, column)
            judges, worst = column in report.judging, column == lowest
            face = _colour(ratio) if judges else rgb(PANEL)
            edge = rgb(INK) if worst else rgb(BACKGROUND)
            axes.add_patch(_rectangle(x + 1, y + 1, step - 2, TALL - 2, face, edge, 2.5 if worst else 0))
            ink = ((0, 0, 0) if sum(face) > 1.6 else rgb(INK)) if judges else rgb(SOFT)
            distortion, detail = (
                mean(mean(getattr(report.cell(p, PROTECTION, name, column), of)) for p in pictures)
                for of in ("distortion", "detail")
            )
            put(x + step / 2, y + 18, f"{ratio:.1f}×", 13 if judges else 11, ink, weight="bold" if judges else "normal")
            put(x + step / 2, y + 37, f"{distortion:.4f} · {detail:.2f}", 8, ink)
            for j, kind in enumerate(report.controls):
                value = mean(report.cell(p, kind, name, column).mean for p in pictures)
                put(x + step / 2, y + TALL + (j + 0.5) * SHORT, f"{value:.4f}", 9, SOFT)
        y += TALL + len(report.controls) * SHORT + 8
    put(0, y + SHORT / 2, "clean, PSNR after", 9, SOFT, ha="left")
    for i, column in enumerate(block):
        value = mean(mean(report.cell(p, CLEAN, "", column).psnr) for p in pictures)
        put(LABELS + (i + 0.5) * step, y + SHORT / 2, f"{value:.1f} dB", 9, SOFT)
    legend = (
        "Large: times its noise of the same spectrum; below it structural distortion and detail ratio. "
        f"Framed: the lowest. From {SURVIVES:g} it survives, from {PARTLY:g} in part. "
        "Grey: no diffusion model, judges nothing."
    )
    put(0, y + SHORT + 14, legend, 8.5, SOFT, ha="left")


def _rectangle(x, y, width, height, face, edge, line):
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, facecolor=face, edgecolor=edge, linewidth=line)


def _looks(page: _Page, report: Report, top: float) -> None:
    """Cost, worst cases and latents, a line a protection."""
    heads = ("PSNR", *LOOKS_HEADS, "worst attacker", *report.autoencoders)
    step = min((WIDTH - 2 * EDGE - LABELS) / len(heads), 190)
    about = ". Of each VAE: latent shift over that of noise with the same spectrum, and after the worst attacker"
    page.text(EDGE, top, f"What is seen, and what the worst attacker leaves{about if report.autoencoders else ''}", 11)
    for i, head in enumerate(heads):
        page.text(EDGE + LABELS + (i + 0.5) * step, top + SHORT, _short(head), 9, SOFT, ha="center")
    for j, name in enumerate(report.protections):
        y = top + (j + 2) * SHORT
        page.text(EDGE, y, _short(name, 17), 10, weight="bold")
        psnr = mean(report.row(p, PROTECTION, name).psnr for p in range(report.pictures))
        shown = [f"{psnr:.1f} dB", *looks_row(report, name), f"{report.over_attackers(name):.1f}×"]
        shown += [
            f"{report.latent_ratio(name, vae):.1f}×, {report.latent_worst(name, vae):.1f}×"
            for vae in report.autoencoders
        ]
        for i, text in enumerate(shown):
            defect = i == 1 and of_stripe(report, name)
            colour = DEFECT if defect else INK
            page.text(
                EDGE + LABELS + (i + 0.5) * step, y, text + (", stripe" if defect else ""), 10, colour, ha="center"
            )


# Curves ------------------------------------------------------------------------------------------------------


def _plots(page: _Page, report: Report, top: float) -> None:
    both = bool(report.iterations) and report.pictures > 1
    width = (WIDTH - 2 * EDGE - (60 if both else 0)) / (2 if both else 1)
    if report.iterations:
        page.text(EDGE, top, f"Structural distortion over iterations of {report.curve_of}", 11)
        _curves(_styled(page.axes(EDGE + 50, top + 28, width - 50, PLOT - 58)), report)
    if report.pictures > 1:
        left = EDGE + (width + 60 if both else 0)
        page.text(left, top, "Worst case of each picture, times its noise of the same spectrum", 11)
        _worst(_styled(page.axes(left + 50, top + 28, width - 50, PLOT - 58)), report)


def _styled(axes):
    style_axes(axes, PANEL, FAINT, SOFT)
    return axes


def _legend(axes, lines: list | None = None) -> None:
    # The names stand above the axes' right end rather than over the data.
    found = axes.legend(
        handles=lines,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=6,
        frameon=False,
        fontsize=9,
        borderpad=0,
        handlelength=2.4,
    )
    for text in found.get_texts():
        text.set_color(rgb(INK))
        text.set_parse_math(False)


def _curves(axes, report: Report) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator

    styles = {PROTECTION: "-", **{kind: DASHES[kind] for kind in report.controls}}
    lines = []
    for i, name in enumerate(report.protections):
        colour = rgb(LINES[i % len(LINES)])
        for kind, style in styles.items():
            curves = [report.row(p, kind, name).curve for p in range(report.pictures)]
            values = [max(mean(points), 1e-5) for points in zip(*curves, strict=True)]
            width, marker = (2.2, "o") if kind == PROTECTION else (1.4, "")
            axes.plot(report.iterations, values, style, marker=marker, markersize=5, linewidth=width, color=colour)
        lines.append(Line2D([], [], color=colour, marker="o", markersize=5, linewidth=2.2, label=_short(name, 16)))
    for kind in report.controls:
        title = CONTROL_TITLES[kind]
        lines.append(Line2D([], [], color=rgb(SOFT), linestyle=DASHES[kind], linewidth=1.4, label=title))
    axes.set_yscale("log")
    axes.set_xscale("log")
    axes.set_xticks(report.iterations, [str(i) for i in report.iterations])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _legend(axes, lines)


def _worst(axes, report: Report) -> None:
    places = range(1, report.pictures + 1)
    for i, name in enumerate(report.protections):
        ratios = [report.worst(p, name).ratio for p in range(report.pictures)]
        colour, marker = rgb(LINES[i % len(LINES)]), "osD^"[i % 4]
        axes.plot(places, ratios, linestyle="", marker=marker, markersize=7, color=colour, label=_short(name, 16))
    for level, text in ((SURVIVES, "survives"), (PARTLY, "in part")):
        axes.axhline(level, color=rgb(SOFT), linewidth=1, linestyle="--")
        axes.annotate(text, (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8.5,
                      color=rgb(SOFT))  # fmt: skip
    axes.set_xlim(0.5, report.pictures + 0.5)
    axes.set_ylim(bottom=0)
    axes.set_xticks(places if report.pictures <= 20 else range(1, report.pictures + 1, -(-report.pictures // 20)))
    _legend(axes)


# Pictures ----------------------------------------------------------------------------------------------------


def _ratio(report: Report) -> float:
    """Height over width of the pictures shown, at most 1.2."""
    shown = next(iter(report.examples.values()))
    return min(shown.shape[-2] / shown.shape[-1], 1.2)


def _strips(report: Report, purifiers: tuple[str, ...]) -> list[tuple[str, str, bool]]:
    """(protection, purifier, whether it is the protection's first) of each row; none for a report without pictures."""
    if not report.examples:
        return []
    shown = []
    for name in report.protections:
        wanted = purifiers or (report.judging[0].name, report.worst(report.example, name).column.name)
        shown += [(name, purifier, i == 0) for i, purifier in enumerate(dict.fromkeys(wanted))]
    return shown


def _strip(page: _Page, report: Report, row: tuple[str, str, bool], top: float, side: float) -> None:
    protection, purifier, first = row
    name = _short(protection)
    original, protected = report.examples["", ""], report.examples["", protection]
    clean, pure = report.examples[purifier, ""], report.examples[purifier, protection]
    notes = [f"picture {report.example + 1}"] if report.pictures > 1 else []
    notes += ["the middle"] if tuple(original.shape[-2:]) != report.size else []
    cells = [
        ("Original", ", ".join(notes), original)
        if first
        else ("Perturbation, " + GAIN, name, _apart(original, protected)),
        ("Protected", name, protected),
        ("Purified original", purifier, clean),
        ("Purified protected", purifier, pure),
        ("What survived, " + GAIN, f"{name}, {purifier}", _apart(clean, pure)),
    ]
    for i, (caption, note, picture) in enumerate(cells):
        x = EDGE + i * (side + 12)
        page.text(x, top, caption, 10.5)
        page.text(x, top + 18, _short(note, 42), 8.5, SOFT)
        axes = page.axes(x, top + 36, side, side * _ratio(report))
        axes.axis("off")
        axes.set_anchor("NW")
        axes.imshow(picture[0].permute(1, 2, 0).numpy(), interpolation="nearest")


def _apart(before: Tensor, after: Tensor) -> Tensor:
    """The amplified difference around mid-grey."""
    return (0.5 + AMPLIFICATION / 2 * (after - before)).clamp(0, 1)
