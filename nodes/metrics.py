"""Image Metrics and Inspection Sheet."""

from __future__ import annotations

import math

import torch

from ..methods.errors import AntiPureError
from ..methods.figures.inspection_sheet import inspection_sheet
from ..methods.metrics import image as metrics
from ..methods.metrics import visibility
from ..methods.pictures import round_8bit
from ..methods.purification.transforms import parse_transform
from . import host, inputs
from .convert import from_image, to_image


class Metrics:
    DESCRIPTION = (
        "Compares pictures with references: cost (PSNR, SSIM, largest change) and survival. For survival, give the "
        "purified clean picture as reference and the purified protected one as image: structural distortion says how "
        "much structure the purifier was made to change, the detail ratio how much fine detail it left."
    )
    CATEGORY = "AntiPure"
    FUNCTION = "measure"
    OUTPUT_NODE = True  # so that it runs, and its report is kept, with nothing wired behind it
    RETURN_TYPES = ("FLOAT", "FLOAT", "FLOAT", "FLOAT", "FLOAT", "STRING", "FLOAT", "FLOAT", "FLOAT", "FLOAT", "FLOAT")
    RETURN_NAMES = (
        "psnr", "ssim", "levels", "structural distortion", "detail ratio", "report",
        "peak share", "ciede2000", "ciede2000 p95", "seen luma", "seen chroma",
    )  # fmt: skip
    OUTPUT_TOOLTIPS = (
        "Peak signal-to-noise ratio in dB, mean over the batch (infinite for equal pictures).",
        "Structural similarity (as torchmetrics has it), mean over the batch.",
        "Largest change of any pixel in the batch, in 8-bit levels.",
        "1 - contrast-structure term of SSIM, mean over the batch; brightness shifts do not count.",
        "High-frequency energy of image over reference, mean over the batch.",
        "All of it, for each picture, as text.",
        "Largest share of the change's energy in one Fourier bin, 0..1, largest of the batch; above .01: a stripe.",
        "CIEDE2000 colour difference of a pixel, mean over pixels and batch; about 1 is just noticeable.",
        "The same, 95th percentile over pixels, mean over the batch.",
        "Root mean square change of brightness after an eye-like blur, in 8-bit levels, mean over the batch.",
        "The same of colour.",
    )
    SEARCH_ALIASES = ["psnr", "ssim", "ciede2000", "delta e", "stripes", "image quality", "compare images"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return inputs.declare(
            reference=inputs.image("What to compare with: one picture, or one for each image."),
            image=inputs.image("The pictures to measure."),
            optional={
                "view": inputs.text(
                    "none",
                    "What both go through before they are measured, such as train512 (what a trainer sees) or "
                    "long1080+jpeg85: the texts of Transform Pictures. none: as they are.",
                )
            },
            node_id=True,
        )

    def measure(self, reference, image, node_id=None, view="none") -> dict:
        seen_through = parse_transform(view.strip() or "none")
        a, _ = from_image(reference, "reference")
        b, _ = from_image(image)
        if seen_through.steps:
            a, b = seen_through(a), seen_through(b)
        a = match_batch(a, b, "reference")
        values = {
            "psnr": metrics.psnr(a, b),
            "ssim": metrics.ssim(a, b),
            "levels": metrics.linf_levels(a, b),
            "distortion": metrics.structural_distortion(a, b),
            "detail": metrics.detail_ratio(a, b),
        }
        bands = metrics.band_energy(b - a)
        peak = visibility.peak_share(round_8bit(b) - round_8bit(a))
        colour, high = visibility.ciede2000(a, b)
        luma, chroma = visibility.seen_rms(a, b)
        lines = [f"seen through {seen_through}: {b.shape[-1]}×{b.shape[-2]}"] if seen_through.steps else []
        for i in range(len(b)):
            shares = ", ".join(f"{name} {100 * share[i]:.0f} %" for name, share in bands.items())
            stripe = ": a stripe" if visibility.is_stripe(float(peak[i]), *b.shape[-2:]) else ""
            if len(b) > 1:
                lines.append(f"picture {i + 1}:")
            lines += [
                f"PSNR {values['psnr'][i]:.2f} dB, SSIM {values['ssim'][i]:.4f}",
                f"largest change {values['levels'][i]:.0f} levels",
                f"structural distortion {values['distortion'][i]:.4f}",
                f"detail ratio {values['detail'][i]:.3f}",
                f"frequencies: {shares}",
                f"peak share {100 * peak[i]:.2f} %{stripe}",
                f"CIEDE2000 {colour[i]:.2f}, 95 % below {high[i]:.2f}",
                f"seen: luma {luma[i]:.2f}, chroma {chroma[i]:.2f} levels",
            ]
        # Short lines: nodes break long ones within words.
        report = "\n".join(lines)
        summary = {
            "psnr": float(values["psnr"].mean()),
            "ssim": float(values["ssim"].mean()),
            "levels": float(values["levels"].max()),
            "structural_distortion": float(values["distortion"].mean()),
            "detail_ratio": float(values["detail"].mean()),
        }
        looks = {
            "peak_share": float(peak.max()),
            "ciede2000": float(colour.mean()),
            "ciede2000_p95": float(high.mean()),
            "seen_luma": float(luma.mean()),
            "seen_chroma": float(chroma.mean()),
        }
        host.show_text(report, node_id)
        # JSON knows no infinity: equal pictures have no PSNR there.
        shown = {name: value if math.isfinite(value) else None for name, value in (summary | looks).items()}
        return {"ui": {"text": [report], "metrics": [shown]}, "result": (*summary.values(), report, *looks.values())}


def match_batch(picture: torch.Tensor, to: torch.Tensor, name: str) -> torch.Tensor:
    """One picture repeated for a batch, or a batch of equal length; `AntiPureError` otherwise."""
    if len(picture) not in (1, len(to)):
        raise AntiPureError(f"{len(picture)} pictures as {name} for {len(to)}; give one, or one for each.")
    return picture.expand(len(to), -1, -1, -1)


class Inspect:
    DESCRIPTION = (
        "One labelled sheet per picture: what was changed, amplified, where, and at which frequencies; with the "
        "purified pictures wired in, also what a purifier leaves."
    )
    CATEGORY = "AntiPure"
    FUNCTION = "draw"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("sheet",)
    OUTPUT_TOOLTIPS = ("The sheets, one for each picture.",)
    SEARCH_ALIASES = ["before after", "difference", "heat map", "fft", "spectrum", "compare images"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return inputs.declare(
            original=inputs.image("The pictures before protection."),
            protected=inputs.image("The pictures after protection."),
            optional={
                "purified": inputs.image("The protected pictures after purification."),
                "purified_clean": inputs.image("The original pictures after the same purification."),
            },
        )

    def draw(self, original, protected, purified=None, purified_clean=None) -> tuple:
        after, _ = from_image(protected, "protected picture")
        given = {"original": original, "purified": purified, "purified_clean": purified_clean}
        pictures = {
            name: match_batch(from_image(image, name)[0], after, name)
            for name, image in given.items()
            if image is not None
        }
        sheets = [
            inspection_sheet(protected=after[i : i + 1], **{name: p[i : i + 1] for name, p in pictures.items()})
            for i in range(len(after))
        ]
        return (to_image(torch.cat(sheets)),)
