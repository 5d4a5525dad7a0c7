"""The one interface to every VAE: the encoder through which trainers see pictures, and its decoder.

Pixels are B×3×H×W in [-1, 1], their sides multiples of `Autoencoder.multiple`. Latents are as the network makes them:
no scaling factor of a diffusion model is applied.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AntiPureError, sizes
from ..files import BUNDLED_FOLDER, read_weights, reason
from ..gradients.differentiation import saved_bytes
from ..pictures import check_shape, pad_reflect, round_up
from .batching import Sessions
from .diffusers_autoencoder import load_folder
from .taesd import (
    encoder_alone,
    is_decoder,
    is_diffusers_layout,
    is_encoder,
    split_diffusers_layout,
    tiny_autoencoder,
)

# An encoder of our own, for whoever has no VAE at hand (its card: bundled/README.md).
BUNDLED_VAE = BUNDLED_FOLDER / "vae_encoder.safetensors"
ENCODER_FORMAT = "antipure-vae-encoder"  # in the metadata of an encoder that is meant to be alone
TILE = 512  # pixels of a side: as much as VAEs see of a picture at a time where they are attacked in tiles
WANTED = (
    "a TAESD file in diffusers' layout, its encoder and decoder, or a diffusers AutoencoderKL or AutoencoderTiny folder"
)


class Autoencoder(Sessions, ABC):
    """A VAE. Work with one goes inside `session()`, which prepares borrowed weights and gives them back.

    name: what reports call it. multiple: how many pixels of a side become one place of the latent. channels: of the
    latent. `batching` says how many pictures are taken at a time.
    """

    name: str
    multiple: int
    channels: int
    decodes: bool = True
    _bytes_per_pixel: float | None = None

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """Latent means, B×channels×H/multiple×W/multiple, float32; differentiable with respect to the pixels."""

    @abstractmethod
    def decode(self, latent: Tensor) -> Tensor:
        """Pixels in about [-1, 1], B×3×H×W, float32, not clamped; differentiable with respect to the latent."""

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and log variance of the latent's distribution; None where the encoder gives no variance."""
        return self.encode(pixels), None

    def encode_padded(self, pixels: Tensor) -> Tensor:
        """`encode` for sides of any length: mirrored up to the next multiple at the bottom and right, never cropped."""
        height, width = (round_up(side, self.multiple) for side in pixels.shape[-2:])
        return self.encode(pixels if pixels.shape[-2:] == (height, width) else pad_reflect(pixels, height, width))

    def tile_for(self, height: int, width: int) -> int:
        """Side of the square tiles a height×width picture is cut into: `TILE`, or one for all of a smaller one."""
        return tile_side(self.multiple, height, width, TILE)

    def check_pixels(self, pixels: Tensor) -> None:
        """Raise `AntiPureError` for what is no batch of pixels with sides of the right length."""
        check_shape(pixels, "picture")
        if any(side % self.multiple for side in pixels.shape[-2:]):
            raise AntiPureError(
                f"The picture has {pixels.shape[-2]}×{pixels.shape[-1]} pixels; the sides that {self.name} encodes are "
                f"multiples of {self.multiple}."
            )

    def parts(self) -> tuple[nn.Module, ...]:
        """The networks, whose weights are not counted as activations."""
        return ()

    def bytes_per_pixel(self) -> float:
        """Activation bytes that encoding and decoding keep for their backward, per pixel: counted once."""
        if self._bytes_per_pixel is None:
            side = 8 * self.multiple
            both = (lambda pixels: self.decode(self.encode(pixels))) if self.decodes else self.encode
            with torch.inference_mode(False):
                x = torch.zeros(1, 3, side, side, device=self.device)
                saved = saved_bytes(both, x, *self.parts())
            self._bytes_per_pixel = saved / side**2
        return self._bytes_per_pixel


class NetworkAutoencoder(Autoencoder):
    """A network that this pack has loaded, in float32, its weights frozen.

    network: a module with `multiple`, `channels`, `moments(pixels)` and `decode(latent)`.
    """

    def __init__(self, network: nn.Module, name: str):
        described: Any = network
        self.network, self.name = network.eval().requires_grad_(False), name
        self.multiple, self.channels = int(described.multiple), int(described.channels)
        self.decodes = bool(getattr(network, "decodes", True))

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> NetworkAutoencoder:
        """Move the weights to a device, in place."""
        self.network.to(device)
        return self

    def parts(self) -> tuple[nn.Module, ...]:
        return (self.network,)

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        self.check_pixels(pixels)
        network: Any = self.network
        return network.moments(pixels.to(self.device, torch.float32))

    def encode(self, pixels: Tensor) -> Tensor:
        return self.moments(pixels)[0]

    def decode(self, latent: Tensor) -> Tensor:
        if latent.ndim != 4 or latent.shape[1] != self.channels:
            raise AntiPureError(
                f"The latent has shape {sizes(latent.shape)}; {self.name} decodes B×{self.channels}×h×w."
            )
        network: Any = self.network
        return network.decode(latent.to(self.device, torch.float32))


def tile_side(multiple: int, height: int, width: int, tile: int) -> int:
    """Side of the tiles, `tile` at most, for a height×width picture under a VAE that shrinks by `multiple`."""
    return min(round_up(tile, multiple), round_up(max(height, width), multiple))


def load_autoencoder(
    path: str | Path | Sequence[str | Path], *, device: torch.device | str = "cpu", name: str | None = None
) -> NetworkAutoencoder:
    """Load a VAE: its file or folder, or the two files (encoder, decoder). Nothing is downloaded or executed.

    * A TAESD file in the layout of diffusers' `AutoencoderTiny`, of any precision down to fp8 weights.
    * TAESD's published pair, such as taesd_encoder.pth and taesd_decoder.pth, or taef2's; of a pair one is enough,
      when the other lies beside it.
    * A diffusers folder (config.json and weights) of an AutoencoderKL or AutoencoderTiny, or a pipeline's, with `vae`.
    * Our own encoder, `BUNDLED_VAE`, which has no decoder: `decode` raises an `AntiPureError`.

    name: what reports call it; None: after the file ("bundled" for our own). Weights are float32 and frozen.
    Raises `AntiPureError` naming the path when it is no such VAE, is incomplete, or holds code.
    """
    paths = [Path(path)] if isinstance(path, (str, Path)) else [Path(each) for each in path]
    if paths == [BUNDLED_VAE] and not BUNDLED_VAE.exists():
        raise AntiPureError(f"This installation lacks its own file bundled/{BUNDLED_VAE.name}; install the pack again.")
    if not 1 <= len(paths) <= 2:
        raise AntiPureError(f"{len(paths)} files are no VAE; give {WANTED}.")
    missing = next((each for each in paths if not each.exists()), None)
    if missing is not None:
        raise AntiPureError(f"There is no VAE at {missing}; give {WANTED}.")
    paths = _pair(paths[0]) if len(paths) == 1 and paths[0].is_file() else paths
    where = paths[0]
    # Outside inference mode, so that the weights are ordinary tensors and gradients can pass through.
    with torch.inference_mode(False), torch.no_grad():
        try:
            network = load_folder(where) if where.is_dir() and len(paths) == 1 else _load_files(paths)
            return NetworkAutoencoder(network.to(device), name or _name(where))
        except AntiPureError as error:
            if any(str(error).startswith((f"{each} ", f"{each}{os.sep}")) for each in paths):
                raise
            raise AntiPureError(f"{where} cannot be used. {error}") from error
        except Exception as error:  # whatever a malformed file or configuration makes torch or diffusers raise
            raise AntiPureError(f"{where} cannot be read as a VAE: {reason(error)}") from error


def _load_files(paths: list[Path]) -> nn.Module:
    found = [read_weights(path, WANTED) for path in paths]
    states = [_small_floats_grown(state) for state, _ in found]
    if len(states) == 1:
        if found[0][1].get("format") == ENCODER_FORMAT:
            return encoder_alone(states[0])
        if is_diffusers_layout(states[0]):
            return tiny_autoencoder(*split_diffusers_layout(states[0]))
        half = "an encoder" if is_encoder(states[0]) else "a decoder" if is_decoder(states[0]) else ""
        if half:
            raise AntiPureError(f"It is {half} alone; put the other half beside it, or give both.")
        raise AntiPureError(f"Its weights are those of another network; give {WANTED}.")
    return tiny_autoencoder(*(states if is_encoder(states[0]) else reversed(states)))


def _small_floats_grown(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """fp8 weights as float32: torch computes next to nothing in fp8."""
    return {k: v.float() if v.is_floating_point() and v.element_size() == 1 else v for k, v in state.items()}


def _pair(path: Path) -> list[Path]:
    """A file alone, or the two halves where it is named as one and the other lies beside it."""
    for mine, other in (("encoder", "decoder"), ("decoder", "encoder")):
        if mine in path.name:
            beside = path.with_name(path.name.replace(mine, other))
            if beside.is_file():
                return [path, beside] if mine == "encoder" else [beside, path]
    return [path]


def _name(path: Path) -> str:
    """taesd of taesd_encoder.pth, the pipeline's name of its folder `vae`, else the file's own."""
    if path == BUNDLED_VAE:
        return "bundled"
    if path.is_dir():
        return path.absolute().parent.name if path.name == "vae" else path.absolute().name
    return path.stem.replace("_encoder", "").replace("_decoder", "") or path.stem
