"""The thumbnail of a shipped workflow, beside its UI file: a square JPEG, as the template browser's cards are.

python -m tools.thumbnail protect original.png protected.png difference.png spectrum.png
python -m tools.thumbnail lora_patch_defensive edited_*.png --columns 4
python -m tools.thumbnail sd_protect        # no pictures: the titles of the workflow's groups
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from .api_twins import ui_files

SIDE, MOST_BYTES = 512, 60_000
BACKGROUND, LINE = (24, 24, 27), (150, 150, 155)


def grid(pictures: list[Image.Image], columns: int) -> Image.Image:
    """The pictures row by row, at the size of the first."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (min(columns, len(pictures)) * width, rows * height), BACKGROUND)
    for i, picture in enumerate(pictures):
        sheet.paste(picture.resize((width, height)), (i % columns * width, i // columns * height))
    return sheet


def steps(groups: list[dict]) -> Image.Image:
    """The titles of a workflow's groups, from top to bottom."""
    picture = Image.new("RGB", (SIDE, SIDE), BACKGROUND)
    draw, edge, gap, middle = ImageDraw.Draw(picture), 24, 18, SIDE // 2
    height = min(80, (SIDE - 2 * edge - gap * (len(groups) - 1)) // len(groups))
    top = (SIDE - len(groups) * height - (len(groups) - 1) * gap) // 2
    for i, group in enumerate(groups):
        if i:
            draw.line((middle, top - gap, middle, top), LINE, 4)
        draw.rounded_rectangle((edge, top, SIDE - edge, top + height), 10, fill=group["color"])
        text = group["title"].split(" · ")[-1]
        draw.text((middle, top + height // 2), text, BACKGROUND, ImageFont.load_default(28), anchor="mm")
        top += height + gap
    return picture


def to_jpeg(picture: Image.Image) -> bytes:
    """A square JPEG of at most 60 kB."""
    square = ImageOps.pad(picture, (SIDE, SIDE), Image.Resampling.LANCZOS, color=BACKGROUND)
    for quality in (90, 80, 70, 60, 50):
        buffer = io.BytesIO()
        square.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= MOST_BYTES:
            return buffer.getvalue()
    raise SystemExit(f"The thumbnail stays above {MOST_BYTES} bytes.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="the workflow's")
    parser.add_argument("pictures", type=Path, nargs="*", help="what it made; none: its groups are drawn")
    parser.add_argument("--columns", type=int, default=2)
    args = parser.parse_args()
    if args.pictures:
        picture = grid([Image.open(path).convert("RGB") for path in args.pictures], args.columns)
    else:
        picture = steps(json.loads(ui_files()[args.name].read_text(encoding="utf-8"))["groups"])
    ui_files()[args.name].with_suffix(".jpg").write_bytes(to_jpeg(picture))


if __name__ == "__main__":
    main()
