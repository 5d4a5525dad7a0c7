"""TAESD: the tiny autoencoders that Ollin Boer Bohan distilled from the VAEs of diffusion models (MIT).

Their encoder and decoder are plain stacks of convolutions, told in the README and code of github.com/madebyollin/taesd;
the networks here are written anew under the names that the published files use. The one for FLUX.2 adds pooling with
group normalisation to the blocks at the lowest resolution.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..architecture import fill
from ..errors import AntiPureError

MULTIPLE = 8
_BLOCKS = (1, 3, 3, 3)  # of the encoder at each resolution, full to an eighth; the decoder has them in reverse
_LEVELS = len(_BLOCKS) - 1
_GROUPS = 4
NOT_TINY = "Its weights are not those of a TAESD with eightfold reduction"


class Bounded(nn.Module):
    """3 tanh(x / 3): latents as the decoder takes them, nearly themselves below 1."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


class Block(nn.Module):
    """relu(x + three convolutions of x), at `width` channels; pooled: after adding what normalised channels say."""

    def __init__(self, width: int, pooled: bool):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        self.conv = nn.Sequential(*layers[:-1])
        if pooled:
            wide = 4 * width
            self.pool = nn.Sequential(
                nn.Conv2d(width, wide, 1, bias=False),
                nn.GroupNorm(_GROUPS, wide),
                nn.ReLU(),
                nn.Conv2d(wide, width, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "pool"):
            x = x + self.pool(x)
        return F.relu(x + self.conv(x))


def encoder(channels: int, width: int = 64, pooled: bool = False) -> nn.Sequential:
    """Pictures B×3×H×W in 0..1 to latents B×channels×H/8×W/8."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
    for level, count in enumerate(_BLOCKS):
        if level:
            layers.append(nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False))
        layers += [Block(width, pooled and level == _LEVELS) for _ in range(count)]
    return nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1))


def decoder(channels: int, width: int = 64, pooled: bool = False) -> nn.Sequential:
    """Latents to pictures B×3×H×W in about 0..1."""
    layers: list[nn.Module] = [Bounded(), nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
    for level, count in reversed(list(enumerate(_BLOCKS))):
        layers += [Block(width, pooled and level == _LEVELS) for _ in range(count)]
        if level:
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
    return nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1))


class TinyAutoencoder(nn.Module):
    """Both halves. `moments` and `decode` as `Autoencoder` has them; pixels in [-1, 1]."""

    multiple = MULTIPLE

    def __init__(self, channels: int, width: int = 64, pooled: bool = False):
        super().__init__()
        self.channels = channels
        self.encoder = encoder(channels, width, pooled)
        self.decoder = decoder(channels, width, pooled)

    def moments(self, pixels: Tensor) -> tuple[Tensor, None]:
        return self.encoder((pixels + 1) / 2), None

    def decode(self, latent: Tensor) -> Tensor:
        return self.decoder(latent) * 2 - 1


class EncoderAlone(nn.Module):
    """The half that trainers see through: it can be attacked and measured with, and brings no latent back."""

    multiple = MULTIPLE
    decodes = False

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.channels = channels
        self.encoder = encoder(channels, width)

    def moments(self, pixels: Tensor) -> tuple[Tensor, None]:
        return self.encoder((pixels + 1) / 2), None

    def decode(self, latent: Tensor) -> Tensor:
        raise AntiPureError("This VAE is an encoder alone and cannot decode; give a whole VAE, such as a TAESD file.")


def is_diffusers_layout(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of diffusers' `AutoencoderTiny`: encoder and decoder in one file."""
    return "encoder.layers.0.weight" in state and "decoder.layers.0.weight" in state


def split_diffusers_layout(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Encoder and decoder of a file in diffusers' layout under the published names, which count `Bounded`, too.

    Raises `AntiPureError` for a name that belongs to neither.
    """
    halves: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder": {}}
    for key, value in state.items():
        half, _, rest = key.partition(".layers.")
        index, dot, name = rest.partition(".")
        if half not in halves or not dot or not index.isdecimal():
            raise AntiPureError(f"{NOT_TINY}: it has '{key}'.")
        halves[half][f"{int(index) + (half == 'decoder')}.{name}"] = value
    return halves["encoder"], halves["decoder"]


def is_encoder(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict in the published layout begins as an encoder does: with a convolution over RGB."""
    return state.get("0.weight", torch.empty(0)).shape[1:] == (3, 3, 3)


def is_decoder(state: Mapping[str, Tensor]) -> bool:
    """Whether it begins as a decoder does: the first layer has no weights, the second takes a latent."""
    return "0.weight" not in state and state.get("1.weight", torch.empty(0)).shape[2:] == (3, 3)


def tiny_autoencoder(encoder_state: Mapping[str, Tensor], decoder_state: Mapping[str, Tensor]) -> TinyAutoencoder:
    """The network of two state dicts in the published layout, float32; channels and pooling are read from them.

    Raises `AntiPureError` for other networks, for halves of different ones, and as `architecture.check_state` does.
    """
    if not is_encoder(encoder_state) or not is_decoder(decoder_state):
        raise AntiPureError(f"{NOT_TINY}, encoder and decoder.")
    width, channels = decoder_state["1.weight"].shape[:2]
    made = len(_last(encoder_state))
    if made != channels:
        raise AntiPureError(
            f"The encoder makes {made} latent channels and the decoder takes {channels}; give two of one model."
        )
    pooled = any(".pool." in key for key in encoder_state)
    if pooled and width % _GROUPS:
        raise AntiPureError(f"{NOT_TINY}: {width} channels cannot be normalised in {_GROUPS} groups.")
    with torch.device("meta"):
        network = TinyAutoencoder(channels, width, pooled)
    both = {f"encoder.{key}": value for key, value in encoder_state.items()}
    both |= {f"decoder.{key}": value for key, value in decoder_state.items()}
    fill(network, both)
    return network


def encoder_alone(state: Mapping[str, Tensor]) -> EncoderAlone:
    """The network of an encoder's state dict in the published layout, float32; width and channels are read from it.

    Raises `AntiPureError` for another network, and as `architecture.check_state` does.
    """
    if not is_encoder(state):
        raise AntiPureError(f"{NOT_TINY}: it does not begin with an encoder's first layer.")
    with torch.device("meta"):
        network = EncoderAlone(len(_last(state)), len(state["0.weight"]))
    fill(network, {f"encoder.{key}": value for key, value in state.items()})
    return network


def _last(encoder_state: Mapping[str, Tensor]) -> Tensor:
    """The weight of the encoder's last convolution, whose outputs are the latent's channels."""
    return encoder_state.get(f"{1 + sum(_BLOCKS) + _LEVELS}.weight", torch.empty(0))
