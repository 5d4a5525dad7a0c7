"""diffusers' own VAEs, `AutoencoderKL` and `AutoencoderTiny`, from a folder: configuration, then weights that fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..architecture import MOST_LAYERS, check_layers, check_size, fill
from ..errors import AntiPureError
from ..files import find_weights, read_json, read_weights, reason
from .checkpoints import rename_old_attention

CLASSES = ("AutoencoderKL", "AutoencoderTiny")
MOST_LEVELS = 8  # a reduction of 128 times


class DiffusersAutoencoder(nn.Module):
    """One of diffusers' VAEs, called as `TinyAutoencoder` is: `moments` and `decode` over pixels in [-1, 1].

    Raises `AntiPureError` where it does not turn RGB pictures into a latent and back.
    """

    def __init__(self, vae: nn.Module):
        super().__init__()
        self.vae: Any = vae
        config: Any = vae.config
        self.gaussian = type(vae).__name__ == "AutoencoderKL"
        self.channels = int(config.latent_channels)
        levels = config.block_out_channels if self.gaussian else config.encoder_block_out_channels
        self.multiple = 2 ** (len(levels) - 1)
        if (config.in_channels, config.out_channels) != (3, 3):
            raise AntiPureError(
                f"It takes {config.in_channels} channels and gives {config.out_channels}; a VAE for pictures has 3."
            )

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        encoded = self.vae.encode(pixels)
        if not self.gaussian:
            return encoded.latents, None
        return encoded.latent_dist.mean, encoded.latent_dist.logvar

    def decode(self, latent: Tensor) -> Tensor:
        return self.vae.decode(latent).sample


def load_folder(folder: Path) -> DiffusersAutoencoder:
    """The VAE in a diffusers folder, or in the folder `vae` of a pipeline, as float32.

    Raises `AntiPureError` for other models, and for weights that are missing or do not fit the configuration.
    """
    inner = folder / "vae" if (folder / "vae").is_dir() else folder
    if not (inner / "config.json").is_file():
        raise AntiPureError(f"{inner} has no config.json; a diffusers folder needs it to tell its network.")
    config = read_json(inner / "config.json")
    kind = config.get("_class_name")
    if kind not in CLASSES:
        raise AntiPureError(f"{inner} holds a {kind or 'network without a name'}; give one of {' and '.join(CLASSES)}.")
    check_layers(config, inner)
    files, _ = find_weights(inner, "diffusion_pytorch_model")
    state: dict[str, Tensor] = {}
    with torch.device("meta"):  # memory is taken only for what the file turns out to hold
        vae = _described(config, kind, inner)
        network = DiffusersAutoencoder(vae)
        _check_shapes(network)
    check_size(network, files)
    for file in files:
        state.update(read_weights(file, f"the weights of an {kind}")[0])
    if network.gaussian:
        rename_old_attention(vae, state)
    fill(network.vae, state)
    return network


def _described(config: dict, kind: str, where: Path) -> Any:
    import diffusers

    known = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        levels = max(len(known[name]) for name in known if name.endswith("block_out_channels"))
        counts = [sum(known.get(f"num_{half}_blocks", ())) for half in ("encoder", "decoder")]
        if levels > MOST_LEVELS or max(counts) > MOST_LAYERS:
            raise AntiPureError(f"It asks for {levels} levels and {max(counts)} layers.")
        return getattr(diffusers, kind).from_config(known)
    except Exception as error:  # diffusers checks little: odd settings raise nearly anything
        raise AntiPureError(f"{where} does not describe an {kind}: {reason(error)}") from error


def _check_shapes(network: DiffusersAutoencoder) -> None:
    side = 2 * network.multiple
    latent = network.moments(torch.zeros(1, 3, side, side))[0]
    if latent.shape != (1, network.channels, 2, 2) or network.decode(latent).shape != (1, 3, side, side):
        raise AntiPureError("Its encoder and decoder do not fit each other: no picture comes back at its own size.")
