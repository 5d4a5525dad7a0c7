"""Where a perturbation may go: the colour balance of its gradient, and budgets shaped after what eyes notice.

Both leave the L-infinity ball as it is, or inside it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..pictures import check_picture

BT601 = (0.299, 0.587, 0.114)
RMS = 0.9  # of the full budget
LEAST = 0.5  # no pixel gets less than this share of the full budget

# The weights of Chou & Li 1995, fig. 2 and 3: a 5×5 mean without its centre, and four directions of edges.
_BACKGROUND = ((1, 1, 1, 1, 1), (1, 2, 2, 2, 1), (1, 2, 0, 2, 1), (1, 2, 2, 2, 1), (1, 1, 1, 1, 1))
_EDGES = (
    ((0, 0, 0, 0, 0), (1, 3, 8, 3, 1), (0, 0, 0, 0, 0), (-1, -3, -8, -3, -1), (0, 0, 0, 0, 0)),
    ((0, 0, 1, 0, 0), (0, 8, 3, 0, 0), (1, 3, 0, -3, -1), (0, 0, -3, -8, 0), (0, 0, -1, 0, 0)),
    ((0, 0, 1, 0, 0), (0, 0, 3, 8, 0), (-1, -3, 0, 3, 1), (0, -8, -3, 0, 0), (0, 0, -1, 0, 0)),
    ((0, 1, 0, -1, 0), (0, 3, 0, -3, 0), (0, 8, 0, -8, 0), (0, 3, 0, -3, 0), (0, 1, 0, -1, 0)),
)


def balance_colours(gradient: Tensor, luminance: float) -> Tensor:
    """The gradient with its grey part, the mean over the channels, scaled by `luminance` (1 leaves it as it is).

    gradient: B×3×H×W. Gradients of a denoiser agree between the channels, so sign steps draw grey patterns, and grey
    noise is what purifiers take for texture whatever its structure: their training noise is independent per channel.
    With less grey a purifier removes the same energy, and what it does with the rest is owed to the structure alone.
    """
    return gradient - (1 - luminance) * gradient.mean(1, keepdim=True)


def just_noticeable_difference(picture: Tensor) -> Tensor:
    """The smallest change of luminance an eye notices, in 8-bit levels: B×1×H×W for B×3×H×W in 0..1.

    The larger of texture masking and adaptation to the background (Chou & Li, IEEE TCSVT 1995, eq. 2-8).
    """
    check_picture(picture)
    x = picture.float()
    weights = torch.tensor(BT601, device=x.device).view(1, 3, 1, 1)
    luma = (x * weights).sum(1, keepdim=True) * 255
    padded = F.pad(luma, (2, 2, 2, 2), mode="reflect" if min(luma.shape[-2:]) > 2 else "replicate")
    background = F.conv2d(padded, torch.tensor(_BACKGROUND, device=x.device)[None, None].float() / 32)
    edges = F.conv2d(padded, torch.tensor(_EDGES, device=x.device)[:, None].float() / 16)
    gradient = edges.abs().amax(1, keepdim=True)
    texture = gradient * (background * 1e-4 + 0.115) + (0.5 - background * 0.01)
    dark = 17 * (1 - (background.clamp(0, 127) / 127).sqrt()) + 3
    adaptation = torch.where(background <= 127, dark, 3 / 128 * (background - 127) + 3)
    return torch.maximum(texture, adaptation)


def shaped_budget(picture: Tensor, rms: float = RMS, least: float = LEAST) -> Tensor:
    """Per-pixel shares of the budget, B×1×H×W in least..1: proportional to the just noticeable difference.

    The root mean square of each picture's shares is `rms` (0 < least < rms <= 1), so that at L levels no perturbation
    inside falls below 20 log10(255 / (rms L)) dB (31 dB at 8 levels; PGD's own use less). Mid-tone plains, where eyes
    see most, get `least`; texture, edges and the dark get the full budget.
    """
    jnd = just_noticeable_difference(picture)

    def shares(unit: Tensor) -> Tensor:
        return (jnd / unit).clamp(least, 1)

    low, high = torch.full_like(jnd[:, :, :1, :1], 1e-6), torch.full_like(jnd[:, :, :1, :1], 1e6)
    for _ in range(60):  # the root mean square falls with the unit
        middle = (low * high).sqrt()
        above = shares(middle).square().mean((1, 2, 3), keepdim=True).sqrt() > rms
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return shares(high)
