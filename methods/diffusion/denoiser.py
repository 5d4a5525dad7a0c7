"""The one interface between a diffusion model and every algorithm of this pack.

Conventions, here and everywhere: pixels are B×3×H×W in [-1, 1]; timesteps are 0-based indices into
`alphas_cumprod` as in diffusers, so "purify with timestep 10" runs the indices 9, 8, ..., 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ...kernels.noising import add_noise as add_noise  # half of the noise process; predict_x0 is the other
from ..errors import AntiPureError
from ..pictures import round_up
from .batching import Sessions


class Denoiser(Sessions, ABC):
    """A noise-predicting diffusion model.

    alphas_cumprod: T values, float32, on the model's device.
    tile: native side in pixels, or None when any size serves.
    multiple: sides of a tile must be multiples of this many pixels.
    clip_x0: whether clean predictions are clamped to [-1, 1] (pixel models).
    latent: whether `encode` goes through a VAE.
    name: what reports call it, "" where nobody named it.
    """

    alphas_cumprod: Tensor
    tile: int | None
    multiple: int
    clip_x0: bool = True
    latent: bool = False
    name: str = ""

    @property
    def device(self) -> torch.device:
        return self.alphas_cumprod.device

    @property
    def timesteps(self) -> int:
        return len(self.alphas_cumprod)

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels to the space the model works in (the identity for pixel models)."""

    @abstractmethod
    def decode(self, latent: Tensor) -> Tensor:
        """The inverse of `encode`: back to pixels in [-1, 1]."""

    @abstractmethod
    def predict(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """Predicted noise, and the learned variance fraction in [-1, 1] or None.

        x_t: B×C×H×W in model space. t: B integer timesteps, one per sample.
        """

    def predict_noise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """eps_theta(x_t, t): B×C×H×W, float32."""
        return self.predict(x_t, t)[0]

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of a latent denoiser: what its VAE's encoder gives, as `Autoencoder.moments`; here without a variance."""
        return self.encode(pixels), None

    @property
    def network(self) -> nn.Module:
        """The noise-predicting network itself: what a patch changes."""
        raise NotImplementedError

    def predict_trainable(self, x_t: Tensor, t: Tensor) -> Tensor:
        """`predict_noise` through which gradients reach the network's weights, too."""
        return self.predict_noise(x_t, t)

    def loss_weight(self, t: Tensor) -> Tensor:
        """What L_ddpm at these timesteps counts where this model is trained: N; 1 for models trained on it as it is."""
        return torch.ones(len(t), device=t.device)

    def clamp(self, x0: Tensor) -> Tensor:
        """x0 within the range the model was trained on."""
        return x0.clamp(-1, 1) if self.clip_x0 else x0

    def tile_for(self, height: int, width: int) -> int:
        """Side of the square tiles a height×width picture is cut into: the native one, or one for it all."""
        return self.tile or round_up(max(height, width), self.multiple)


def predict_x0(x_t: Tensor, eps: Tensor, abar_t: Tensor) -> Tensor:
    """x0_hat = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t), not clamped (DDPM, eq. 15)."""
    a = abar_t.to(x_t.dtype).view(-1, 1, 1, 1)
    return (x_t - (1 - a).sqrt() * eps) / a.sqrt()


def trainable_network(denoiser: Denoiser, name: str) -> nn.Module:
    """The denoiser's network. Raises `AntiPureError` where there is none to be had."""
    try:
        return denoiser.network
    except NotImplementedError:
        raise AntiPureError(
            f"{name} changes or reads the inside of the network, which this {type(denoiser).__name__} does not show; "
            "use another denoiser."
        ) from None
