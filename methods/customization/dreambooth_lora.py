"""Customization: a LoRA that teaches a denoiser one subject, as whoever misuses a picture would train it.

Ruiz et al., "DreamBooth" (CVPR 2023) with Hu et al., "LoRA" (ICLR 2022), the LoRA being a patch without gates
(`lora_patching`): L_ddpm on random, mirrored crops of a few pictures, without prior preservation. It runs on any
`Denoiser` that shows its network: pixel models, and a Stable Diffusion folder through `pipeline`. Whatever happens,
the network is afterwards as it was before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.tiles import cut
from ..diffusion.denoiser import Denoiser, trainable_network
from ..diffusion.loss import noised_loss
from ..errors import AntiPureError
from ..lora_patching.low_rank import PatchConfig
from ..lora_patching.patch import is_patched, new_patch
from ..pictures import check_picture, pad_reflect, random_stream, to_pixels
from ..progress import Progress, silent

# The layers of an attention block: diffusers' names, and those of Stable Diffusion 3's own transformer.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "attn.qkv", "attn.proj")


@dataclass(frozen=True)
class CustomizationSettings:
    """How a subject is learned. The defaults are for the bundled pixel denoiser.

    rank: of the LoRA; its scale is 1 (alpha = rank). steps, batch: AdamW steps, and crops in each.
    learning_rate: constant; gradients are clipped to a norm of 1.
    low, low_share: this share of the crops draws its timestep from 0..low-1, the others from the whole schedule. The
        bundled denoiser lives at low noise; a full-size model takes a share of 0.
    convolutions: adapters on convolutions, too, and not on attention only.
    resize: bring the shorter side to the side of a crop first, so that a crop shows the whole subject (DreamBooth);
        else crops come from the pictures as they are.
    """

    rank: int = 16
    steps: int = 200
    batch: int = 4
    learning_rate: float = 1e-3
    low: int = 150
    low_share: float = 0.8
    convolutions: bool = True
    resize: bool = False

    def check(self, denoiser: Denoiser) -> None:
        """Raise `AntiPureError` for settings that make no sense with this denoiser."""
        for name in ("rank", "steps", "batch"):
            if getattr(self, name) < 1:
                raise AntiPureError(f"The customization's {name} is {getattr(self, name)}; at least 1 is needed.")
        if not 0 < self.learning_rate < 1:
            raise AntiPureError(f"The learning rate is {self.learning_rate:g}; it must lie between 0 and 1.")
        if not 0 <= self.low_share <= 1:
            raise AntiPureError(f"low_share is {self.low_share:g}; it is a share, 0..1.")
        if not 1 <= self.low <= denoiser.timesteps:
            raise AntiPureError(f"low is {self.low}; it must lie in 1..{denoiser.timesteps} for this denoiser.")


class Customization:
    """A subject that was learned, or is being learned: the LoRA in a denoiser's network.

    losses: L_ddpm of every step so far. parameters: the LoRA's, the only ones that are trained.
    """

    def __init__(self, network: nn.Module, settings: CustomizationSettings, seed: int):
        self.losses: list[float] = []
        # s = alpha / sqrt(rank) = 1
        lora = PatchConfig(settings.rank, alpha=math.sqrt(settings.rank), gate="none")
        self._applied = new_patch(network, lora, seed, adapted_layers(network, settings.convolutions))
        self._applied.evaluate()
        self.parameters = self._applied.parameters()

    def remove(self) -> None:
        """Take the LoRA out: the very same modules, flags and bits as before. A second call does nothing."""
        self._applied.remove()


def adapted_layers(network: nn.Module, convolutions: bool) -> list[str]:
    """Names of the layers that get adapters: attention projections and, if asked for, ungrouped convolutions.

    Raises `AntiPureError` where there are none, or where adapters are in place already.
    """
    if is_patched(network):
        raise AntiPureError("The network carries adapters already; remove them before customizing it.")
    names = []
    for name, module in network.named_modules():
        attention = isinstance(module, nn.Linear) and any(name == a or name.endswith(f".{a}") for a in ATTENTION)
        if attention or (convolutions and name and isinstance(module, nn.Conv2d) and module.groups == 1):
            names.append(name)
    if not names:
        raise AntiPureError(
            f"This {type(network).__name__} has no {'convolution or ' if convolutions else ''}attention layer that "
            "could take an adapter; customize a U-Net."
        )
    return names


@contextmanager
def customized(
    denoiser: Denoiser,
    pictures: Tensor,
    settings: CustomizationSettings | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Iterator[Customization]:
    """The denoiser customized on the pictures for as long as the block lasts. Arguments and errors as `customize`."""
    customization = customize(denoiser, pictures, settings, seed, progress)
    try:
        yield customization
    finally:
        customization.remove()


def customize(
    denoiser: Denoiser,
    pictures: Tensor,
    settings: CustomizationSettings | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Customization:
    """Train a LoRA on the pictures and leave it in the denoiser's network, until `remove()`.

    pictures: B×3×H×W in 0..1, of one subject; smaller ones than a crop (`denoiser.tile_for`) are mirrored up to it.
    seed: of the adapters, crops, timesteps and noise. Same seed, machine and thread count: same bits.
    progress: with the loss of every step; a raise cancels, and the network is then as it was.
    To be called inside `denoiser.session()`. Gradients reach the LoRA only.
    Raises `AntiPureError` for bad pictures and settings, networks that take no adapters or carry some already, and
    a loss that is not finite.
    """
    settings = CustomizationSettings() if settings is None else settings
    check_picture(pictures)
    settings.check(denoiser)
    network = trainable_network(denoiser, "Customization")
    # ComfyUI runs prompts in inference mode; clones made outside it are ordinary tensors.
    with torch.inference_mode(False), torch.enable_grad():
        pixels = to_pixels(pictures.detach().float().clone()).to(denoiser.device)
        source, tile = prepared(denoiser, pixels, settings.resize)
        customization = Customization(network, settings, seed)
        try:
            _train(denoiser, customization, source, tile, settings, seed, progress)
        except BaseException:
            customization.remove()
            raise
        for parameter in customization.parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
    return customization


def prepared(denoiser: Denoiser, pixels: Tensor, resize: bool) -> tuple[Tensor, int]:
    """Pixels B×3×H×W that crops can be taken from, and the side of these crops."""
    tile = denoiser.tile_for(*pixels.shape[-2:])
    h, w = pixels.shape[-2:]
    if resize:
        scale = tile / min(h, w)
        h, w = max(tile, round(h * scale)), max(tile, round(w * scale))
        pixels = F.interpolate(pixels, (h, w), mode="bicubic", antialias=True).clamp(-1, 1)
    return pad_reflect(pixels, max(h, tile), max(w, tile)), tile


def random_crop(pixels: Tensor, tile: int, generator: torch.Generator, mirrored: bool = True) -> Tensor:
    """One crop 1×3×tile×tile of one of B×3×H×W pixels, mirrored left to right by coin toss."""
    picture, top, left, flip = (
        int(torch.randint(size, (), generator=generator))
        for size in (len(pixels), pixels.shape[-2] - tile + 1, pixels.shape[-1] - tile + 1, 2)
    )
    crop = cut(pixels[picture : picture + 1], [(top, left)], tile)
    return crop.flip(-1) if mirrored and flip else crop


def _train(
    denoiser: Denoiser,
    customization: Customization,
    source: Tensor,
    tile: int,
    settings: CustomizationSettings,
    seed: int,
    progress: Progress,
) -> None:
    optimizer = torch.optim.AdamW(customization.parameters, settings.learning_rate)
    for step in range(settings.steps):
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in denoiser.batching.batches(settings.batch, tile, tile):
            generators = [random_stream(seed, 1, step, i) for i in range(part.start, part.stop)]
            loss = _loss(denoiser, source, tile, settings, generators).sum() / settings.batch
            loss.backward()
            total += float(loss.detach())
        norm = nn.utils.clip_grad_norm_(customization.parameters, 1.0)
        if not torch.isfinite(norm):
            raise AntiPureError("The customization's loss is not finite; use a higher precision or a lower rate.")
        optimizer.step()
        customization.losses.append(total)
        progress(step + 1, settings.steps, None, total)


def _loss(
    denoiser: Denoiser,
    source: Tensor,
    tile: int,
    settings: CustomizationSettings,
    generators: list[torch.Generator],
) -> Tensor:
    """L_ddpm of one random crop, timestep and noise for every generator, as the model weights it."""
    with torch.no_grad():
        z = denoiser.encode(torch.cat([random_crop(source, tile, g) for g in generators]))
    t = torch.tensor([_timestep(denoiser, settings, g) for g in generators], device=z.device)
    return noised_loss(denoiser, z, t, generators, trainable=True) * denoiser.loss_weight(t)


def _timestep(denoiser: Denoiser, settings: CustomizationSettings, generator: torch.Generator) -> int:
    low = float(torch.rand((), generator=generator)) < settings.low_share
    return int(torch.randint(settings.low if low else denoiser.timesteps, (), generator=generator))
