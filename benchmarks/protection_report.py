"""The page of `benchmarks.protection`: figures over a control's with their intervals, as data and as two tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np
from antipure.methods.figures.text_table import text_table

from .protection_run import MATCHED
from .strangers import ATTACKED_VAES, UNSEEN_VAE

RANDOM = "random"
AS_IT_IS = "none"
VIEWS = ("shrink0.5", "train512")  # without a purifier: no attack, but what every trainer does
DRAWS = 2000
WORST = "worst"
LEGEND = f"""\
*structure*: 1 - the contrast-structure term of SSIM between the column's result on the protected and on the
clean picture, same noise. *latent*: rms change of a VAE's latent of that result over the clean latent's
standard deviation; mean over the VAEs {", ".join(ATTACKED_VAES)}. *matched*: over noise of the row's own
spectrum; *random*: over signs by coin toss, whose own lines are absolute. 1 means: no better than noise. Ratios
of means, ± half of the 95 % interval by bootstrap over pictures. *worst case*: for every picture the column,
but the first, that leaves least over that control; mean over pictures. gridpure: 10 iterations at timestep 10,
the network run at 2 of its timesteps. `held_out` is the attacked denoiser's sibling, `judge` shares nothing
with it; `ffdnet` and the VAEs are strangers'. `shrink0.5`: what a trainer at 512 px sees of a crop of a 1024-px
picture."""
LOOKS_LEGEND = """\
ΔE₀₀: CIEDE2000, mean and 95th percentile. Seen: rms levels after an eye-like blur. Peak share: the largest
share of the perturbation's energy in one Fourier bin; above 1 % it is a stripe, or the constant left where
white paper clips half of any noise away. Last two: latent shift at the trainer's view over that of random signs, of the
VAE it moves least, and of one that nothing here is ever made against."""
Rows = dict[tuple[str, int], dict]  # (picture, seed) -> row


def select(rows: Sequence[dict], group: str, arm: str, levels: float) -> Rows:
    chosen = [row for row in rows if (row["group"], row["arm"], row["levels"]) == (group, arm, levels)]
    return {(row["picture"], row["seed"]): row for row in chosen}


def distortion(row: dict) -> list[float]:
    return [row["distortion"]]


def shifts(vaes: Sequence[str]) -> Callable[[dict], list[float]]:
    return lambda row: [row["shift"][vae] for vae in vaes if vae in row["shift"]]


def sums(rows: Rows, control: Rows, column: str, of: Callable[[dict], list[float]]) -> tuple[list[str], np.ndarray]:
    """Pictures, and 2×pictures×figures: sums over the seeds that both have, of the row and of its control."""
    shared = [key for key in sorted(rows) if key in control and all(column in r[key]["after"] for r in (rows, control))]
    pictures = sorted({key[0] for key in shared})
    found = [
        [np.sum([of(r[key]["after"][column]) for key in shared if key[0] == picture], axis=0) for picture in pictures]
        for r in (rows, control)
    ]
    return pictures, np.array(found, dtype=float)


def drawn(count: int) -> np.ndarray:
    """Draws×count places of pictures, with replacement; the first draw is every picture once."""
    again = np.random.default_rng(0).integers(count, size=(DRAWS, count))
    return np.concatenate([np.arange(count)[None], again])


def interval(values: np.ndarray, pictures: int) -> dict:
    """The first value, and where the rest has its 2.5th and 97.5th percentile: the percentile bootstrap."""
    low, high = (float(v) for v in np.percentile(values[1:], [2.5, 97.5])) if pictures > 1 else (None, None)
    return {"value": float(values[0]), "low": low, "high": high, "pictures": pictures}


def ratio(rows: Rows, control: Rows, column: str, of: Callable, reduce: Callable = np.mean) -> dict | None:
    """Ratio of the means over (picture, seed), each figure by itself, then their mean or minimum."""
    pictures, found = sums(rows, control, column, of)
    if not found.size:
        return None
    means = found[:, drawn(len(pictures))].sum(2)  # 2×draws×figures
    return interval(reduce(means[0] / np.maximum(means[1], 1e-9), axis=-1), len(pictures))


def worst(rows: Rows, control: Rows, columns: Sequence[str], of: Callable) -> dict | None:
    """For every picture the attacker that leaves least over the control, then the mean over pictures."""
    smallest: dict[str, float] = {}
    for column in columns:
        pictures, found = sums(rows, control, column, of)
        if found.size:
            for picture, value in zip(pictures, (found[0] / np.maximum(found[1], 1e-9)).mean(-1), strict=True):
                smallest[picture] = min(float(value), smallest.get(picture, np.inf))
    if not smallest:
        return None
    return interval(np.array(list(smallest.values()))[drawn(len(smallest))].mean(1), len(smallest))


def mean(rows: Rows, column: str, of: Callable, scale: float = 1.0) -> dict | None:
    """Mean over (picture, seed)."""
    pictures, found = sums(rows, rows, column, of)
    if not found.size:
        return None
    counts = np.array([sum(key[0] == p and column in rows[key]["after"] for key in rows) for p in pictures])
    chosen = drawn(len(pictures))
    totals = found[0].mean(-1)[chosen].sum(1) / counts[chosen].sum(1)
    return interval(scale * totals, len(pictures))


def summary(
    rows: Sequence[dict], arms: Sequence[str], crops: Sequence[str], whole: Sequence[str], levels: float
) -> list[dict]:
    """Every cell: group, arm, column, figure, over which control, value with its 95 % interval, how many pictures."""
    cells = []
    four, unseen = shifts(ATTACKED_VAES), shifts((UNSEEN_VAE,))
    for group, columns in (("crops", crops), ("whole", whole)):
        attackers = [column for column in columns if column != AS_IT_IS]
        random = select(rows, group, RANDOM, levels)
        for arm in arms:
            own, matched = (select(rows, group, name, levels) for name in (arm, arm + MATCHED))

            def add(
                column: str, figure: str, over: str, found: dict | None, arm: str = arm, group: str = group
            ) -> None:
                if found is not None:
                    cells.append(
                        {"group": group, "arm": arm, "column": column, "figure": figure, "over": over, **found}
                    )

            for column in columns:
                add(column, "structure", "", mean(own, column, distortion, 1000))
                add(column, "latent", "", mean(own, column, four))
                for over, control in (("random", random), ("matched", matched)):
                    add(column, "structure", over, ratio(own, control, column, distortion))
                    add(column, "latent", over, ratio(own, control, column, four))
                    add(column, "latent, worst VAE", over, ratio(own, control, column, four, np.min))
                    add(column, f"latent, {UNSEEN_VAE}", over, ratio(own, control, column, unseen))
            for over, control in (("random", random), ("matched", matched)):
                add(WORST, "structure", over, worst(own, control, attackers, distortion))
                add(WORST, "latent", over, worst(own, control, attackers, four))
    return cells


def shown(cell: dict | None, digits: int = 1) -> str:
    """Value ± half of its interval."""
    if cell is None:
        return "–"
    half = "" if cell["low"] is None else f" ±{(cell['high'] - cell['low']) / 2:.{digits}f}"
    return f"{cell['value']:.{digits}f}{half}"


def label(column: str) -> str:
    return {AS_IT_IS: "as it is"}.get(column, column.replace("gridpure10/2", "gridpure"))


def table(cells: Sequence[dict], group: str) -> str:
    """Two or three lines for each protection: what is left of structure and of the latent shift, by column."""
    chosen = {(c["arm"], c["column"], c["figure"], c["over"]): c for c in cells if c["group"] == group}
    columns = [c for c in dict.fromkeys(key[1] for key in chosen) if c != WORST]
    lines = []
    for arm in (arm for arm in dict.fromkeys(key[0] for key in chosen) if not arm.endswith(MATCHED)):
        has_control = any(key[0] == arm and key[3] == "matched" for key in chosen)
        kinds = [("structure", "matched" if has_control else "random"), ("latent", "random")]
        kinds += [("latent", "matched")] if has_control else []
        if arm == RANDOM:
            kinds = [("structure", ""), ("latent", "")]
        for figure, over in kinds:
            title = {"": "× 1000" if figure == "structure" else "shift"}.get(over, f"× {over}")
            digits = 2 if not over and figure == "latent" else 1
            row = [shown(chosen.get((arm, column, figure, over)), digits) for column in [*columns, WORST]]
            if any(value != "–" for value in row):
                lines.append([arm, f"{figure} {title}", *row])
    return text_table(["protection", "figure", *map(label, columns), "worst case"], lines, 2) if lines else ""


def looks_table(rows: Sequence[dict], cells: Sequence[dict], levels: float) -> str:
    """What protections of crops cost, and what two hard cases leave of the latent shift at a trainer's view."""
    names = {
        "psnr": ("PSNR", 1), "ssim": ("SSIM", 3), "lpips": ("LPIPS", 3), "ciede2000": ("ΔE₀₀", 2),
        "ciede2000_p95": ("ΔE₀₀ p95", 2), "seen_luma": ("seen luma", 2), "seen_chroma": ("seen chroma", 2),
    }  # fmt: skip
    chosen = {(c["arm"], c["figure"]): c for c in cells if c["column"] == VIEWS[0] and c["over"] == "random"}
    crops = [row for row in rows if row["group"] == "crops" and row["levels"] == levels]
    arms = [arm for arm in dict.fromkeys(row["arm"] for row in crops) if not arm.endswith(MATCHED)]
    keys = [key for key in names if all(key in row["looks"] for row in crops)]
    lines = []
    for arm in arms:
        found = [row["looks"] for row in crops if row["arm"] == arm]
        line = [arm, *(f"{fmean(f[key] for f in found):.{names[key][1]}f}" for key in keys)]
        peaks = [f["peak_share"] for f in found]
        line += [f"{fmean(peaks):.1%} / {max(peaks):.0%}"]
        line += [shown(chosen.get((arm, f"latent, {which}"))) for which in ("worst VAE", UNSEEN_VAE)]
        lines.append(line)
    head = ["protection", *(names[key][0] for key in keys), "peak share: mean / largest"]
    return text_table([*head, f"{VIEWS[0]}: worst VAE", f"{VIEWS[0]}: {UNSEEN_VAE}"], lines) if lines else ""


def markdown(cells: Sequence[dict], rows: Sequence[dict], about: dict) -> str:
    """One page."""
    counts = {g: len({r["picture"] for r in rows if r["group"] == g}) for g in ("crops", "whole")}
    crops = Counter((r["arm"], r["picture"]) for r in rows if r["group"] == "crops" and r["levels"] == about["levels"])
    seeds = sorted(crops.values())
    span = "–".join(str(n) for n in dict.fromkeys((*seeds[:1], *seeds[-1:])))
    parts = [
        f"# Protections against attackers, {about['date']}",
        f"`{about['command']}`\n\n{about['machine']}. {about['levels']:g} levels, {about['steps']} steps; pictures "
        f"{about['pictures']} in `benchmarks/pictures/sets.json`, {counts['crops']} crops and "
        f"{counts['whole']} whole; seeds per row and picture: {span}."
        + (f"\n\n{about['missing']}" if about["missing"] else ""),
        table(cells, "crops"),
        LEGEND,
        "## Looks\n\n" + looks_table(rows, cells, about["levels"]),
        LOOKS_LEGEND,
    ]
    whole = table(cells, "whole")
    parts += ["## Whole pictures, one seed\n\n" + whole] if whole else []
    return "\n\n".join(part for part in parts if part)
