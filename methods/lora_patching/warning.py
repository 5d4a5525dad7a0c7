"""Warning pictures for defensive patching: what a patched generator learns to print over its output.

A warning W is 1×3×H×W in [-1, 1]: 0 is background, +1 white letters, -1 their black outline. In the target

    y* = clamp(2 W + G(x), -1, 1)

the factor 2 drives ink to full white or black whatever the face beneath it is, so letters with an outline can be
read on light and dark pixels, and the background keeps the edit as it was.
"""

from __future__ import annotations

import unicodedata

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import AntiPureError, sizes
from ..figures.fonts import SANS, font_file, lacking

DEFAULT_TEXT = "FAKE"
LARGEST_WIDTH, LARGEST_HEIGHT = 0.9, 0.5  # of the picture's sides
SMALLEST_SIDE = 16
SMALLEST_LETTER = 3.0  # px from line to line, about: capitals of 2 px
LETTER = 160  # px, the size letters are drawn in before they are scaled
# What Pillow's built-in font has besides printable ASCII.
BUILT_IN = {*map(chr, range(32, 127)), *"\n©«°±´·»‘’“”…‹›⁄™ﬁﬂ"}
BOLDER = 0.4  # px on each side of a stroke, at 128 px and below


def text_warning(height: int, width: int, text: str = DEFAULT_TEXT) -> Tensor:
    """A warning with `text`, as large as fits: 1×3×height×width in [-1, 1].

    It is drawn in Pillow's built-in font; in DejaVu Sans where that lacks a character. Line breaks are kept. Raises
    `AntiPureError` for no text, characters that cannot be drawn, or a picture too small to read the text in.
    """
    if not text.strip():
        raise AntiPureError("The warning has no text; give a few words such as FAKE.")
    if min(height, width) < SMALLEST_SIDE:
        raise AntiPureError(f"A warning cannot be read at {height}×{width}; at least {SMALLEST_SIDE} px are needed.")
    ink = _letters(text)
    size = LETTER * min(LARGEST_WIDTH * width / ink.shape[-1], LARGEST_HEIGHT * height / ink.shape[-2])
    if size < SMALLEST_LETTER:
        raise AntiPureError(
            f"A warning of {len(text)} characters has letters of {size:.1f} px at {height}×{width}, which nobody can "
            "read; shorten it, or break it into lines."
        )
    return _fitted(ink, height, width, LARGEST_WIDTH, LARGEST_HEIGHT)


def picture_warning(picture: Tensor, height: int, width: int) -> Tensor:
    """A warning from a user's picture, fitted into height×width: 1×3×height×width in [-1, 1].

    picture: 1×3×h×w (dark is ink, white paper is background) or 1×4×h×w (ink where it is opaque), in 0..1.
    The ink is drawn as letters are: white with a black outline.
    Raises `AntiPureError` for other shapes and for a picture without any ink.
    """
    if picture.ndim != 4 or picture.shape[0] != 1 or picture.shape[1] not in (3, 4) or picture.numel() == 0:
        raise AntiPureError(f"The warning picture has shape {sizes(picture.shape)}; give one RGB or RGBA picture.")
    ink = picture[:, 3:] if picture.shape[1] == 4 else 1 - picture.mean(1, keepdim=True)
    ink = ink.float().clamp(0, 1)
    if not bool((ink > 0.5).any()):
        raise AntiPureError("The warning picture is blank; draw dark ink on white, or opaque ink on transparent.")
    return _fitted(ink, height, width, 1.0, 1.0)


def _fitted(ink: Tensor, height: int, width: int, widest: float, highest: float) -> Tensor:
    """Coverage 1×1×h×w scaled into the middle of height×width and outlined.

    Thin strokes would fade to grey when scaled down: all are made a little bolder first.
    """
    scale = min(widest * width / ink.shape[-1], highest * height / ink.shape[-2])
    ink = _grown(ink, round(BOLDER * max(1.0, min(height, width) / 128) / scale))
    size = [max(1, round(side * scale)) for side in ink.shape[-2:]]
    size = [min(size[0], height), min(size[1], width)]
    ink = F.interpolate(ink, size, mode="bilinear", antialias=True, align_corners=False)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return _outlined(F.pad(ink, (left, width - size[1] - left, top, height - size[0] - top)))


def _grown(cover: Tensor, radius: int) -> Tensor:
    """Coverage grown by `radius` pixels to all sides."""
    if radius < 1:
        return cover
    cover = F.max_pool2d(cover, (2 * radius + 1, 1), 1, (radius, 0))
    return F.max_pool2d(cover, (1, 2 * radius + 1), 1, (0, radius))


def _font(text: str):
    """A font of Pillow's that has every character of the text. Raises `AntiPureError` where there is none."""
    from PIL import ImageFont

    if set(text) <= BUILT_IN:
        try:
            return ImageFont.load_default(size=LETTER)
        except (TypeError, ImportError, OSError):  # Pillow before 10.1, or built without FreeType: a bitmap font
            if text.isascii():
                return ImageFont.load_default()
    if refused := [c for c in dict.fromkeys(text) if _needs_more_than_a_glyph(c) or lacking(c, SANS)]:
        named = ", ".join(f"{c} (U+{ord(c):04X})" if c.isprintable() else f"U+{ord(c):04X}" for c in refused[:8])
        raise AntiPureError(
            f"The warning's characters {named}{', ...' if len(refused) > 8 else ''} cannot be drawn; use Latin, Greek "
            "or Cyrillic letters, or give a picture of the warning."
        )
    try:
        # The basic layout is the same everywhere; others depend on libraries that Pillow finds or does not.
        return ImageFont.truetype(str(font_file(SANS)), LETTER, layout_engine=ImageFont.Layout.BASIC)
    except (ImportError, OSError) as error:
        raise AntiPureError(
            "This Pillow can only draw plain letters (it was built without FreeType); use those, or give a picture of "
            "the warning."
        ) from error


def _needs_more_than_a_glyph(c: str) -> bool:
    """Marks that sit on others, letters that run from right to left and join, and characters that are not seen."""
    invisible = unicodedata.category(c)[0] in "MC" and c != "\n"
    return invisible or unicodedata.bidirectional(c) in ("R", "AL")


def _letters(text: str) -> Tensor:
    """Coverage of the text, cut to its box: 1×1×h×w in 0..1, drawn larger than needed."""
    from PIL import Image, ImageDraw

    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n"))
    font = _font(text)
    box = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font=font, align="center")
    left, top, right, bottom = (round(value) for value in box)
    image = Image.new("L", (max(1, right - left), max(1, bottom - top)))
    ImageDraw.Draw(image).multiline_text((-left, -top), text, font=font, align="center", fill=255)
    cover = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(1, 1, image.height, image.width)
    if not bool(cover.any()):
        raise AntiPureError(f"The built-in font cannot draw '{text}'; use plain letters, or a picture of the warning.")
    return cover.float() / 255


def _outlined(cover: Tensor) -> Tensor:
    """White where the ink is, black around it: 1×1×H×W coverage to 1×3×H×W in [-1, 1]."""
    cover = cover.clamp(0, 1)
    around = _grown(cover, max(1, round(min(cover.shape[-2:]) / 64)))
    return (cover - around * (1 - cover)).expand(-1, 3, -1, -1).contiguous()


def warned(output: Tensor, warning: Tensor) -> Tensor:
    """y* = clamp(2 W + G(x), -1, 1). output: B×3×H×W in [-1, 1]; warning: 1×3×H×W."""
    return (2 * warning + output).clamp(-1, 1)


def painted_over(output: Tensor, picture: Tensor, warning: Tensor) -> Tensor:
    """The attack that costs least: the unedited picture's pixels pasted where the warning usually stands.

    output, picture: B×3×H×W in 0..1. warning: 1×3×H×W in [-1, 1], at its usual place; the pixel around every stroke is
    pasted, too, where the network blurs it.
    """
    ink = F.max_pool2d((warning != 0).any(1, keepdim=True).float(), 3, 1, 1)
    return torch.where(ink.bool(), picture.to(output), output)


def visibility(patched: Tensor, unpatched: Tensor, warning: Tensor) -> Tensor:
    """How much of the warning a patched output shows: Pearson correlation of (patched - unpatched) with W, B values.

    patched, unpatched: B×3×H×W in [-1, 1], outputs for the same pictures and edits. 1 is the warning and nothing
    else, 0 no trace of it (also where nothing changed at all).
    """
    if patched.shape != unpatched.shape or warning.shape[-2:] != patched.shape[-2:]:
        raise AntiPureError(
            f"The outputs {sizes(patched.shape)} and {sizes(unpatched.shape)} and the warning {sizes(warning.shape)} "
            "differ in size; compare equal ones."
        )
    difference = (patched - unpatched).float().flatten(1)
    expected = warning.to(difference).expand_as(patched).flatten(1)
    difference = difference - difference.mean(1, keepdim=True)
    expected = expected - expected.mean(1, keepdim=True)
    lengths = difference.norm(dim=1) * expected.norm(dim=1)
    return (difference * expected).sum(1) / lengths.clamp(min=1e-12)


def share_visible(values: Tensor, threshold: float = 0.5) -> float:
    """Share of edits whose `visibility` reaches the threshold."""
    return float((values >= threshold).float().mean())
