"""CLIP-IQA (Wang, Chan, Loy, AAAI 2023): does CLIP find a picture nearer to "Good photo." than to "Bad photo."?

    CLIP-IQA(x) = softmax(100 cos(i(x), t("Good photo.")), 100 cos(i(x), t("Bad photo.")))_1

From a CLIP of the user's own in a local transformers folder, with its position embedding and at its own size, as in
torchmetrics; the paper's ResNet-50 without position embedding gives other figures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import AntiPureError
from ..files import reason
from ..pictures import check_picture, round_8bit
from .encoders import load_transformers, pooled, preprocessing

PROMPTS = ("Good photo.", "Bad photo.")
_SCALE = 100


class ClipIqa:
    """metric(picture): B scores in 0..1, higher is better. picture: B×3×H×W in 0..1, rounded to 8 bits here.

    folder: a CLIP in transformers' form, with safetensors weights and its tokenizer. Pictures are resized by their
    shorter side and cropped in the middle, as CLIP's own processor does. `name` says what was measured with.
    Raises `AntiPureError` when the folder holds something else or lacks a file.
    """

    def __init__(self, folder: str | Path, *, prompts: tuple[str, str] = PROMPTS, device: torch.device | str = "cpu"):
        folder = Path(folder)
        model: Any = load_transformers(folder)  # with transformers' own methods, if it is a CLIP
        if getattr(model.config, "model_type", None) != "clip":
            raise AntiPureError(f"{folder} holds a {type(model).__name__}; CLIP-IQA needs a CLIP with both encoders.")
        size, self.mean, self.std = preprocessing(folder, model.config.vision_config)
        if size is None:
            raise AntiPureError(f"{folder} does not say the size of its pictures; give a CLIP with square ones.")
        self.size, self.device = size, device
        self.name = f"CLIP-IQA, {folder.name}"
        tokens = _tokens(folder, prompts)
        self.model: Any = model.eval().requires_grad_(False).to(device)
        with torch.no_grad():
            texts = self.model.get_text_features(**{key: value.to(device) for key, value in tokens.items()})
        self.anchors = F.normalize(_tensor(texts).float(), dim=1)

    @torch.no_grad()
    def __call__(self, picture: Tensor) -> Tensor:
        check_picture(picture)
        scores = []
        for one in round_8bit(picture).split(1):
            found = self.model.get_image_features(pixel_values=self._prepare(one.to(self.device)))
            cosines = F.normalize(_tensor(found).float(), dim=1) @ self.anchors.T
            scores.append((_SCALE * cosines).softmax(1)[:, 0].cpu())
        return torch.cat(scores)

    def _prepare(self, picture: Tensor) -> Tensor:
        h, w = picture.shape[-2:]
        side = min(h, w)
        height, width = h * self.size // side, w * self.size // side
        if (height, width) != (h, w):
            picture = F.interpolate(picture, (height, width), mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (height - self.size) // 2, (width - self.size) // 2
        picture = picture[..., top : top + self.size, left : left + self.size]
        mean, std = (picture.new_tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (picture - mean) / std


def _tensor(found: object) -> Tensor:
    return found if isinstance(found, Tensor) else pooled(found)  # transformers 5 wraps it


def _tokens(folder: Path, prompts: tuple[str, str]) -> dict[str, Tensor]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        found = tokenizer(list(prompts), padding=True, return_tensors="pt")
    except Exception as error:  # a malformed folder makes transformers raise nearly anything
        raise AntiPureError(
            f"{folder} has no tokenizer that can be read ({reason(error)}); put the CLIP's tokenizer.json beside it."
        ) from error
    return {key: found[key] for key in ("input_ids", "attention_mask")}
