"""Multi-modal feature alignment (MMFA, arXiv 2510.03747): outputs that mean the same to two visual encoders.

    MMFA(y, y*) = 0.1 * mean (f(y) - f(y*))^2 + 0.1 * (1 - cos(e(y), e(y*)))

f: pooled features of a vision backbone (the paper: ResNet-50); e: image embedding of a vision-language encoder (the
paper: BLIP). Gradients pass through both encoders to y. Each sees pictures in its own size and normalisation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import AntiPureError, sizes


class MMFA:
    """The two alignment terms, either of which can be left out by giving None for its encoder.

    Weights are the paper's. Raises `AntiPureError` when neither encoder is given: to train without alignment, say so
    with mmfa=None.
    """

    def __init__(
        self,
        backbone: Callable[[Tensor], Tensor] | None,
        language: Callable[[Tensor], Tensor] | None,
        *,
        backbone_weight: float = 0.1,
        language_weight: float = 0.1,
    ):
        if backbone is None and language is None:
            raise AntiPureError("Feature alignment was asked for without an encoder; give one, or turn alignment off.")
        self.backbone, self.language = backbone, language
        self.backbone_weight, self.language_weight = backbone_weight, language_weight

    def to(self, device: torch.device | str) -> MMFA:
        """Move those encoders that can be moved."""
        for encoder in (self.backbone, self.language):
            move = getattr(encoder, "to", None)
            if move is not None:
                move(device)
        return self

    def describe(self) -> dict[str, object]:
        """Encoders and weights, for a patch's metadata."""
        return {
            "backbone": getattr(self.backbone, "name", None),
            "backbone_weight": self.backbone_weight if self.backbone else 0.0,
            "language": getattr(self.language, "name", None),
            "language_weight": self.language_weight if self.language else 0.0,
        }

    @torch.no_grad()
    def features(self, target: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """f(y*) and e(y*), once per target. target: B×3×H×W in [-1, 1]."""
        backbone, language = (None if e is None else _embed(e, target) for e in (self.backbone, self.language))
        return backbone, language

    def __call__(self, output: Tensor, features: tuple[Tensor | None, Tensor | None]) -> Tensor:
        """MMFA of outputs (B×3×H×W in [-1, 1]) against the `features` of their targets: a 0-d tensor."""
        f_target, e_target = features
        loss = torch.zeros((), device=output.device)
        if self.backbone is not None and f_target is not None:
            loss = loss + self.backbone_weight * F.mse_loss(_embed(self.backbone, output), f_target)
        if self.language is not None and e_target is not None:
            cosine = F.cosine_similarity(_embed(self.language, output), e_target, dim=1)
            loss = loss + self.language_weight * (1 - cosine).mean()
        return loss


def _embed(encoder: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    vectors = encoder(pixels)
    if vectors.ndim != 2 or len(vectors) != len(pixels):
        name = getattr(encoder, "name", type(encoder).__name__)
        raise AntiPureError(f"The encoder {name} gave {sizes(vectors.shape)}; one vector per picture is needed.")
    return vectors.float()
