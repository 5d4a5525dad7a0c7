"""VAE Metrics: how far a change moves pictures in the latent space of a VAE, through which all trainers look."""

from __future__ import annotations

import torch

from ..methods.errors import AntiPureError
from ..methods.memory import enough_memory
from ..methods.metrics.latent import latent_shift
from ..methods.purification.transforms import parse_transform
from . import host, inputs
from .convert import from_image
from .latent_autoencoder import as_autoencoder
from .metrics import match_batch
from .progress import Progress


class VaeMetrics:
    DESCRIPTION = (
        "How far a change moves pictures in the latent space of a VAE, which is all that somebody who trains on them "
        "sees of it: the rms difference over the clean latent's standard deviation, with an interval. Any VAE for "
        "pictures, and through a view such as the resize of a trainer."
    )
    CATEGORY = "AntiPure"
    FUNCTION = "measure"
    OUTPUT_NODE = True
    RETURN_TYPES = ("FLOAT", "STRING")
    RETURN_NAMES = ("shift", "report")
    OUTPUT_TOOLTIPS = (
        "Latent shift, mean over the batch: 0 for equal pictures, about 1 where the change is as large as the latent.",
        "The shift of each picture with its 95 % interval, as text.",
    )
    SEARCH_ALIASES = ["latent shift", "latent distance", "vae", "taesd", "trainer"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return inputs.declare(
            reference=inputs.image("What to compare with, such as the originals: one picture, or one for each image."),
            image=inputs.image("The pictures to measure, of the reference's size."),
            vae=inputs.wire("VAE", "The VAE to look through: Load VAE's, also TAESD's small ones, or a checkpoint's."),
            view=inputs.text(
                "none",
                "What both go through before the VAE: transforms as in Transform Pictures, joined by +, such as "
                "train512 (a trainer's bucket), upload1080+train512, jpeg75 or resize0.5; or none.",
            ),
            optional={"seed": inputs.seed("Of the view's noise and of the interval.")},
            node_id=True,
        )

    @classmethod
    def VALIDATE_INPUTS(cls, view=None):
        """A view that is none is refused before the graph starts."""
        if view is None:  # wired
            return True
        try:
            parse_transform(view)
        except AntiPureError as error:
            return str(error)
        return True

    def measure(self, reference, image, vae, view, seed=0, node_id=None) -> dict:
        b, _ = from_image(image)
        a = match_batch(from_image(reference, "reference")[0], b, "reference")
        transform = parse_transform(view, seed)
        autoencoder = as_autoencoder(vae)
        host.ready(autoencoder)
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            enough_memory("this picture at once", "take a smaller picture, or a smaller VAE such as TAESD"),
            Progress("looking through the VAE", node_id, host.networks_of(autoencoder)) as progress,
        ):
            found = latent_shift(a, b, autoencoder, view=transform, seed=seed, progress=progress)
        lines = str(found).splitlines()
        report = "\n".join(
            [
                *(f"latent shift {line}" for line in lines if len(lines) == 1),
                *(f"picture {i + 1}: latent shift {line}" for i, line in enumerate(lines) if len(lines) > 1),
                f"{autoencoder.channels} channels, {autoencoder.multiple} pixels a place",
                f"view: {transform}",
            ]
        )
        host.show_text(report, node_id)
        shift = float(found.value.mean())
        shown = {
            "latent_shift": shift,
            "view": str(transform),
            "pictures": [
                {"shift": value, **({"low": low, "high": high} if low == low else {})}
                for value, low, high in zip(found.value.tolist(), found.low.tolist(), found.high.tolist(), strict=True)
            ],
        }
        return {"ui": {"text": [report], "metrics": [shown]}, "result": (shift, report)}
