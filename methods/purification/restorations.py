"""The purifiers of `purifiers` that take another network than a denoiser: a VAE or an upscaler."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from ..diffusion.autoencoder import Autoencoder
from ..errors import AntiPureError
from ..progress import Progress, silent
from .impress import impress
from .upscaling import Upscaler, times, upscale
from .vae import vae_round_trip

# The value each has when none is written: round trips, steps, and the factor that the upscaler itself has.
DEFAULTS = {"vae": 1, "impress": 100, "upscale": 0}
_TEXT = re.compile(r"(?:([\w .-]+):)?\s*(vae|impress|upscale)\s*(\d+)?", re.IGNORECASE)
Network = TypeVar("Network", Autoencoder, Upscaler)


@dataclass(frozen=True)
class Restoration:
    """One step with its network: restoration(picture) for B×3×H×W in 0..1, 8-bit rounded, of the same shape.

    method: of `DEFAULTS`. name: the network's in the list, "" for the first of its kind.
    """

    method: str
    value: int
    network: Autoencoder | Upscaler
    name: str = ""

    def __str__(self) -> str:
        value = "" if self.method == "upscale" and not self.value else self.value
        return (f"{self.name}:" if self.name else "") + f"{self.method}{value}"

    def __call__(self, picture: Tensor, progress: Progress = silent) -> Tensor:
        if isinstance(self.network, Upscaler):
            return upscale(picture, self.network, factor=self.value, progress=progress)
        there = picture.to(self.network.device)
        if self.method == "impress":
            pure = impress(there, self.network, steps=self.value, progress=progress)
        else:
            pure = vae_round_trip(there, self.network, iterations=self.value, progress=progress)
        return pure.to(picture.device)

    def session(self) -> AbstractContextManager:
        """The network's."""
        return self.network.session()


def parse_restoration(
    text: str, autoencoders: Mapping[str, Autoencoder], upscalers: Mapping[str, Upscaler]
) -> Restoration | None:
    """The step a text names, "vae2", "sdxl:impress100", "esrgan:upscale4"; None where it is none of these.

    Raises `AntiPureError` where its network is not there and for values that make no sense.
    """
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        return None
    name, method = (match[1] or "").strip(), match[2].lower()
    value = int(match[3]) if match[3] else DEFAULTS[method]
    if match[3] and value < 1:
        raise AntiPureError(f"'{text.strip()}': give a number from 1 up, or none.")
    if method == "upscale":
        upscaler = _chosen(text, name, upscalers, "upscale model")
        times(upscaler, value)
        return Restoration(method, value, upscaler, name)
    return Restoration(method, value, _chosen(text, name, autoencoders, "VAE"), name)


def _chosen(text: str, name: str, networks: Mapping[str, Network], kind: str) -> Network:
    if not networks:
        raise AntiPureError(f"'{text.strip()}' needs a {kind}; wire one, or leave it out.")
    if name and name not in networks:
        raise AntiPureError(f"There is no {kind} '{name}'; the names are {', '.join(networks)}.")
    return networks[name] if name else next(iter(networks.values()))
