"""Diffusion Purify."""

from __future__ import annotations

from torch import Tensor

from ..methods.gradients.reproducible import reproducible as reproducibly
from ..methods.memory import enough_memory
from ..methods.purification.purify import METHODS, purify
from . import host, inputs
from .convert import difference_view, from_image, to_image
from .progress import Progress
from .targets import TO_PURIFY, check_single

RESIDUAL_SCALE = 16.0


class DiffusionPurify:
    DESCRIPTION = (
        "Purifies pictures with a diffusion model, to measure what a protection is worth: compare the purified "
        "protected picture with the purified clean one, same seed. GrIDPure works in overlapping tiles at a low "
        "timestep; DiffPure noises the whole picture once."
    )
    CATEGORY = "AntiPure"
    FUNCTION = "purify"
    RETURN_TYPES = ("IMAGE", "IMAGE")
    RETURN_NAMES = ("image", "residual view")
    OUTPUT_TOOLTIPS = (
        "The purified picture, 8-bit exact.",
        "What purification changed, around mid-grey; black and white are ±16 levels.",
    )
    SEARCH_ALIASES = ["diffpure", "gridpure", "purification", "sdedit", "denoise attack", "denoise"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return inputs.declare(
            image=inputs.image("Pictures to purify, any size. Alpha passes through untouched."),
            denoiser=inputs.wire("DENOISER", "The diffusion model that purifies."),
            method=inputs.choice(
                METHODS,
                "gridpure",
                "gridpure: tiles, many light iterations. diffpure: the whole picture at its own size. "
                "diffpure_resized: resized to the model's size and back, as published. vae: only through the VAE "
                "and back (denoisers made from a MODEL).",
            ),
            timestep=inputs.integer(
                10, 1, 1000, "How much noise is added before sampling back. GrIDPure: 10. DiffPure: 100 to 150."
            ),
            iterations=inputs.integer(
                20, 1, 1000, "Repetitions. GrIDPure: 20, the paper's strong setting twice as many. DiffPure: 1."
            ),
            gamma=inputs.number(
                0.1, 0.0, 0.99, 0.01, "Share of each iteration's input that is blended back in (gridpure only)."
            ),
            seed=inputs.seed("Noise of the purifier. Use the same for the clean and the protected picture."),
            optional={
                "substeps": inputs.integer(
                    0,
                    0,
                    1000,
                    "At how many of the timesteps the model runs, evenly spaced; 0: at all of them. Half as many "
                    "take half the time and purify a little differently.",
                ),
                "reproducible": inputs.boolean(
                    False,
                    "On a GPU: the same seed gives the same bytes whatever else is loaded, slower. A CPU needs no "
                    "switch.",
                ),
            },
            advanced=("gamma", "substeps"),
            node_id=True,
        )

    def purify(
        self, image, denoiser, method, timestep, iterations, gamma, seed, substeps=0, reproducible=False, node_id=None
    ) -> tuple:
        picture, alpha = from_image(image)
        check_single(denoiser, TO_PURIFY)
        host.ready(denoiser)
        settings = {"timestep": timestep, "iterations": iterations, "gamma": gamma, "seed": seed, "substeps": substeps}
        with (
            reproducibly(reproducible and denoiser.device.type != "cpu"),
            enough_memory("this picture at once", "use 'gridpure', or a smaller picture"),
            denoiser.session(),
            Progress("purifying", node_id, host.networks_of(denoiser)) as progress,
        ):
            progress.begin(picture[:1])
            pure = purify(method, picture.to(denoiser.device), denoiser, progress=progress, **settings)
        pure = pure.cpu()
        host.show_text(_report(picture, pure, method, settings), node_id)
        return to_image(pure, alpha), to_image(difference_view(picture, pure, RESIDUAL_SCALE))


def _report(picture: Tensor, pure: Tensor, method: str, settings: dict) -> str:
    """What was done and what it changed, in short lines."""
    shown = {"timestep": settings["timestep"], "iterations": settings["iterations"]}
    lines = [method, *(f"{name} {value}" for name, value in shown.items() if method != "vae" or name == "iterations")]
    for i, (before, after) in enumerate(zip(picture, pure, strict=True)):
        change = (after - before).abs() * 255
        lines += [f"picture {i + 1}:"] * (len(picture) > 1)
        lines.append(f"changed by {change.mean():.1f} levels in the mean, {change.max():.0f} at most")
    return "\n".join(lines)
