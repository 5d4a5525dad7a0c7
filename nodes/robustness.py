"""Robustness Report."""

from __future__ import annotations

import textwrap
from typing import cast

from torch import Tensor

from ..methods.diffusion.autoencoder import Autoencoder
from ..methods.diffusion.denoiser import Denoiser
from ..methods.errors import AntiPureError
from ..methods.memory import enough_memory
from ..methods.purification.purifiers import Purifier, parse_purifiers
from ..methods.purification.upscaling import Upscaler
from ..methods.robustness.headline import headlines
from ..methods.robustness.measure import check_made_against, measure
from ..methods.robustness.sheet import robustness_sheet
from ..methods.robustness.text import markdown, to_dict, to_json, verdict
from . import host, inputs
from .convert import from_image, to_image
from .latent_autoencoder import as_autoencoder
from .metrics import match_batch
from .progress import Progress
from .targets import TO_PURIFY, check_single
from .upscale_model import ModelUpscaler

# A minute or two for one protection of 128×128 pixels with the bundled denoiser on a CPU. Lines with a denoiser that
# is not wired are refused, so "held_out:..." is for the workflow to add.
PURIFIERS = """gridpure10, gridpure20, gridpure5@30
diffpure50, diffpure100
jpeg75+resize0.5+gridpure10
jpeg75, jpeg75+resize0.5, blur1, noise8, median3"""
DENOISER, HELD_OUT = "denoiser", "held_out"
MORE = ("image_2", "image_3", "image_4")
VAES = ("vae", "vae_2", "vae_3", "vae_4")
UPSCALE_MODEL = "upscale_model"
_WIDTH = 56  # characters of a line on the node


class RobustnessReport:
    DESCRIPTION = (
        "What protections of your pictures are worth: every protection through every purifier and transform, beside "
        "noise of the same spectrum, random noise, a mere blur and the purified original. A sheet, tables, JSON, and a "
        "plain verdict that claims no more than was measured."
    )
    CATEGORY = "AntiPure"
    FUNCTION = "measure"
    OUTPUT_NODE = True  # so that it runs, and its verdict is shown, with nothing wired behind it
    RETURN_TYPES = ("IMAGE", "STRING", "STRING", "STRING", "FLOAT")
    RETURN_NAMES = ("sheet", "markdown", "json", "verdict", "worst")
    OUTPUT_TOOLTIPS = (
        "Heat-map table, curves, before and after: one picture.",
        "All tables, as Markdown.",
        "Every number, as JSON (format antipure-robustness, version 2).",
        "What was found: a line for each protection, then plain sentences.",
        "The lowest ratio of image to its noise of the same spectrum, over pictures and purifiers.",
    )
    SEARCH_ALIASES = ["survival", "benchmark", "purification", "robustness", "evaluate protection", "does it hold"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return inputs.declare(
            original=inputs.image("The pictures before protection."),
            image=inputs.image("The same pictures, protected."),
            names=inputs.text(
                "",
                "What the reports call image, image_2, ...: names separated by commas. Empty: protected, "
                "protected 2, ...",
            ),
            purifiers=inputs.text(
                PURIFIERS,
                "Purifiers and transforms, separated by commas or lines: gridpure20, gridpure10@30 (timestep 30), "
                "diffpure100, vae, impress100, upscale, jpeg75, resize0.5, blur1, noise8, median3, train512; joined by "
                "+ from left to right, noise8+upscale; held_out:gridpure10 runs on the held-out denoiser, vae_2:vae "
                "goes through the VAE of that input.",
                multiline=True,
            ),
            made_against=inputs.text(
                "",
                "Those of the list that the protections were made against, separated by commas; the verdict then "
                "says so. Empty: nothing said.",
            ),
            curve_iterations=inputs.integer(
                20,
                0,
                200,
                "Draws the distortion over 1, 2, 5, ... iterations of the first GrIDPure alone, up to this many. "
                "0: none.",
            ),
            seed=inputs.seed("Noise of purifiers and controls, the same for every version of a picture."),
            seeds=inputs.integer(
                1, 1, 20, "Measure with this many seeds, from seed on, and show the spread. Time grows with it."
            ),
            shown=inputs.integer(1, 1, 4096, "Which picture of the batch the sheet shows before and after."),
            optional={
                **{name: inputs.image("Another protection of the same originals, to compare with.") for name in MORE},
                "denoiser": inputs.wire("DENOISER", "The diffusion model of the purifiers. Transforms need none."),
                "held_out": inputs.wire(
                    "DENOISER",
                    "An unseen model, such as bundled_judge (bundled_held_out is a sibling of bundled, no stranger): "
                    "name it in purifiers as held_out:gridpure10.",
                ),
                **{
                    name: inputs.wire(
                        "VAE",
                        "Measures the latent shift through this VAE, as it is and purified. In purifiers: "
                        f"{name}:vae, {name}:impress100.",
                    )
                    for name in VAES
                },
                UPSCALE_MODEL: inputs.wire("UPSCALE_MODEL", "What upscale in purifiers enlarges with."),
            },
            advanced=("made_against", "curve_iterations"),
            node_id=True,
        )

    @classmethod
    def VALIDATE_INPUTS(cls, purifiers=None, made_against=None):
        """Mistakes in the lists are refused before the graph starts, not after minutes of protecting."""
        if purifiers is None or made_against is None:  # wired
            return True
        try:
            parsed = parse_purifiers(
                purifiers,
                dict.fromkeys((DENOISER, HELD_OUT), cast(Denoiser, _AnyDenoiser())),
                autoencoders=dict.fromkeys(VAES, cast(Autoencoder, object())),
                upscalers={UPSCALE_MODEL: cast(Upscaler, _AnyUpscaler())},
            )
            check_made_against(split_names(made_against), [str(purifier) for purifier in parsed])
        except AntiPureError as error:
            return str(error)
        return True

    def measure(
        self, original, image, names, purifiers, made_against, curve_iterations, seed, seeds, shown,
        image_2=None, image_3=None, image_4=None, denoiser=None, held_out=None, node_id=None,
        vae=None, vae_2=None, vae_3=None, vae_4=None, upscale_model=None,
    ) -> dict:  # fmt: skip
        given = {"image": image, "image_2": image_2, "image_3": image_3, "image_4": image_4}
        pictures = [from_image(value, name)[0] for name, value in given.items() if value is not None]
        clean = match_batch(from_image(original, "original")[0], pictures[0], "original")
        protections = dict(zip(_names(names, len(pictures)), pictures, strict=True))
        wired = dict(zip(VAES, (vae, vae_2, vae_3, vae_4), strict=True))
        autoencoders = {name: as_autoencoder(value, name) for name, value in wired.items() if value is not None}
        upscaler = None if upscale_model is None else ModelUpscaler(upscale_model)
        listed = _purifiers(purifiers, denoiser, held_out, autoencoders, upscaler)
        networks = (denoiser, held_out, *autoencoders.values(), upscaler)
        host.ready(*(network for network in networks if network is not None))
        with (
            enough_memory("this picture at once", "leave diffpure and impress out, or take a smaller picture"),
            Progress("measuring", node_id, host.networks_of(*networks)) as progress,
        ):
            progress.begin(clean[:1])
            total = 1

            def step(done: float, of: int, picture: Tensor | None = None, loss=None, /) -> None:
                nonlocal total
                total = of
                progress(done, of, picture)

            report = measure(
                clean,
                protections,
                listed,
                seeds=[(seed + i) % 2**64 for i in range(seeds)],
                curve_iterations=curve_iterations,
                made_against=split_names(made_against),
                example=shown - 1,
                autoencoders=_by_own_name(autoencoders),
                progress=step,
            )
            sheet = robustness_sheet(report)
            progress(total, total, sheet)  # the preview that stays on the node
        found = verdict(report)
        # Short lines: nodes break long ones within words.
        lines = headlines(report).split("\n") + found.split("\n")
        host.show_text("\n".join(part for line in lines for part in textwrap.wrap(line, _WIDTH)), node_id)
        text, table = to_json(report), markdown(report)
        worst = report.worst_of_all(report.protections[0]).ratio
        found = f"{headlines(report)}\n{found}"
        shown_on_node = {"text": [found], "markdown": [table], "report": [to_dict(report)]}
        return {"ui": shown_on_node, "result": (to_image(sheet), table, text, found, worst)}


class _AnyDenoiser:
    """Takes the place of a denoiser that is not there yet, where a list is only read."""

    timesteps, latent, tile = 2**31, True, 64


class _AnyUpscaler:
    """The same of an upscale model: one that enlarges as little as possible can do all that any other can."""

    name, scale = "the upscale model", 2


def split_names(text: str) -> list[str]:
    """Names separated by commas or lines."""
    return [name.strip() for name in text.replace("\n", ",").split(",") if name.strip()]


def _by_own_name(wired: dict[str, Autoencoder]) -> dict[str, Autoencoder]:
    """By what they are called themselves, with a number behind names that come again."""
    found: dict[str, Autoencoder] = {}
    for model in wired.values():
        count = sum(other.name == model.name for other in found.values())
        found[model.name if not count else f"{model.name} ({count + 1})"] = model
    return found


def _names(text: str, count: int) -> list[str]:
    names = [name.strip() for name in text.split(",")] if text.strip() else []
    if len(names) > count or not all(names) or len(set(names)) != len(names):
        raise AntiPureError(f"The names '{text}' are not one for each of {count} protections; give them once each.")
    return [*names, *("protected" if i == 0 else f"protected {i + 1}" for i in range(len(names), count))]


def _purifiers(
    text: str,
    denoiser: Denoiser | None,
    held_out: Denoiser | None,
    autoencoders: dict[str, Autoencoder],
    upscaler: Upscaler | None,
) -> list[Purifier]:
    """The list, with the networks that are wired by their inputs' names.

    Raises `AntiPureError` for a denoiser or an upscale model that no purifier uses; VAEs measure, too.
    """
    for model in (denoiser, held_out):
        check_single(model, TO_PURIFY)
    if denoiser is None and held_out is not None:
        raise AntiPureError("Only held_out is wired; wire the denoiser of the other purifiers to denoiser.")
    models = {DENOISER: denoiser, HELD_OUT: held_out}
    listed = parse_purifiers(
        text,
        {name: model for name, model in models.items() if model is not None},
        autoencoders=autoencoders,
        upscalers={} if upscaler is None else {UPSCALE_MODEL: upscaler},
    )
    used = {step.denoiser for purifier in listed for step in purifier.purifications}
    if held_out is not None and HELD_OUT not in used:
        raise AntiPureError("held_out is wired, but no purifier uses it; add held_out:gridpure10 to the list.")
    if upscaler is not None and not any(
        step.method == "upscale" for purifier in listed for step in purifier.restorations
    ):
        raise AntiPureError("upscale_model is wired, but no purifier uses it; add upscale to the list.")
    return listed
