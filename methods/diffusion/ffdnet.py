"""FFDNet (Zhang, Zuo, Zhang, IEEE TIP 2018, arXiv 1710.04026) as a denoiser: plain convolutions, trained by others.

It takes a noisy picture and the noise's standard deviation and gives the picture. x_t is such a picture once scaled:
x_t / sqrt(abar) = x0 + sqrt((1 - abar) / abar) eps, so with pixels in 0..1

    x0_hat  = D((x_t / sqrt(abar) + 1) / 2, sigma),  sigma = sqrt((1 - abar) / abar) / 2
    eps_hat = (x_t - sqrt(abar) (2 x0_hat - 1)) / sqrt(1 - abar)

The noise is DDPM's linear schedule as far as FFDNet was trained: sigma up to 75 levels, its first 168 timesteps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..architecture import check_state
from ..errors import AntiPureError
from ..precision import full_precision
from .strided import Prediction

PATCH = 2  # it sees 2×2 pixels as channels of one
TILE = 64  # the bundled denoisers' too; it was trained on patches of 50
LARGEST_SIGMA = 75 / 255
_NAME = re.compile(r"(\d+)\.(weight|bias)")


class FFDNet(nn.Module):
    """Predicts the noise in x_t; called as unet(x, t).sample like diffusers' networks.

    widths: the channels that every 3×3 convolution but the last gives. alphas_cumprod: T values.
    x: B×12×h×w, pixels in [-1, 1] folded 2×2. t: B 0-based timesteps. sample: B×12×h×w, float32.
    """

    alphas_cumprod: Tensor

    def __init__(self, widths: list[int], alphas_cumprod: Tensor):
        super().__init__()
        channels = 3 * PATCH**2
        self.config = SimpleNamespace(block_out_channels=widths[:1], in_channels=channels)
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)
        pairs = zip([channels + 1, *widths], [*widths, channels], strict=True)
        self.layers = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in pairs)

    def denoise(self, picture: Tensor, sigma: Tensor) -> Tensor:
        """D(picture, sigma): B×12×h×w in 0..1, folded 2×2, with noise of deviation sigma (B); without it."""
        level = sigma.to(picture).view(-1, 1, 1, 1).expand(-1, 1, *picture.shape[-2:])
        h = torch.cat([picture, level], 1)
        for layer in self.layers[:-1]:
            h = F.relu(layer(h))
        return self.layers[-1](h)

    def forward(self, x: Tensor, t: Tensor) -> Prediction:
        abar = self.alphas_cumprod[t.expand(len(x))].view(-1, 1, 1, 1)
        # It gives the picture, not the noise: half precision would round it to whole levels.
        with full_precision(x.device):
            x = x.float()
            x0 = 2 * self.denoise((x / abar.sqrt() + 1) / 2, ((1 - abar) / abar).sqrt() / 2) - 1
            return Prediction((x - abar.sqrt() * x0) / (1 - abar).sqrt())


def is_ffdnet_state_dict(state: Mapping[str, Tensor]) -> bool:
    """Whether these weights are 3×3 convolutions over folded RGB and a noise level, one after another."""
    weights = _weights(state)
    return (
        len(weights) >= 2
        and all(weight.ndim == 4 and tuple(weight.shape[2:]) == (3, 3) for weight in weights)
        and weights[0].shape[1] == 3 * PATCH**2 + 1
        and weights[-1].shape[0] == 3 * PATCH**2
    )


def trained_betas(betas: Tensor) -> Tensor:
    """The first of these betas: those whose noise FFDNet was trained for."""
    abar = torch.cumprod(1 - betas.double(), 0)
    return betas[((1 - abar) / abar).sqrt() / 2 <= LARGEST_SIGMA]


def load_ffdnet(state: Mapping[str, Tensor], betas: Tensor) -> FFDNet:
    """FFDNet with the weights of `is_ffdnet_state_dict`, numbered without gaps or, where others count ReLUs, with.

    betas: of its noise schedule. Raises `AntiPureError` for weights that do not follow from each other.
    """
    order = {number: place for place, number in enumerate(sorted({int(_number(key)) for key in state}))}
    renamed = {f"layers.{order[int(_number(key))]}.{key.partition('.')[2]}": value for key, value in state.items()}
    widths, abar = [len(weight) for weight in _weights(state)[:-1]], torch.cumprod(1 - betas.double(), 0)
    with torch.device("meta"):
        check_state(FFDNet(widths, abar), renamed)
    network = FFDNet(widths, abar)
    network.load_state_dict({key: value.float() for key, value in renamed.items()})
    return network


def _weights(state: Mapping[str, Tensor]) -> list[Tensor]:
    """The weights in their order; none where a name is not of the kind "12.weight"."""
    if not all(_NAME.fullmatch(key) for key in state):
        return []
    return [state[key] for key in sorted(state, key=lambda key: int(_number(key))) if key.endswith(".weight")]


def _number(key: str) -> str:
    match = _NAME.fullmatch(key)
    if match is None:
        raise AntiPureError(f"'{key}' has no place in FFDNet, whose weights are numbered.")
    return match[1]
