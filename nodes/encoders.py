"""Load Visual Encoder, and ComfyUI's CLIP_VISION as an encoder: what feature alignment (MMFA) looks through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..methods.errors import AntiPureError
from ..methods.gradients.differentiation import plain_weights
from ..methods.metrics.encoders import Encoder, file_encoder, transformers_encoder
from . import host, inputs, model_folders


class LoadVisualEncoder:
    DESCRIPTION = (
        "An image encoder from models/antipure_encoders, for the feature alignment of Train LoRA Patch and for Set "
        "Metrics: a transformers folder (BLIP, CLIP, DINOv2; safetensors), or the state dict of ResNet-50 or AlexNet "
        "(torchvision) or of FID's InceptionV3. Core's CLIP_VISION serves as well."
    )
    CATEGORY = "AntiPure/LoRA Patching"
    FUNCTION = "load"
    RETURN_TYPES = ("VISUAL_ENCODER",)
    RETURN_NAMES = ("encoder",)
    OUTPUT_TOOLTIPS = ("For the encoders of Train LoRA Patch and Set Metrics.",)
    SEARCH_ALIASES = ["blip", "resnet", "mmfa", "feature alignment"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        tooltip = "A folder or file in models/antipure_encoders; nothing is downloaded."
        return inputs.declare(
            encoder=inputs.file(model_folders.list_models("encoders"), tooltip, absent=model_folders.ABSENT["encoders"])
        )

    @classmethod
    def IS_CHANGED(cls, encoder=None, **_) -> str:
        return model_folders.model_state("encoders", encoder)

    def load(self, encoder) -> tuple:
        path = model_folders.find_model("encoders", encoder)
        return (transformers_encoder(path) if path.is_dir() else file_encoder(path),)


@contextmanager
def borrowed_encoder(encoder) -> Iterator[Encoder]:
    """An `Encoder`, or ComfyUI's CLIP_VISION seen as one: its weights borrowed and returned as they were."""
    if isinstance(encoder, Encoder):
        host.move(encoder, host.device())
        yield encoder
        return
    model, patcher = getattr(encoder, "model", None), getattr(encoder, "patcher", None)
    if model is None or patcher is None:
        raise AntiPureError("The encoder is no CLIP_VISION; wire Load CLIP Vision or Load Visual Encoder.")
    host.load_patchers([patcher])

    def embed(pictures: Tensor) -> Tensor:
        return model(pixel_values=pictures.to(encoder.load_device), intermediate_output=-2)[2].float()

    mean = tuple(getattr(encoder, "image_mean", (0.48145466, 0.4578275, 0.40821073)))
    std = tuple(getattr(encoder, "image_std", (0.26862954, 0.26130258, 0.27577711)))
    with torch.inference_mode(False), plain_weights(model):
        yield Encoder("CLIP_VISION", embed, int(getattr(encoder, "image_size", 224)), mean, std)
