"""Which characters can be drawn: fonts draw the others as empty boxes, and different texts as the same picture."""

from __future__ import annotations

from functools import cache
from pathlib import Path

SANS, BOLD = "DejaVuSans.ttf", "DejaVuSans-Bold.ttf"  # matplotlib's own, for Latin, Greek, Cyrillic and more


def font_file(name: str = SANS) -> Path:
    """Where matplotlib keeps one of its fonts."""
    from matplotlib import get_data_path

    return Path(get_data_path(), "fonts", "ttf", name)


@cache
def _characters(name: str) -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    return frozenset(map(chr, FT2Font(str(font_file(name))).get_charmap())) | {"\n"}


def lacking(text: str, *fonts: str) -> list[str]:
    """The characters of a text that one of these fonts lacks, in their order and once each; none of plain letters."""
    if text.isascii() and text.replace("\n", " ").isprintable():
        return []
    return [c for c in dict.fromkeys(text) if not all(c in _characters(font) for font in fonts)]


def escaped(text: str, *fonts: str) -> str:
    r"""The text with each character that one of these fonts lacks written as its code, \u65e5."""
    for c in lacking(text, *fonts):
        text = text.replace(c, f"\\u{ord(c):04x}")
    return text
