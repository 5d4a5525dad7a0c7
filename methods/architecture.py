"""What a network is, told by its layers: the part that files and generators agree on."""

from __future__ import annotations

import hashlib

from torch import nn

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
