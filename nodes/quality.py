"""Quality Metrics: how good pictures look by themselves, without an original beside them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..methods.errors import AntiPureError
from ..methods.metrics.brisque import Brisque, load_brisque
from ..methods.metrics.clip_iqa import ClipIqa
from . import host, inputs, model_folders
from .convert import from_image
from .progress import Progress

NONE = "none"
_NO_CLIP = (
    "No CLIP is chosen: put the folder of one (config.json, model.safetensors, preprocessor_config.json, "
    "tokenizer.json) into models/antipure_encoders, refresh and choose it."
)


class QualityMetrics:
    DESCRIPTION = (
        "How good pictures look by themselves, without an original to compare with: BRISQUE (natural statistics, lower "
        "is better) and CLIP-IQA (nearer to a good photo than to a bad one, higher is better). What is missing is "
        "named in the report, and the rest is measured. Nothing is downloaded."
    )
    CATEGORY = "AntiPure"
    FUNCTION = "measure"
    OUTPUT_NODE = True
    RETURN_TYPES = ("FLOAT", "FLOAT", "STRING")
    RETURN_NAMES = ("brisque", "clip_iqa", "report")
    OUTPUT_TOOLTIPS = (
        "Mean BRISQUE of image, about 0 (natural) to 100; NaN when it could not be measured.",
        "Mean CLIP-IQA of image, 0..1; NaN when it could not be measured.",
        "Both for each picture, the reference's means, and what is missing, as text.",
    )
    SEARCH_ALIASES = ["brisque", "clip-iqa", "no reference", "image quality", "aesthetics"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return inputs.declare(
            image=inputs.image("The pictures to measure, such as samples after customization."),
            clip=inputs.file(
                [NONE, *model_folders.list_models("encoders")],
                "The folder of a CLIP in models/antipure_encoders for CLIP-IQA; none: only BRISQUE.",
                NONE,
            ),
            optional={"reference": inputs.image("Pictures to set beside them, of any number and size: clean ones.")},
            node_id=True,
        )

    @classmethod
    def IS_CHANGED(cls, clip=None, **_) -> str:
        return model_folders.model_state("encoders", clip)

    def measure(self, image, clip, reference=None, node_id=None) -> dict:
        sets = [from_image(image)[0]] + ([] if reference is None else [from_image(reference, "reference")[0]])
        pictures = [one for x in sets for one in x.split(1)]
        found, lines = [], [f"n = {' and '.join(str(len(x)) for x in sets)} pictures"]
        with torch.inference_mode(False), torch.no_grad(), Progress("measuring quality", node_id) as progress:
            loaders: dict[str, Callable[[], Brisque | ClipIqa]] = {
                "BRISQUE": load_brisque,
                "CLIP-IQA": lambda: _clip(clip),
            }
            for i, (name, load) in enumerate(loaders.items()):

                def step(done: int, before: int = i * len(pictures)) -> None:
                    progress(before + done, 2 * len(pictures))

                try:
                    metric = load()
                    values = _scores(metric, pictures, step)
                except AntiPureError as error:
                    lines.append(f"{name}: not measured. {error}")
                    found.append(float("nan"))
                    continue
                ours, others = values[: len(sets[0])], values[len(sets[0]) :]
                found.append(float(ours.nanmean()))
                lines += [metric.name, *_describe(name, ours, others)]
        report = "\n".join(lines)
        host.show_text(report, node_id)
        return {"ui": {"text": [report]}, "result": (*found, report)}


def _clip(name: str) -> ClipIqa:
    if name == NONE:
        raise AntiPureError(_NO_CLIP)
    return ClipIqa(model_folders.find_model("encoders", name), device=host.device())


def _scores(metric: Callable[[Tensor], Tensor], pictures: list[Tensor], step: Callable[[int], None]) -> Tensor:
    scores = []
    for one in pictures:
        scores.append(metric(one).double())
        step(len(scores))
    return torch.cat(scores)


def _describe(name: str, values: Tensor, reference: Tensor) -> list[str]:
    digits = 2 if name == "BRISQUE" else 4

    def text(value: Tensor, sign: str = "") -> str:
        return "none: the picture is flat" if value.isnan() else f"{float(value):{sign}.{digits}f}"

    lines = [f"{name} {text(values.nanmean())}"]
    if len(reference):
        mean = reference.nanmean()
        lines += [f"reference {text(mean)}", f"change {text(values.nanmean() - mean, '+')}"]
    if len(values) > 1:
        lines += [f"picture {i + 1}: {text(value)}" for i, value in enumerate(values)]
    return lines
