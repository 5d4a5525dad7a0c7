"""A contact sheet: many pictures before and after, in small, on one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .canvas import BACKGROUND, FAINT, INK, PANEL, SOFT
from .fonts import BOLD, SANS, escaped, font_file

CELL, GAP, MARGIN, COLUMNS = 160, 12, 24, 4
_HEAD, _CAPTION, _TEXT, _TITLE = 64, 40, 13, 20


@dataclass(frozen=True)
class Entry:
    """before, after: H×W×3 in 8 bits, of any size; name and figures: a line each below them."""

    name: str
    figures: str
    before: np.ndarray
    after: np.ndarray


def contact_sheet(entries: Sequence[Entry], title: str, subtitle: str) -> np.ndarray:
    """The sheet, H×W×3 in 8 bits: `COLUMNS` pairs in a row, each before and after. There is at least one entry."""
    columns = min(COLUMNS, len(entries))
    rows = -(-len(entries) // columns)
    wide, high = 2 * CELL + 2, CELL + _CAPTION
    width = max(2 * MARGIN + columns * wide + (columns - 1) * GAP, 480)
    sheet = Image.new("RGB", (width, _HEAD + MARGIN + rows * (high + GAP)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    bold, plain = ImageFont.truetype(font_file(BOLD), _TITLE), ImageFont.truetype(font_file(SANS), _TEXT)
    draw.text((MARGIN, 14), _fitted(draw, title, bold, width - 2 * MARGIN, BOLD), INK, font=bold)
    draw.text((MARGIN, 40), _fitted(draw, subtitle, plain, width - 2 * MARGIN), SOFT, font=plain)
    for i, entry in enumerate(entries):
        left, top = MARGIN + i % columns * (wide + GAP), _HEAD + i // columns * (high + GAP)
        draw.rectangle((left, top, left + wide - 1, top + high - 1), PANEL)
        for side, array in enumerate((entry.before, entry.after)):
            picture = shrunk(array, CELL)
            x = left + side * (CELL + 2) + (CELL - picture.width) // 2
            sheet.paste(picture, (x, top + (CELL - picture.height) // 2))
        draw.line((left + CELL, top, left + CELL, top + CELL - 1), FAINT, 2)
        for line, (text, colour) in enumerate(((entry.name, INK), (entry.figures, SOFT))):
            place = (left + 6, top + CELL + 3 + 17 * line)
            draw.text(place, _fitted(draw, text, plain, wide - 12), colour, font=plain)
    return np.asarray(sheet)


def shrunk(array: np.ndarray, side: int) -> Image.Image:
    """The picture reduced to at most side×side; small ones are enlarged by whole factors, without smoothing."""
    picture = Image.fromarray(array)
    longest = max(picture.size)
    if longest <= side:
        factor = side // longest
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    size = (max(1, round(picture.width * side / longest)), max(1, round(picture.height * side / longest)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _fitted(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int, name: str = SANS) -> str:
    """The text on one line of this width; what is too long loses its beginning, for names end with what tells them."""
    text = escaped(" ".join(text.split()), name)
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(f"…{text}", font) > width:
        text = text[1:]
    return f"…{text}"
