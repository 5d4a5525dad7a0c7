"""What a network is, told by its layers, and giving it the weights that fit: what files and generators agree on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .errors import AntiPureError


def network_of(target: object) -> nn.Module:
    """The network of a generator, or the network itself."""
    network = target if isinstance(target, nn.Module) else getattr(target, "network", None)
    if not isinstance(network, nn.Module):
        raise AntiPureError(f"A {type(target).__name__} is no network; give a generator or a torch module.")
    return network


def fingerprint(target: object) -> str:
    """Hex digest of an architecture: its parameters' names and shapes and its layers' geometry, not their values.

    A generator that brings its own `fingerprint` is asked for it.
    """
    own = getattr(target, "fingerprint", None)
    if isinstance(own, str) and not isinstance(target, nn.Module):
        return own
    network = network_of(target)
    lines = [f"{name} {tuple(p.shape)}" for name, p in network.named_parameters()]
    for name, layer in network.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            lines.append(f"{name} {layer.stride} {layer.padding} {layer.dilation} {layer.groups} {layer.padding_mode}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


COUNTERS = ("num_batches_tracked",)  # what a network may have and a state may lack


def check_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise `AntiPureError` naming the first weight that is missing, misshapen, not finite, or has no place.

    network: may be on the meta device, so that what a file describes is checked before memory is taken for it.
    """
    targets = {k: v for k, v in network.state_dict().items() if k.rpartition(".")[2] not in COUNTERS}
    for key, target in targets.items():
        if key not in state:
            raise AntiPureError(f"It is incomplete: it has no '{key}'.")
        if state[key].shape != target.shape:
            raise AntiPureError(
                f"'{key}' has shape {tuple(state[key].shape)}, where the rest of it asks for {tuple(target.shape)}."
            )
        if not torch.isfinite(state[key]).all():
            raise AntiPureError(f"'{key}' holds NaN or infinite weights.")
    extra = next((key for key in state if key not in targets), None)
    if extra is not None:
        raise AntiPureError(f"It has '{extra}', which has no place in the network that the rest of it describes.")


def check_finite(network: nn.Module) -> None:
    """Raise `AntiPureError` naming the first weight of a loaded network that is NaN or infinite."""
    for name, value in network.named_parameters():
        if not torch.isfinite(value).all():
            raise AntiPureError(f"'{name}' holds NaN or infinite weights.")


def fill(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a network that was built on the meta device its weights, as float32. Raises as `check_state` does."""
    check_state(network, state)
    network.load_state_dict({key: value.float() for key, value in state.items()}, strict=False, assign=True)
    for module in network.modules():
        if getattr(module, "num_batches_tracked", None) is not None:
            module.num_batches_tracked = torch.zeros((), dtype=torch.long)
