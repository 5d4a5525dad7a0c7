"""A run as one HTML page, without any network, and as a contact sheet: before and after, figures, what failed."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...methods.errors import AntiPureError
from ...methods.figures.contact_sheet import Entry, contact_sheet
from ..pictures import read_picture
from ..terminal import one_line
from . import places
from .inputs import SHEET
from .manifest import Line
from .plan import found_place

PAGE = "antipure_page.html"
TEMPLATE = Path(__file__).with_name("page.html")
SIDE = 320  # pixels of a picture that the page shows; as they are, for reducing would hide the change
MOST_SHOWN, MOST_ROWS, MOST_REPORTS = 48, 2000, 24
_DONE = {"protect": "protected", "purify": "purified", "measure": "compared", "report": "reported"}
_UNITS = {"psnr": " dB", "levels": " levels"}


@dataclass(frozen=True)
class Pair:
    """A picture before and after: H×W×3, 8 bits. cut: whether both are only a part of it."""

    line: Line
    before: np.ndarray
    after: np.ndarray

    def excerpt(self) -> tuple[np.ndarray, np.ndarray, bool]:
        """The middle of both, at most SIDE×SIDE, and whether something was cut away."""
        height, width = self.before.shape[:2]
        top, left = max(height - SIDE, 0) // 2, max(width - SIDE, 0) // 2
        part = (slice(top, top + SIDE), slice(left, left + SIDE))
        return self.before[part], self.after[part], height > SIDE or width > SIDE


def write_page(out: str, lines: Sequence[Line], command: str, settings: dict[str, Any]) -> list[str]:
    """Write the page, and where there are pairs the sheet, into the outputs' folder; their places.

    Of many pictures `MOST_SHOWN`, evenly spread, are shown. Raises `AntiPureError` where it cannot be written.
    """
    done = [line for line in lines if not line["error"]]
    pairs = [pair for line in _spread(done, MOST_SHOWN) if (pair := _pair(line, out, command)) is not None]
    written = []
    title = f"{len(done)} of {len(lines)} pictures {_DONE[command]}"
    if pairs:
        entries = [Entry(each.line["picture"], _figures(each.line), each.before, each.after) for each in pairs]
        shown = "" if len(pairs) == len(done) else f"; {len(pairs)} of them, evenly spread"
        sheet = contact_sheet(entries, title, f"{_chosen(command, settings)}; each before and after{shown}")
        buffer = io.BytesIO()
        Image.fromarray(sheet).save(buffer, "PNG")
        written.append(places.join(out, SHEET))
        places.write(written[-1], buffer.getvalue())
    parts = {
        "title": escape(title),
        "subtitle": escape(_chosen(command, settings)),
        "private": _private(bool(pairs)),
        "counts": _counts(lines),
        "failures": _failures([line for line in lines if line["error"]]),
        "gallery": _gallery(pairs, len(done)),
        "reports": _reports(done, out) if command == "report" else "",
        "table": _table(lines),
    }
    page = TEMPLATE.read_text(encoding="utf-8")
    pieces = page.split("{{")
    text = pieces[0] + "".join(parts[name] + rest for name, _, rest in (each.partition("}}") for each in pieces[1:]))
    written.append(places.join(out, PAGE))
    places.write(written[-1], text.encode("utf-8", "backslashreplace"))
    return written


def _spread(lines: Sequence[Line], most: int) -> list[Line]:
    count = min(len(lines), most)
    return [lines[i * len(lines) // count] for i in range(count)]


def _pair(line: Line, out: str, command: str) -> Pair | None:
    """The first frame before and after; None where one is gone by now, or they are of different sizes."""
    if command == "report":
        return None
    second = (
        found_place(line["others"][0]["path"], out)
        if command == "measure"
        else places.join(out, line["outputs"][0]["path"])
    )
    try:
        before, after = (_first_frame(place) for place in (found_place(line["input"], out), second))
    except AntiPureError:
        return None
    return Pair(line, before, after) if before.shape == after.shape else None


def _first_frame(place: str) -> np.ndarray:
    with places.at_hand(place, places.read(place) if places.is_url(place) else b"") as path:
        return read_picture(path)[0][0]


def _chosen(command: str, settings: dict[str, Any]) -> str:
    """What was chosen, on one line."""
    names = {
        "protect": ("preset", "levels", "visibility", "steps", "seed", "denoiser", "vaes"),
        "purify": ("method", "timestep", "iterations", "seed", "denoiser"),
        "measure": ("view", "vae"),
        "report": ("presets", "levels", "steps", "seeds", "denoiser"),
    }[command]
    values = {name: settings[name] for name in names if settings.get(name) not in (None, "", [])}
    shown = (f"{name} {', '.join(map(str, v)) if isinstance(v, list) else v}" for name, v in values.items())
    return one_line(", ".join(["antipure " + command, *shown]))


def _figures(line: Line) -> str:
    found = line["figures"]
    shown = [f"{found[name]:.4g}{_UNITS.get(name, '')}" for name in ("levels", "psnr") if found.get(name) is not None]
    if found.get("ssim") is not None:
        shown.append(f"SSIM {found['ssim']:.3f}")
    return ", ".join(shown)


def _private(pictures: bool) -> str:
    if not pictures:
        return ""
    told = "This page shows parts of your unprotected pictures. Keep it to yourself."
    return f'<p class="private">{told}</p>'


def _counts(lines: Sequence[Line]) -> str:
    failed = sum(bool(line["error"]) for line in lines)
    cards = [(f"{len(lines) - failed:,}", "as they should be", "good")]
    if failed:
        cards.append((f"{failed:,}", "failed", "bad"))
    for name, told in (("psnr", "lowest PSNR"), ("levels", "largest change")):
        values = [line["figures"][name] for line in lines if line["figures"].get(name) is not None]
        if values:
            value = min(values) if name == "psnr" else max(values)
            cards.append((f"{value:.4g}{_UNITS[name]}", told, ""))
    seconds = sum(line["seconds"] for line in lines)
    cards.append((_time(seconds), "of work", ""))
    return "".join(f'<div class="count {kind}"><b>{value}</b><span>{told}</span></div>' for value, told, kind in cards)


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:,.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def _failures(lines: Sequence[Line]) -> str:
    if not lines:
        return ""
    rows = "".join(
        f'<tr><td class="name">{_name(line["picture"])}</td><td class="bad">{_name(line["error"])}</td></tr>'
        for line in lines[:MOST_ROWS]
    )
    more = _more(len(lines), MOST_ROWS)
    head = "<thead><tr><th>picture</th><th>why</th></tr></thead>"
    return f'<h2>Failed</h2><div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>{more}'


def _more(count: int, most: int) -> str:
    return f'<p class="soft">{count - most:,} more are in the manifest.</p>' if count > most else ""


def _name(text: str) -> str:
    return escape(one_line(text, 500))


def _gallery(pairs: Sequence[Pair], done: int) -> str:
    if not pairs:
        return ""
    told = f"{len(pairs)} of {done:,}, evenly spread" if len(pairs) < done else "all of them"
    tools = (
        '<div class="tools"><button id="change" aria-pressed="false">Show the change, ×8</button>'
        f'<span class="soft">{told}; pixels as they are, of large pictures the middle</span></div>'
    )
    return f'<h2>Before and after</h2>{tools}<div class="gallery">{"".join(map(_card, pairs))}</div>'


def _card(pair: Pair) -> str:
    before, after, cut = pair.excerpt()
    name = _name(pair.line["picture"])
    size = "×".join(str(pair.line["figures"].get(side, "")) for side in ("width", "height"))
    told = ", ".join(part for part in (_figures(pair.line), f"part of {size}" if cut else "") if part)
    return (
        f'<figure><div class="pair"><img src="{_data(before)}" alt="before"><img class="after" src="{_data(after)}" '
        'alt="after"><canvas></canvas><span class="tag l">before</span><span class="tag r">after</span>'
        f'<span class="bar"></span><input type="range" min="0" max="100" value="50" step="0.5" aria-label="{name}: '
        f'before and after"></div><figcaption><span class="name">{name}</span><span class="soft">{escape(told)}</span>'
        "</figcaption></figure>"
    )


def _data(array: np.ndarray) -> str:
    """A picture as a data: address; PNG, for all else would change the pixels."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", compress_level=9)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _reports(lines: Sequence[Line], out: str) -> str:
    """Each report's verdict, sheet and tables."""
    parts = []
    for line in lines[:MOST_REPORTS]:
        files = {Path(each["path"]).suffix: places.join(out, each["path"]) for each in line["outputs"]}
        try:
            with Image.open(io.BytesIO(places.read(files[".png"]))) as image:
                buffer = io.BytesIO()
                image.convert("RGB").save(buffer, "JPEG", quality=85)
            tables = places.read(files[".md"]).decode("utf-8", "replace")
        except (AntiPureError, KeyError, OSError):
            continue
        sheet = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        verdict = escape(line["figures"].get("verdict", ""))
        parts.append(
            f"<details{' open' if len(lines) == 1 else ''}><summary>{_name(line['picture'])}</summary><p>{verdict}</p>"
            f'<img src="{sheet}" alt="sheet of the report"><pre>{escape(tables)}</pre></details>'
        )
    return f"<h2>Reports</h2>{''.join(parts)}{_more(len(lines), MOST_REPORTS)}" if parts else ""


def _table(lines: Sequence[Line]) -> str:
    """Every picture with its figures."""
    done = [line for line in lines if not line["error"]]
    names = [
        name
        for name in dict.fromkeys(name for line in done for name in line["figures"])
        if all(isinstance(line["figures"].get(name), (int, float, type(None))) for line in done)
    ]
    if not done or not names:
        return ""
    head = "".join(f'<th class="n">{escape(name.replace("_", " "))}</th>' for name in (*names, "seconds"))
    rows = "".join(
        f'<tr><td class="name">{_name(line["picture"])}</td>'
        + "".join(f'<td class="n">{_number(line["figures"].get(name))}</td>' for name in names)
        + f'<td class="n">{line["seconds"]:.2f}</td></tr>'
        for line in done[:MOST_ROWS]
    )
    table = f"<table><thead><tr><th>picture</th>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<h2>Figures</h2><div class="scroll">{table}</div>{_more(len(done), MOST_ROWS)}'


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"
