"""Face Metrics: whether pictures still show the person of the clean ones (ISM), and a face at all (FDFR)."""

from __future__ import annotations

import torch

from ..methods.metrics.faces import FaceModels, face_scores
from ..methods.metrics.portrait_judge import read_judge
from . import host, inputs, model_folders
from .convert import from_image
from .progress import Progress


class FaceMetrics:
    DESCRIPTION = (
        "ISM and FDFR: how much the faces still resemble the person of the clean pictures, and in how many pictures "
        "no face is found. Needs onnxruntime and an insightface pack of yours; nothing is downloaded. For the drawn "
        "portraits of Load Demo Model the pack has a judge of its own."
    )
    CATEGORY = "AntiPure"
    FUNCTION = "measure"
    OUTPUT_NODE = True
    RETURN_TYPES = ("FLOAT", "FLOAT", "STRING")
    RETURN_NAMES = ("ism", "fdfr", "report")
    OUTPUT_TOOLTIPS = (
        "Mean cosine between each picture's face and the clean mean; NaN when no picture has a face.",
        "Share of pictures without a face.",
        "Both, and each picture's similarity, as text.",
    )
    SEARCH_ALIASES = ["ism", "fdfr", "arcface", "insightface", "identity", "face detection"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return inputs.declare(
            image=inputs.image("The pictures to measure, such as samples after customization."),
            clean=inputs.image("Clean pictures of the same person, of any number and size."),
            pack=inputs.file(
                _packs(),
                "A folder in models/insightface with det_*.onnx and w600k_*.onnx, such as buffalo_l. "
                "'bundled_portraits' knows the demo model's drawn portraits only, no photographs.",
            ),
            threshold=inputs.number(0.5, 0.05, 0.95, 0.05, "Score from which the detector's finding counts as a face."),
            node_id=True,
        )

    @classmethod
    def IS_CHANGED(cls, pack=None, **_) -> str:
        return model_folders.model_state("faces", pack)

    def measure(self, image, clean, pack, threshold, node_id=None) -> dict:
        picture, _ = from_image(image)
        known, _ = from_image(clean, "clean picture")
        with torch.inference_mode(False), torch.no_grad():
            path = model_folders.find_model("faces", pack)
            models = read_judge(path) if pack == model_folders.BUNDLED_PORTRAITS else FaceModels(path)
            with Progress("looking for faces", node_id) as progress:
                scores = face_scores(picture, known, models, threshold=threshold, progress=progress)
        seen = sum(s == s for s in scores.similarities)
        kind = "insightface" if isinstance(models, FaceModels) else "drawn portraits only"
        lines = [
            f"models: {models.name} ({kind})",
            f"ISM {scores.ism:.4f} over {seen} of {len(picture)} pictures",
            f"FDFR {scores.fdfr:.4f}",
            f"reference: {scores.clean_faces} of {len(known)} clean pictures",
            *(f"picture {i + 1}: " + (f"{s:.4f}" if s == s else "no face") for i, s in enumerate(scores.similarities)),
        ]
        report = "\n".join(lines)
        host.show_text(report, node_id)
        return {"ui": {"text": [report]}, "result": (scores.ism, scores.fdfr, report)}


def _packs() -> list[str]:
    """The user's packs, or where one goes; then the judge of drawn portraits."""
    bundled = model_folders.BUNDLED_PORTRAITS
    packs = [name for name in model_folders.list_models("faces") if name != bundled]
    return [*(packs or [model_folders.ABSENT["faces"]]), bundled]
