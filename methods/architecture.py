"""What a network is, told by its layers, and giving it the weights that fit: what files and generators agree on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

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


def weights_digest(target: object) -> str:
    """Hex digest of a network's weights and buffers, by name and value: of two networks, whether they are the same one.

    Of the values in float32, so that neither device nor a wider precision changes it.
    """
    found = hashlib.sha256()
    for name, value in sorted(network_of(target).state_dict().items()):
        found.update(f"{name} {tuple(value.shape)}".encode())
        found.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


MOST_LAYERS = 1000
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


def check_layers(config: object, folder: Path) -> None:
    """Raise `AntiPureError` for a configuration of absurdly many layers: each costs memory even without weights."""
    for key, value in config.items() if isinstance(config, dict) else ():
        check_layers(value, folder)
        counts = value if isinstance(value, list) else [value]
        if ("layer" in key or "depth" in key) and any(isinstance(n, int) and n > MOST_LAYERS for n in counts):
            raise AntiPureError(f"{folder} asks for more than {MOST_LAYERS} layers ({key}); download the model again.")


def check_size(described: nn.Module, files: Iterable[Path]) -> None:
    """Raise `AntiPureError` where a network, built on the meta device, has far more weights than its files can hold.

    A byte for each is the least; twice, since a file may lack parts, such as the encoder's pooler in a classifier's.
    """
    size = sum(value.numel() for value in described.parameters())
    if size > 2 * sum(file.stat().st_size for file in files):
        raise AntiPureError(f"its configuration asks for {size} weights, far more than its files can hold")


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
