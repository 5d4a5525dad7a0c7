"""Tables of `benchmarks.protection`."""

from __future__ import annotations

from statistics import fmean

import numpy as np
from antipure.methods.figures.text_table import text_table

from .work import half_width

Key = tuple  # (part, picture, arm, levels, seed)
OWN, UNSEEN, COMPOSED = "gridpure10", "held_out:gridpure10@15", "jpeg75+resize0.5+gridpure10"


def cell(values: list[float], digits: int) -> str:
    """Mean ± half of the 95 % interval."""
    if not values:
        return "–"
    half = half_width(values)
    return f"{fmean(values):.{digits}f}" + ("" if half != half else f" ± {half:.{digits}f}")


def ratio_of_means(numerators: dict, denominators: dict, draws: int = 2000) -> tuple[float, float, float]:
    """Ratio of the means over (picture, seed), and its 95 % interval by resampling pictures (percentile bootstrap)."""
    shared = sorted(set(numerators) & set(denominators))
    pictures = sorted({key[0] for key in shared})
    sums = np.array(
        [[sum(of[key] for key in shared if key[0] == p) for of in (numerators, denominators)] for p in pictures]
    )
    chosen = np.random.default_rng(0).integers(len(pictures), size=(draws, len(pictures)))
    top, bottom = sums[chosen].sum(1).T
    low, high = np.percentile(top / bottom, [2.5, 97.5])
    return float(sums[:, 0].sum() / sums[:, 1].sum()), float(low), float(high)


def select(results: dict[Key, dict], arm: str, levels: float) -> dict[tuple[str, int], dict]:
    """(picture, seed) -> figures of one arm at one budget."""
    return {(key[1], key[4]): value for key, value in results.items() if key[2] == arm and key[3] == levels}


def report(results: dict[Key, dict], arms: list[str], purifiers: list[str], matched: str) -> list[str]:
    """The sections: aims, then for each budget the tables of distortion, of detail and of the worst case."""
    budgets = list(dict.fromkeys(key[3] for key in results))
    arms = [name for arm in arms if not arm.endswith(matched) for name in (arm, arm + matched)]
    parts = [
        "Structural distortion: 1 - mean contrast-structure term of SSIM between Pure(protected) and Pure(clean), same "
        "noise; × 1000, mean ± 95 % interval (Student) over pictures and seeds. Higher: more of the protection is left."
    ]
    if results:
        parts.append(aims(results, purifiers, matched, budgets[0]))
    for levels in budgets:
        chosen = {arm: select(results, arm, levels) for arm in arms}
        chosen = {arm: found for arm, found in chosen.items() if found}
        counts = sorted({len(found) for found in chosen.values()})
        n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
        parts.append(f"## {levels:g} levels (n = {n} pictures × seeds)")
        parts.append(table(chosen, purifiers, "distortion", 1000, 1, "Structural distortion × 1000"))
        parts.append(table(chosen, purifiers, "detail", 1, 2, "Detail ratio (1: none lost or made up)", cost=False))
        parts.append(ratios(results, chosen, purifiers, matched, levels))
    return parts


def table(chosen: dict, purifiers: list[str], figure: str, scale: float, digits: int, title: str, cost=True) -> str:
    """One row per arm, one column per purifier."""
    costs = {"PSNR": ("psnr", 2), "SSIM": ("ssim", 3), "LPIPS": ("lpips", 3)} if cost else {}
    costs = {k: v for k, v in costs.items() if all(v[0] in f for found in chosen.values() for f in found.values())}
    lines = []
    for arm, found in chosen.items():
        row = [cell([f[key] for f in found.values()], digits_of) for key, digits_of in costs.values()]
        row += [cell([f["after"][p][figure] * scale for f in found.values()], digits) for p in purifiers]
        lines.append([arm, str(len(found)), *row])
    return f"**{title}**\n\n" + text_table(["protection", "n", *costs, *purifiers], lines)


def distortions(found: dict, purifier: str) -> dict:
    return {key: value["after"][purifier]["distortion"] for key, value in found.items()}


def ratios(results: dict, chosen: dict, purifiers: list[str], matched: str, levels: float) -> str:
    """Distortion over the spectrum-matched control's, and the worst case over the purifiers with a diffusion model."""
    lines = []
    judged = [p for p in purifiers if "pure" in p]
    for arm, found in chosen.items():
        control = select(results, arm + matched, levels)
        shared = set(found) & set(control)
        if not shared:
            continue
        row = []
        for p in purifiers:
            value, low, high = ratio_of_means(distortions(found, p), distortions(control, p))
            row.append(f"{value:.1f} ({low:.1f}–{high:.1f})")
        worst = []
        for key in shared:
            pairs = [(found[key]["after"][p]["distortion"], control[key]["after"][p]["distortion"]) for p in judged]
            worst.append(min(value / max(of_control, 1e-6) for value, of_control in pairs))
        lines.append([arm, str(len(shared)), *row, f"{fmean(worst):.2f}"])
    return (
        "**Times its spectrum-matched control** (ratio of means, 95 % interval over pictures; the worst case is over "
        "the purifiers with a diffusion model: a transform alone takes as much of noise as of a protection)\n\n"
        + text_table(["protection", "n", *purifiers, "worst purifier, mean over pictures"], lines)
    )


def aims(results: dict, purifiers: list[str], matched: str, levels: float) -> str:
    """What was asked of `strong` and of the shaped budget, and what came out."""
    strong, shaped, first = (select(results, arm, levels) for arm in ("strong", "strong_shaped", "unrolled"))
    control = select(results, "strong" + matched, levels)
    lines = []

    def line(text: str, value: str, met: bool) -> None:
        lines.append((text, value, "met" if met else "**not met**"))

    for text, purifier, least in (
        ("≥ 8 × its spectrum-matched control, the purifier it was made for", OWN, 8),
        ("≥ 6 ×, a held-out denoiser at another timestep", UNSEEN, 6),
        ("≥ 2 ×, JPEG 75 and half size, then the purifier", COMPOSED, 2),
        ("≥ 2 ×, JPEG 75 and half size alone", "jpeg75+resize0.5", 2),
    ):
        if purifier in purifiers and strong and control:
            value, low, high = ratio_of_means(distortions(strong, purifier), distortions(control, purifier))
            line(f"{text} (`{purifier}`)", f"{value:.2f} ({low:.2f}–{high:.2f})", value >= least)
    first_control = select(results, "unrolled" + matched, levels)
    if first and first_control and strong and UNSEEN in purifiers:
        new = ratio_of_means(distortions(strong, UNSEEN), distortions(control, UNSEEN))[0]
        old = ratio_of_means(distortions(first, UNSEEN), distortions(first_control, UNSEEN))[0]
        line("more than the first version on the held-out purifier, × control", f"{new:.2f}, was {old:.2f}", new > old)
        new, old = (fmean(distortions(found, UNSEEN).values()) * 1000 for found in (strong, first))
        line("the same, distortion × 1000", f"{new:.1f}, was {old:.1f}", new > old)
    smooth = select(results, "smooth", levels)
    for purifier in (OWN, UNSEEN) if smooth and strong else ():
        shared = set(smooth) & set(strong)
        new, old = (fmean(distortions(f, purifier)[key] for key in shared) * 1000 for f in (strong, smooth))
        line(f"more than the control `smooth` after `{purifier}`, × 1000", f"{new:.1f} against {old:.1f}", new > old)
    if shaped and strong:
        value = fmean(f["psnr"] for f in shaped.values())
        line("shaped budget: PSNR ≥ 32 dB", f"{value:.2f} dB", value >= 32)
        value = ratio_of_means(distortions(shaped, OWN), distortions(strong, OWN))[0]
        line("shaped budget: ≥ 70 % of `strong`'s distortion", f"{value:.0%}", value >= 0.7)
        if all("lpips" in f for f in shaped.values()):
            others = {arm: select(results, arm, levels) for arm in dict.fromkeys(key[2] for key in results)}
            mean = {arm: fmean(f["lpips"] for f in found.values()) for arm, found in others.items() if found}
            mean = {arm: v for arm, v in mean.items() if not arm.endswith(matched)}
            best = min(mean, key=mean.get)
            text = f"{mean['strong_shaped']:.3f}; lowest {mean[best]:.3f}, `{best}`"
            line("shaped budget: lowest LPIPS (AlexNet) of all presets", text, best == "strong_shaped")
    return text_table((f"asked of `strong` at {levels:g} levels", "measured", ""), lines)


def ablation_table(results: dict[Key, dict], names: list[str], purifier: str) -> str:
    """The terms of the loss, one by one, after one purifier."""
    title = {"paper": "paper: L_ddpm + PFG + ETG"}
    lines = []
    for name in names:
        found = [value for key, value in results.items() if key[2] == name]
        if found:
            after = [value["after"][purifier] for value in found]
            cells = (
                cell([value["psnr"] for value in found], 2),
                cell([value["distortion"] * 1000 for value in after], 1),
                cell([value["detail"] for value in after], 2),
            )
            lines.append((title.get(name, name), *cells))
    n = max((sum(key[2] == name for key in results) for name in names), default=0)
    table = text_table(("loss", "PSNR", "distortion × 1000", "detail ratio"), lines)
    return f"## Ablation\n\nAfter `{purifier}`, first budget, first seed, n = {n}.\n\n{table}"


def curve_table(results: dict[Key, dict], arms: tuple[str, ...], points: tuple[int, ...]) -> str:
    """Distortion × 1000 over the number of GrIDPure iterations."""
    lines = []
    for arm in arms:
        found = [value for key, value in results.items() if key[2] == arm]
        if found:
            lines.append([arm, *(cell([value[str(point)] * 1000 for value in found], 1) for point in points)])
    n = max((sum(key[2] == arm for key in results) for arm in arms), default=0)
    return (
        "## Over GrIDPure iterations\n\nStructural distortion × 1000 after that many iterations at timestep 10, "
        f"bundled denoiser, first budget, first seed, n = {n}.\n\n"
        + text_table(["protection", *map(str, points)], lines)
    )
