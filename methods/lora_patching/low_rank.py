"""The low-rank update of one layer and its gate (LoRA Patching, arXiv 2510.03747): y = W x + g * s * B(A x).

A has the layer's own kernel, stride, padding and dilation and r outputs; B is a 1×1 mix to the layer's outputs;
s = alpha / sqrt(r). In a grouped convolution every group has its own A and B of rank r, so the update keeps the
groups, folds into the grouped weight, and costs as many parameters as for one group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..errors import AntiPureError

# Layers that get an update. Everything else, normalisation layers among it, stays frozen.
PATCHABLE = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
Patchable: TypeAlias = nn.Linear | nn.Conv2d | nn.ConvTranspose2d
INITIALISATIONS = ("identity", "kaiming")
GATES = ("none", "scalar", "input", "channel")
MERGEABLE_GATES = ("none", "scalar")
FIRST_LOGIT = -1.0  # where the paper's p starts: every gate opens at sigmoid(-1) = 0.27


@dataclass(frozen=True)
class PatchConfig:
    """Size and gate of a patch.

    rank: r >= 1. alpha: s = alpha / sqrt(rank), > 0.
    gate: "none" (g = 1), "scalar" (one sigmoid(p) per layer), "input" (a scalar per sample, from the mean of the
        update through a 1×1), "channel" (a map from a 1×1 convolution over the update). The last two depend on the
        picture and cannot be merged into weights.
    Raises `AntiPureError` for anything else.
    """

    rank: int = 8
    alpha: float = 2.0
    gate: str = "scalar"

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise AntiPureError(f"The rank is {self.rank}; it must be a whole number of at least 1.")
        if not (isinstance(self.alpha, (int, float)) and 0 < self.alpha < math.inf):
            raise AntiPureError(f"alpha is {self.alpha}; it must be a number above 0.")
        if self.gate not in GATES:
            raise AntiPureError(f"There is no gate '{self.gate}'; choose one of {', '.join(GATES)}.")

    @property
    def scale(self) -> float:
        """s = alpha / sqrt(r)."""
        return self.alpha / math.sqrt(self.rank)

    @property
    def mergeable(self) -> bool:
        """Whether the patch folds into the weights."""
        return self.gate in MERGEABLE_GATES


def check_mergeable(config: PatchConfig) -> None:
    """Raise `AntiPureError` for gates that look at the picture."""
    if not config.mergeable:
        raise AntiPureError(
            f"A patch with '{config.gate}' gates depends on the picture and cannot be merged into the weights; "
            "apply it instead, or train one with 'scalar' gates."
        )


class ScalarGate(nn.Module):
    """g = sigmoid(p), one learned p for the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(FIRST_LOGIT))

    def forward(self, update: Tensor | None = None) -> Tensor:
        return torch.sigmoid(self.logit)


class InputGate(nn.Module):
    """One g per sample: the sigmoid of a 1×1 over the update's mean (over positions)."""

    def __init__(self, channels: int, convolution: bool):
        super().__init__()
        self.mix, self.convolution = nn.Linear(channels, 1), convolution

    def forward(self, update: Tensor) -> Tensor:
        if self.convolution:
            return torch.sigmoid(self.mix(update.mean((-2, -1))))[..., None, None]
        positions = tuple(range(1, update.ndim - 1))  # of B×...×C: tokens, if there are any
        return torch.sigmoid(self.mix(update.mean(positions, keepdim=True) if positions else update))


class ChannelGate(nn.Module):
    """g for every channel and position: the sigmoid of a 1×1 over the update."""

    def __init__(self, channels: int, convolution: bool):
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1) if convolution else nn.Linear(channels, channels)

    def forward(self, update: Tensor) -> Tensor:
        return torch.sigmoid(self.mix(update))


Gate: TypeAlias = ScalarGate | InputGate | ChannelGate


def make_gate(layer: Patchable, kind: str) -> Gate | None:
    """The gate of a layer (None for "none"); whatever it sees, it opens at sigmoid(-1) before training."""
    if kind == "none":
        return None
    if kind == "scalar":
        return ScalarGate()
    kinds: dict[str, type[InputGate | ChannelGate]] = {"input": InputGate, "channel": ChannelGate}
    gate = kinds[kind](channels_of(layer)[1], not isinstance(layer, nn.Linear))
    nn.init.zeros_(gate.mix.weight)
    assert gate.mix.bias is not None
    nn.init.constant_(gate.mix.bias, FIRST_LOGIT)
    return gate


def channels_of(layer: Patchable) -> tuple[int, int]:
    """Inputs and outputs of a patchable layer."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def make_factors(layer: Patchable, rank: int) -> tuple[Patchable, nn.Linear | nn.Conv2d]:
    """A and B for a layer, B = 0: the patched layer is the layer itself until it is trained."""
    inputs, outputs = channels_of(layer)
    a: Patchable
    b: nn.Linear | nn.Conv2d
    if isinstance(layer, nn.Linear):
        a, b = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)
    else:
        inner, groups = rank * layer.groups, layer.groups
        geometry: dict[str, Any] = {
            "stride": layer.stride,
            "padding": layer.padding,
            "dilation": layer.dilation,
            "groups": groups,
            "bias": False,
            "padding_mode": layer.padding_mode,
        }
        if isinstance(layer, nn.ConvTranspose2d):
            geometry |= {"kernel_size": layer.kernel_size, "output_padding": layer.output_padding}
            a = nn.ConvTranspose2d(inputs, inner, **geometry)
        else:
            geometry |= {"kernel_size": layer.kernel_size}
            a = nn.Conv2d(inputs, inner, **geometry)
        b = nn.Conv2d(inner, outputs, 1, groups=groups, bias=False)
    nn.init.zeros_(b.weight)
    return a, b


@torch.no_grad()
def kaiming(a: Patchable, generator: torch.Generator, thinned: bool = True) -> None:
    """Kaiming-uniform as torch's own layers start: within 1 / sqrt(inputs that one output sums over).

    thinned: of a transposed convolution's taps only those count that reach an output; False counts all of them, as
    the paper's code does.
    """
    inputs, _ = channels_of(a)
    if not isinstance(a, nn.Linear):
        inputs = inputs // a.groups * math.prod(a.kernel_size)
        if thinned and isinstance(a, nn.ConvTranspose2d):  # its stride thins out the taps of an output
            inputs = max(1, inputs // math.prod(a.stride))
    values = torch.rand(a.weight.shape, generator=generator) * 2 - 1
    a.weight.copy_(values / math.sqrt(inputs))


def product(layer: Patchable, a: Tensor, b: Tensor) -> Tensor:
    """The weight of B(A x), in the shape of the layer's weight."""
    if isinstance(layer, nn.Linear):
        return b @ a
    g = layer.groups
    b = b.reshape(g, b.shape[0] // g, -1)  # groups × outputs × rank
    if isinstance(layer, nn.ConvTranspose2d):
        a = a.reshape(g, a.shape[0] // g, a.shape[1], -1)  # groups × inputs × rank × taps
        return torch.einsum("girk,gor->giok", a, b).reshape(layer.weight.shape)
    return (b @ a.reshape(g, b.shape[-1], -1)).reshape(layer.weight.shape)


def added_parameters(layer: Patchable, config: PatchConfig) -> int:
    """How many numbers the patch adds to a layer: A, B and the gate."""
    inputs, outputs = channels_of(layer)
    taps = 1 if isinstance(layer, nn.Linear) else math.prod(layer.kernel_size)
    gate = {"none": 0, "scalar": 1, "input": outputs + 1, "channel": outputs**2 + outputs}[config.gate]
    return config.rank * (inputs * taps + outputs) + gate
