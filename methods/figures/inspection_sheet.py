"""The inspection sheet: what a perturbation changed, where, at which frequencies, and what a purifier left."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..metrics import image as metrics
from ..pictures import from_uint8, to_uint8
from .canvas import BACKGROUND, FAINT, INK, PANEL, SOFT, drawn, heat_colours, pixel_axes, pixel_figure, rgb, style_axes

CELL = 256
MARGIN = 12
CAPTION = 34
AMPLIFICATION = 8
HEAT_LEVELS = 16.0
CURVES = ((240, 180, 60), (90, 170, 250))


def _font(size: int):
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow below 10.1 has one size only
        return ImageFont.load_default()


def _fit(image: Image.Image) -> Image.Image:
    """Fit into a cell: small pictures by whole factors without smoothing, large ones reduced."""
    longest = max(image.size)
    if longest <= CELL:
        factor = CELL // longest
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    scale = CELL / longest
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _image(picture: Tensor) -> Image.Image:
    return _fit(Image.fromarray(to_uint8(picture)[0]))


def _heat(values: np.ndarray) -> Image.Image:
    """H×W values in 0..1 as a picture."""
    return _fit(Image.fromarray(heat_colours(values)))


def _difference(before: Tensor, after: Tensor) -> Image.Image:
    return _image((0.5 + AMPLIFICATION / 2 * (after - before)).clamp(0, 1))


def _where(before: Tensor, after: Tensor) -> Image.Image:
    return _heat(metrics.error_map(before, after)[0, 0].cpu().numpy() / HEAT_LEVELS)


def _spectrum(difference: Tensor) -> Image.Image:
    """Log power of a difference, zero frequency in the centre, 60 dB from dark to bright."""
    power = torch.fft.fftshift(torch.fft.fft2(difference[0].double()).abs().square().sum(0))
    decibels = 10 * torch.log10(power / power.amax().clamp(min=1e-20) + 1e-12)
    return _heat((1 + decibels / 60).clamp(0, 1).cpu().numpy())


def _plot(curves: list[tuple[str, Tensor]], width: int) -> Image.Image:
    """Radial spectra in dB over 0..0.5 cycles per pixel."""
    decibels = [10 * np.log10(values[0].cpu().numpy() + 1e-16) for _, values in curves]
    highest = 10 * np.ceil(max(d.max() for d in decibels) / 10)
    lowest = highest - 60
    figure = pixel_figure(width, CELL, PANEL)
    axes = pixel_axes(figure, 48, 14, 14, 30)
    style_axes(axes, PANEL, FAINT, SOFT)
    axes.set_ylim(lowest, highest)
    axes.set_xlim(0, 0.5)
    axes.set_yticks(np.arange(lowest, highest + 1, 20))
    axes.set_xticks((0, 0.125, 0.25, 0.375, 0.5), ("0", "0.125", "0.25", "0.375", "0.5"))
    for (name, _), values, colour in zip(curves, decibels, CURVES, strict=False):
        frequencies = (np.arange(len(values)) + 0.5) / len(values) / 2
        axes.plot(frequencies, values.clip(lowest, highest), color=rgb(colour), linewidth=1.5, label=name)
    axes.legend(loc="upper right", fontsize=9, frameon=False, labelcolor="linecolor")
    return Image.fromarray(drawn(figure))


def inspection_sheet(
    *, original: Tensor, protected: Tensor, purified: Tensor | None = None, purified_clean: Tensor | None = None
) -> Tensor:
    """A labelled sheet of one picture. Arguments and result are 1×3×H×W in 0..1.

    Shown: the pictures, the amplified differences, a heat map (local RMS difference) and spectra of
    protected - original; with `purified` and `purified_clean`, the same of their difference, which is what
    survived; with only one of the two, that picture.
    """
    o, p = original, protected
    cost = f"PSNR {metrics.psnr(o, p)[0]:.2f} dB, SSIM {metrics.ssim(o, p)[0]:.3f}"
    rows: list[list[tuple[str, str, Image.Image]]] = [
        [("Original", "", _image(o)), ("Protected", cost, _image(p))],
        [
            (
                f"Protected - original, x{AMPLIFICATION}",
                f"at most {metrics.linf_levels(o, p)[0]:.0f} levels",
                _difference(o, p),
            ),
            ("Where", f"local RMS, white = {HEAT_LEVELS:.0f} levels", _where(o, p)),
        ],
    ]
    curves = [("perturbation", metrics.radial_spectrum(p - o))]
    spectra = [("Spectrum of the perturbation", "60 dB, centre = 0", _spectrum(p - o))]
    if purified_clean is not None:
        rows[0].append(
            (
                "Purified original",
                f"PSNR to original {metrics.psnr(o, purified_clean)[0]:.2f} dB",
                _image(purified_clean),
            )
        )
    if purified is not None:
        rows[0].append(
            ("Purified protected", f"PSNR to original {metrics.psnr(o, purified)[0]:.2f} dB", _image(purified))
        )
    if purified is not None and purified_clean is not None:
        left = f"structural distortion {metrics.structural_distortion(purified_clean, purified)[0]:.4f}"
        detail = f"detail ratio {metrics.detail_ratio(purified_clean, purified)[0]:.2f}"
        rows[1] += [
            (f"What survived, x{AMPLIFICATION}", left, _difference(purified_clean, purified)),
            ("Where it survived", detail, _where(purified_clean, purified)),
        ]
        curves.append(("what survived", metrics.radial_spectrum(purified - purified_clean)))
        spectra.append(("Spectrum of what survived", "60 dB, centre = 0", _spectrum(purified - purified_clean)))
    columns = max(len(row) for row in rows)
    plot_columns = max(1, columns - len(spectra))
    plot_width = plot_columns * CELL + (plot_columns - 1) * MARGIN
    rows.append([*spectra, ("Power by frequency", "dB over cycles per pixel", _plot(curves, plot_width))])
    return _compose(rows, columns)


def labelled_sheet(pictures: dict[str, Tensor], columns: int = 4) -> Tensor:
    """Pictures (1×3×H×W in 0..1) by name, side by side: 1×3×H'×W' in 0..1."""
    cells = [(name, "", _image(picture)) for name, picture in pictures.items()]
    return _compose([cells[i : i + columns] for i in range(0, len(cells), columns)], min(columns, len(cells)))


def _compose(rows: list[list[tuple[str, str, Image.Image]]], columns: int) -> Tensor:
    """Rows of captioned images on one sheet; everything but the plot takes one cell's width."""
    heights = [CAPTION + max(image.height for _, _, image in row) for row in rows]
    width = MARGIN + columns * (CELL + MARGIN)
    sheet = Image.new("RGB", (width, MARGIN + sum(h + MARGIN for h in heights)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    y = MARGIN
    for row, height in zip(rows, heights, strict=True):
        x = MARGIN
        for title, note, image in row:
            draw.text((x, y), title, fill=INK, font=_font(14))
            draw.text((x, y + 16), note, fill=SOFT, font=_font(12))
            sheet.paste(image, (x, y + CAPTION))
            x += max(CELL, image.width) + MARGIN
        y += height + MARGIN
    return from_uint8(np.asarray(sheet))
