"""The demo latent model as a `Denoiser` of its own, outside ComfyUI: for benchmarks and scripts.

Inside ComfyUI **Load Demo Model** gives the same weights to core's classes, and **Denoiser from Model** wraps those;
here `methods/diffusion/mmdit.py` and `methods/diffusion/taesd.py` run them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ..architecture import fill
from ..diffusion.autoencoder import NetworkAutoencoder
from ..diffusion.checkpoints import DTYPES
from ..diffusion.denoiser import Denoiser
from ..diffusion.mmdit import MMDiT
from ..diffusion.schedules import TIMESTEPS, flow
from ..diffusion.taesd import TinyAutoencoder, tiny_autoencoder
from ..errors import AntiPureError
from ..gradients.differentiation import saved_bytes
from ..pictures import pad_reflect, round_up
from ..precision import autocast
from .demo_model import FOLDER, SIDE, model_weights, prompt, vae_weights
from .dreambooth_lora import CustomizationSettings

SHIFT = 3.0  # of Stable Diffusion 3's sampling, which core applies: sigma = SHIFT·k / (1 + (SHIFT - 1)·k)
LEAST_SIGNAL = 1e-3  # below which the loss is not weighted up any further
# DreamBooth-LoRA over attention, as diffusers trains Stable Diffusion 3, in steps that a CPU does in seconds.
DEMO_SETTINGS = CustomizationSettings(
    rank=16, steps=100, batch=4, learning_rate=1e-3, low_share=0.0, convolutions=False, resize=True
)


class DemoDenoiser(Denoiser):
    """The transformer under one prompt, with its autoencoder.

    Model space is the autoencoder's latent, B×16×H/8×W/8. Timestep k (0-based) is (k + 1)/1000 of the sampler's own
    schedule, seen as the DDPM step with the same noise-to-signal ratio (`methods/diffusion/schedules.py`).
    chosen: values of `demo_model.CLASSES`. dtype: autocast type of both networks (float32: none).
    """

    clip_x0 = False
    latent = True
    name = "demo"
    tile = SIDE
    multiple = 16  # the autoencoder's 8, times the transformer's patches of 2

    def __init__(
        self,
        transformer: MMDiT,
        autoencoder: TinyAutoencoder,
        told: tuple[Tensor, Tensor],
        untold: tuple[Tensor, Tensor],
        dtype: torch.dtype = torch.float32,
    ):
        self.transformer = transformer.eval().requires_grad_(False)
        self.autoencoder = NetworkAutoencoder(autoencoder, self.name)
        device = next(transformer.parameters()).device
        self.told, self.untold = ([part.to(device) for part in one] for one in (told, untold))
        self.dtype, self.guidance = dtype, 1.0
        k = torch.arange(1, TIMESTEPS + 1, device=device) / TIMESTEPS
        self._schedule = flow(SHIFT * k / (1 + (SHIFT - 1) * k))
        self.alphas_cumprod = self._schedule.alphas_cumprod
        self._bytes: float | None = None

    @property
    def network(self) -> nn.Module:
        return self.transformer

    @contextmanager
    def guided(self, scale: float) -> Iterator[None]:
        """Classifier-free guidance (Ho and Salimans, 2022) against the empty prompt for as long as the block lasts."""
        before, self.guidance = self.guidance, scale
        try:
            yield
        finally:
            self.guidance = before

    def encode(self, pixels: Tensor) -> Tensor:
        padded = pad_reflect(pixels, *(round_up(side, self.multiple) for side in pixels.shape[-2:]))
        padded = padded.contiguous(memory_format=torch.channels_last)  # a third of the time on a CPU in bf16
        with autocast(padded.device, self.dtype):
            return self.autoencoder.encode(padded).float()

    def decode(self, latent: Tensor) -> Tensor:
        with autocast(latent.device, self.dtype):
            return self.autoencoder.decode(latent).float()

    def predict(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        eps = self._noise(x_t, t, self.told)
        if self.guidance != 1:
            free = self._noise(x_t, t, self.untold)
            eps = free + self.guidance * (eps - free)
        return eps, None

    def _noise(self, x_t: Tensor, t: Tensor, told: list[Tensor]) -> Tensor:
        """eps_hat of the latent x - sigma v, v = noise - latent being the velocity that the transformer predicts.

        Through the latent, so that pure noise, in which the flow has no latent left, still says what it becomes.
        """
        sigma, scale, abar = (table[t] for table in (self._schedule.sigmas, self._schedule.scale, self.alphas_cumprod))
        x = scale.view(-1, 1, 1, 1) * x_t
        context, pooled = (part.expand(len(x), *part.shape[1:]) for part in told)
        with autocast(x.device, self.dtype):
            velocity = self.transformer(x, sigma, context, pooled)
        latent = x - sigma.view(-1, 1, 1, 1) * velocity.float()
        abar = abar.view(-1, 1, 1, 1)
        return (x_t - abar.sqrt() * latent) / (1 - abar).sqrt()

    def loss_weight(self, t: Tensor) -> Tensor:
        """1 / (1 - sigma)²: with it L_ddpm is the loss of flow matching, || v - v_hat ||² (arXiv 2403.03206, eq. 2)."""
        return (1 - self._schedule.sigmas[t]).clamp(min=LEAST_SIGNAL).square().reciprocal()

    def bytes_per_pixel(self) -> float:
        if self._bytes is None:
            t = torch.zeros(1, dtype=torch.long, device=self.device)
            both = (self.transformer, self.autoencoder.network)
            with torch.inference_mode(False):
                x = torch.zeros(1, 3, 64, 64, device=self.device)
                self._bytes = saved_bytes(lambda x: self.decode(self.predict(self.encode(x), t)[0]), x, *both) / 64**2
        return self._bytes


def load_demo_denoiser(
    chosen: Mapping[str, str] | None = None,
    folder: Path = FOLDER,
    *,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
) -> DemoDenoiser:
    """The demo model as a denoiser under this prompt (None: anybody in any style).

    precision: "fp32", or "bf16"/"fp16" for autocast inside the networks.
    Raises `AntiPureError` for classes it does not know, and where its files are missing or those of another model.
    """
    if precision not in DTYPES:
        raise AntiPureError(f"The precision '{precision}' is unknown; choose one of {', '.join(DTYPES)}.")
    with torch.inference_mode(False), torch.no_grad():
        told, untold = prompt(chosen or {}, folder), prompt({}, folder)
        with torch.device("meta"):
            transformer = MMDiT()
        fill(transformer, model_weights(folder))
        halves = (
            {k.partition(".")[2]: v for k, v in vae_weights(folder).items() if k.startswith(f"taesd_{half}.")}
            for half in ("encoder", "decoder")
        )
        autoencoder = tiny_autoencoder(*halves)
        return DemoDenoiser(transformer.to(device), autoencoder.to(device), told, untold, DTYPES[precision])
