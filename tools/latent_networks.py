"""The two networks of the demo latent diffusion model, with the parameter names that ComfyUI's own classes load.

* `Autoencoder`: the tiny autoencoder layout of https://github.com/madebyollin/taesd (MIT), 16 latent channels at 1/8:
  core's `VAE(sd=...)` takes a file with `taesd_encoder.*` and `taesd_decoder.*` and reads the channels from it.
* `MMDiT`: Stable Diffusion 3's transformer (`methods/diffusion/mmdit.py`).
* `Conditions`: tables of learned tokens, our stand-in for text encoders.

Written from the papers; nothing here is copied.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from antipure.methods.diffusion.mmdit import CHANNELS, CONTEXT, POOLED
from antipure.methods.diffusion.mmdit import MMDiT as MMDiT
from torch import Tensor, nn

FACTOR = 8  # pixels of a side that are one place of the latent
SCALE, SHIFT = 1.5305, 0.0609  # SD 3's latent format: the model sees (latent - SHIFT) * SCALE
REGISTERS = 4  # tokens that say nothing: room for the context stream to think in


class Residual(nn.Module):
    """Three 3×3 convolutions and a shortcut, rectified."""

    def __init__(self, width: int = 64):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        self.conv = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


class SoftClamp(nn.Module):
    """Keeps latents within ±3."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


class Autoencoder(nn.Module):
    """Pictures N×3×H×W in 0..1 to latents N×16×H/8×W/8 of zero mean and unit variance per channel, and back.

    The normalisation is a batch norm without weights while training; `exported` folds it into the encoder's last layer.
    """

    def __init__(self, width: int = 64):
        super().__init__()
        stages: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), Residual(width)]
        for _ in range(3):
            stages += [nn.Conv2d(width, width, 3, 2, 1, bias=False), *(Residual(width) for _ in range(3))]
        self.taesd_encoder = nn.Sequential(*stages, nn.Conv2d(width, CHANNELS, 3, padding=1))
        stages = [SoftClamp(), nn.Conv2d(CHANNELS, width, 3, padding=1), nn.ReLU()]
        for blocks in (3, 3, 3):
            stages += [Residual(width) for _ in range(blocks)]
            stages += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        self.taesd_decoder = nn.Sequential(*stages, Residual(width), nn.Conv2d(width, 3, 3, padding=1))
        self.norm = nn.BatchNorm2d(CHANNELS, affine=False, momentum=0.02)

    def encode(self, pictures: Tensor) -> Tensor:
        return self.norm(self.taesd_encoder(pictures).float())

    def decode(self, latents: Tensor) -> Tensor:
        return self.taesd_decoder(latents)

    def exported(self) -> dict[str, Tensor]:
        """The file for core's VAE: fp16 weights; `vae_scale` and `vae_shift` undo what the latent format does."""
        state = {k: v.detach().float().cpu().clone() for k, v in self.state_dict().items() if not k.startswith("norm")}
        spread = (self.norm.running_var + self.norm.eps).sqrt().cpu()
        last = f"taesd_encoder.{len(self.taesd_encoder) - 1}"
        state[f"{last}.weight"] /= spread.view(-1, 1, 1, 1)
        state[f"{last}.bias"] = (state[f"{last}.bias"] - self.norm.running_mean.cpu()) / spread
        state |= {"vae_scale": torch.tensor(SCALE), "vae_shift": torch.tensor(SHIFT)}
        return {k: v if v.ndim == 0 else v.half().contiguous() for k, v in state.items()}


class Conditions(nn.Module):
    """Learned tokens, one table per slot (row 0: anything), and tokens that are always the same.

    sizes: rows per slot, by name. labels: N×slots row numbers. Gives context N×(slots + REGISTERS)×64, pooled N×64.
    """

    def __init__(self, sizes: dict[str, int]):
        super().__init__()
        self.sizes = dict(sizes)
        self.context = nn.ParameterDict({k: nn.Parameter(torch.randn(n, CONTEXT)) for k, n in sizes.items()})
        self.pooled = nn.ParameterDict({k: nn.Parameter(torch.randn(n, POOLED)) for k, n in sizes.items()})
        self.registers = nn.Parameter(torch.randn(REGISTERS, CONTEXT))

    def forward(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        columns = list(zip(self.sizes, labels.unbind(1), strict=True))
        tokens = torch.stack([self.context[k][rows] for k, rows in columns], 1)
        pooled = torch.stack([self.pooled[k][rows] for k, rows in columns]).sum(0) / len(columns) ** 0.5
        return torch.cat([tokens, self.registers.expand(len(labels), -1, -1)], 1), pooled
