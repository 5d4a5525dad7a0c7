"""Whose latents are these? A VAE of another family has the same shapes, but its channels mean other colours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# A family's own latents show the picture in the family's colours; how clearly another one must do it better.
CLEAR, MARGIN = 0.8, 0.1


def colour_agreement(latent: Tensor, factors: Tensor, picture: Tensor) -> float:
    """How well a linear map of the latents shows the picture: mean over RGB of Pearson's correlation, -1..1.

    latent: 1×C×h×w. factors: C×3, the map that previews use. picture: 1×3×H×W. Scale and offset do not matter.
    """
    shown = torch.einsum("bchw,cr->brhw", latent.double(), factors.double().to(latent.device)).flatten(2)
    target = F.adaptive_avg_pool2d(picture.double(), (latent.shape[-2], latent.shape[-1])).to(latent.device).flatten(2)
    shown, target = shown - shown.mean(2, keepdim=True), target - target.mean(2, keepdim=True)
    lengths = (shown.norm(dim=2) * target.norm(dim=2)).clamp(min=1e-12)
    return float(((shown * target).sum(2) / lengths).mean())


def better_family(own: str, agreements: dict[str, float]) -> str | None:
    """The family whose colours the latents clearly have, if that is not their own; None when nothing can be said."""
    best = max(agreements, key=agreements.__getitem__)
    if agreements[best] >= CLEAR and agreements[best] >= agreements[own] + MARGIN:
        return best
    return None
