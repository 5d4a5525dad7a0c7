"""Set Metrics: how two sets of pictures differ (FID, KID), and how much one of them varies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..methods.diffusion.checkpoints import load_denoiser
from ..methods.errors import AntiPureError
from ..methods.metrics import distribution
from ..methods.metrics.lpips import AlexNet, Lpips
from ..methods.progress import part
from . import host, inputs
from .convert import from_image
from .encoders import borrowed_encoder
from .progress import Progress


class SetMetrics:
    DESCRIPTION = (
        "How two sets of pictures differ (FID, KID) and how much the second one varies (diversity), on features of an "
        "encoder of yours, or of the bundled denoiser. The report names the feature space and the numbers of pictures."
    )
    CATEGORY = "AntiPure"
    FUNCTION = "measure"
    OUTPUT_NODE = True
    RETURN_TYPES = ("FLOAT", "FLOAT", "FLOAT", "STRING")
    RETURN_NAMES = ("fid", "kid", "diversity", "report")
    OUTPUT_TOOLTIPS = (
        "Fréchet distance of the two sets' features.",
        "Kernel distance (unbiased; may fall below 0), mean over its subsets.",
        "Mean distance between the pictures of image: LPIPS with lpips wired, else of features by cosine.",
        "All of it as text, with the feature space and the numbers of pictures.",
    )
    SEARCH_ALIASES = ["fid", "kid", "lpips", "diversity", "inception"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return inputs.declare(
            reference=inputs.image("The set to compare with, at least 2 pictures."),
            image=inputs.image("The set to measure, at least 2 pictures."),
            seed=inputs.seed("Of KID's subsets and the pairs that LPIPS compares."),
            optional={
                "encoder": inputs.wire(
                    "VISUAL_ENCODER,CLIP_VISION",
                    "The feature space; none: the bundled denoiser's middle block. FID: InceptionV3's.",
                ),
                "lpips": inputs.wire(
                    "VISUAL_ENCODER", "AlexNet from Load Visual Encoder: diversity becomes mean pairwise LPIPS."
                ),
            },
            node_id=True,
        )

    def measure(self, reference, image, seed, encoder=None, lpips=None, node_id=None) -> dict:
        sets = [from_image(reference, "reference")[0], from_image(image)[0]]
        counts = [len(x) for x in sets]
        if min(counts) < 2:
            raise AntiPureError(f"The sets have {counts[0]} and {counts[1]} pictures; give at least 2 of each.")
        distance = None if lpips is None else _lpips(lpips)
        done = 0
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            _space(encoder) as space,
            Progress("measuring sets", node_id) as progress,
        ):
            found = []
            for x in sets:
                found.append(
                    distribution.extract(
                        x,
                        space,
                        device=host.device(),
                        progress=part(progress, done, len(x), sum(counts)),
                    )
                )
                done += len(x)
            name = space.name
            fid = distribution.frechet_distance(*found)
            kid, deviation = distribution.kernel_distance(*found, seed=seed)
            if distance is None:
                diversity, what = distribution.feature_diversity(found[1]), "cosine distance of features"
            else:
                diversity, pairs = distribution.pairwise_diversity(sets[1], distance, seed=seed)
                what = f"{distance.name}, {pairs} pairs"
        lines = [
            f"features: {name}",
            f"n = {counts[0]} and {counts[1]} pictures",
            f"FID {fid:.4f}",
            f"KID {kid:.6f}" + (f" ± {deviation:.6f} over subsets" if deviation else ""),
            f"diversity {diversity:.4f}",
            f"({what})",
        ]
        warning = distribution.size_warning(*counts)
        report = "\n".join([*lines, *([warning] if warning else [])])
        host.show_text(report, node_id)
        return {"ui": {"text": [report]}, "result": (fid, kid, diversity, report)}


def _lpips(encoder) -> Lpips:
    backbone = getattr(encoder, "module", None)
    if not isinstance(backbone, AlexNet):
        raise AntiPureError(
            "LPIPS needs AlexNet: wire Load Visual Encoder with torchvision's AlexNet file to lpips "
            "('antipure fetch-models alexnet' downloads it)."
        )
    backbone.cpu()
    return Lpips(backbone, f"LPIPS, {encoder.name}")


@contextmanager
def _space(encoder) -> Iterator:
    if encoder is None:
        denoiser = host.manage(load_denoiser(None))
        host.ready(denoiser)
        yield distribution.DenoiserFeatures(denoiser, "bundled denoiser")
        return
    with borrowed_encoder(encoder) as found:
        yield found
