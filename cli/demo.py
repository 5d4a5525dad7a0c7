"""`antipure demo`: the shipped workflow on a sample photo, for every preset and control, as one table."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from ..methods.controls import CONTROLS, spectrum_matched
from ..methods.figures.text_table import text_table
from ..methods.metrics import image as metrics
from ..nodes import NODE_CLASS_MAPPINGS
from ..nodes.convert import from_image, to_image
from .executor import Executor
from .graph import read_workflow, set_inputs
from .terminal import show

PRESETS = ("paper", "robust")
HEADER = ("perturbation", "PSNR", "SSIM", "levels", "structural distortion", "detail ratio", "PSNR after")


def run_demo(picture: str, out: Path, *, steps: int, iterations: int, levels: float) -> list[dict]:
    """Print the table clean / controls / paper / robust before and after purification; write pictures and sheets.

    Returns the table's rows, for benchmarks and tests.
    """
    started = time.perf_counter()
    executor = Executor(out)
    base = set_inputs(
        read_workflow("protect_and_purify"),
        [f"1.image={picture}", f"3.levels={levels}", f"3.steps={steps}"]
        + [f"{node}.iterations={iterations}" for node in (5, 6)],
    )
    show(
        f"{Path(picture).name}, {levels:g} levels, {steps} steps, then GrIDPure, {iterations} iterations of 10 steps\n"
    )
    rows: list[dict] = []
    sheets: dict[str, Path] = {}
    for preset in (*CONTROLS, *PRESETS):
        result = executor.run(
            set_inputs(
                base, [f"3.preset={preset}", f"4.filename_prefix={preset}", f"10.filename_prefix={preset}_sheet"]
            )
        )
        original, protected, purified, clean = (from_image(result.outputs[node][0])[0] for node in ("1", "3", "5", "6"))
        if not rows:
            rows.append(_row("none (clean)", original, original, clean, clean))
        rows.append(_row(preset, original, protected, clean, purified))
        sheets[preset] = result.files["10"][0]
        if preset in PRESETS:
            matched = spectrum_matched(original, protected, levels=levels)
            purifier = {k: v for k, v in base["5"]["inputs"].items() if not isinstance(v, list)}
            with torch.inference_mode():
                pure, _ = NODE_CLASS_MAPPINGS["AntiPureDiffusionPurify"]().purify(
                    to_image(matched), result.outputs["2"][0], **purifier
                )
            rows.append(_row(f"  {preset}, spectrum-matched", original, matched, clean, from_image(pure)[0]))
    show(format_table(rows))
    show(
        "\nstructural distortion, detail ratio: purified protected against purified clean picture, same noise.\n"
        "PSNR after: purified protected picture against the original.\n"
        f"{time.perf_counter() - started:.0f} s; pictures in {out}\nsheet: {sheets['robust']}"
    )
    return rows


def _row(name, original, protected, clean, purified) -> dict:
    return {
        "perturbation": name,
        "PSNR": float(metrics.psnr(original, protected)[0]),
        "SSIM": float(metrics.ssim(original, protected)[0]),
        "levels": float(metrics.linf_levels(original, protected)[0]),
        "structural distortion": float(metrics.structural_distortion(clean, purified)[0]),
        "detail ratio": float(metrics.detail_ratio(clean, purified)[0]),
        "PSNR after": float(metrics.psnr(original, purified)[0]),
    }


def format_table(rows: list[dict]) -> str:
    """The rows as a table."""
    digits = {"PSNR": 2, "SSIM": 3, "levels": 0, "structural distortion": 4, "detail ratio": 3, "PSNR after": 2}
    lines = [(row["perturbation"], *(f"{row[name]:.{digits[name]}f}" for name in HEADER[1:])) for row in rows]
    return text_table(HEADER, lines)
