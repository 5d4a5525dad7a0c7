"""Tables and the picture of `benchmarks.customization --model demo`."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean

import numpy as np
import torch
from antipure.methods.figures.canvas import BACKGROUND, INK, SOFT
from antipure.methods.figures.fonts import BOLD, SANS, font_file
from antipure.methods.figures.text_table import text_table
from antipure.methods.pictures import to_uint8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .customization_demo import BASE, CLEAN, NONE, DemoRun, Result
from .work import half_width

HEAD = (
    "version",
    "PSNR",
    "ISM",
    "less clean's",
    "above impostors",
    "no portrait",
    "KID × 1000 (bundled denoiser)",
    "BRISQUE",
)
SHOWN = 4  # samples beside what was learned


def mean(results: list[Result], value: Callable[[Result], float], digits: int, scale: float = 1) -> str:
    """Mean and half of its 95 % interval over persons × seeds; results without a portrait are left out and counted."""
    values = [v for r in results if not math.isnan(v := value(r) * scale)]
    if not values:
        return "–"
    width = half_width(values)
    text = f"{fmean(values):.{digits}f}" + ("" if math.isnan(width) else f" ± {width:.{digits}f}")
    return text + (f" ({len(values)} of {len(results)})" if len(values) < len(results) else "")


def markdown(results: list[Result]) -> str:
    """One table per attacker, then the worst of them for every version.

    ISM is also given less that of the clean pictures behind the same attacker, in pairs of person and seed.
    """
    after = list(dict.fromkeys(r.after for r in results))
    parts = []
    base = [r for r in results if r.version == BASE]
    for text in after:
        own = [r for r in results if r.after == text and r.version != BASE]
        clean = {(r.person, r.seed): r.ism for r in own if r.version == CLEAN}
        rows = [_row("not customized", base, clean)]
        names = dict.fromkeys(r.version for r in own)
        rows += [_row(name, [r for r in own if r.version == name], clean) for name in names]
        title = "As they are" if text == NONE else f"Behind `{text}`"
        parts.append(f"**{title}**\n\n{text_table(HEAD, rows)}")
    head = ("version", "above impostors", "attacker", "less than clean, pairs")
    parts.append(
        "**The worst attacker**: per person and seed the highest ISM above impostors over the attackers, and by whom "
        f"it was most often\n\n{text_table(head, _worst(results))}"
    )
    return "\n\n".join(parts)


def _row(name: str, results: list[Result], clean: dict[tuple[int, int], float]) -> list[str]:
    paired = [r for r in results if (r.person, r.seed) in clean]
    return [
        name,
        f"{fmean(r.psnr for r in results):.1f}" if name != "not customized" else "–",
        mean(results, lambda r: r.ism, 3),
        "" if name == CLEAN else mean(paired, lambda r: r.ism - clean[r.person, r.seed], 3),
        mean(results, lambda r: r.ism - r.impostor, 3),
        mean(results, lambda r: r.fdfr, 0, 100) + " %",
        mean(results, lambda r: r.kid, 1, 1000),
        mean(results, lambda r: r.brisque, 1),
    ]


def worst(results: list[Result]) -> dict[str, dict[tuple[int, int], Result]]:
    """By version, and by person and seed: the result of the attacker whose model draws the person best."""
    found: dict[str, dict[tuple[int, int], Result]] = {}
    for r in results:
        if r.version == BASE:
            continue
        best, place = found.setdefault(r.version, {}), (r.person, r.seed)
        if place not in best or _above(r) > _above(best[place]):
            best[place] = r
    return found


def _above(r: Result) -> float:
    """ISM above impostors; samples without a portrait show nobody."""
    return 0.0 if math.isnan(r.ism) else r.ism - r.impostor


def _worst(results: list[Result]) -> list[list[str]]:
    found = worst(results)
    clean = found.get(CLEAN, {})
    rows = []
    for name, places in found.items():
        at = list(places.values())
        attackers = [r.after for r in at]
        less = sum(_above(r) < _above(clean[p]) for p, r in places.items() if p in clean)
        rows.append([name, mean(at, _above, 3), max(set(attackers), key=attackers.count),
                     "" if name == CLEAN else f"{less} of {len(places)}"])  # fmt: skip
    return rows


def sheet(run: DemoRun, person: int, versions: list[str], after: list[str], seed: int = 0) -> Tensor:
    """What a model draws that learned each version, by attacker: 1×3×H×W in 0..1.

    A row per version; per attacker a picture that was learned from and `SHOWN` samples.
    """
    side, gap, left, top = 128, 6, 200, 44
    block = (1 + SHOWN) * side + gap
    width, height = left + len(after) * (block + 3 * gap), top + len(versions) * (side + gap) + gap
    page = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(page)
    bold, plain = ImageFont.truetype(font_file(BOLD), 15), ImageFont.truetype(font_file(SANS), 13)
    for i, text in enumerate(after):
        x = left + i * (block + 3 * gap)
        draw.text((x, 4), "as published" if text == NONE else f"behind {text}", INK, font=bold)
        draw.text((x, 23), "learned from", SOFT, font=plain)
        draw.text((x + side + gap, 23), "drawn after learning from four such pictures", SOFT, font=plain)
        for j, version in enumerate(versions):
            y = top + j * (side + gap)
            if not i:
                draw.text((8, y + side // 2 - 10), version.replace("_", " "), INK, font=bold)
            trained = run.purified(f"{person}-{version}", run.protected(person, version, seed), text, seed)
            drawn = run.drawn(f"{person}-{version}-{text}-s{seed}", trained, seed)
            for k, picture in enumerate([trained[0], *drawn[:SHOWN]]):
                at = x + k * side + (gap if k else 0)
                page.paste(Image.fromarray(to_uint8(picture[None])[0]), (at, y))
    return torch.from_numpy(np.array(page)).permute(2, 0, 1)[None].float() / 255
