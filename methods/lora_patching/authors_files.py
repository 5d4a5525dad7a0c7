"""Patches as the paper's own code saves them: the whole patched network in one torch checkpoint.

Where a layer was, `{layer}.orig_conv.*` (or `orig_linear`) holds it, beside `{layer}.lora_A`, `{layer}.lora_B` and the
gate: `gate`, or a `gate_conv` / `gate_fc` that looks at the update. Two things differ from ours. Their Linear layers
scale by alpha without the root of the rank: the root goes into B here. And their "input" gate sees one mean over all
channels, ours one for each: its weight is spread evenly. Early versions had the letters A and B exchanged.
The network is rebuilt from the layers it was wrapped around, which tells the patch's architecture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import AntiPureError
from ..generators.loading import generator_from_state
from .low_rank import Patchable, PatchConfig, channels_of, make_factors
from .patch import LoraPatch, patchable_layers

ALPHA = 2.0  # what their training gives `inject_lora`; the file does not say
WRAPPED = (".orig_conv.", ".orig_linear.")
GATES = (".gate", ".gate_conv.weight", ".gate_conv.bias", ".gate_fc.weight", ".gate_fc.bias")


def is_authors_file(state: Mapping[str, Tensor]) -> bool:
    """Whether these names are those of a network patched by the paper's code."""
    return any(key.endswith(".lora_A") for key in state) and any(part in key for key in state for part in WRAPPED)


def authors_patch(state: Mapping[str, Tensor], path: Path) -> LoraPatch:
    """The patch in a state dict of the paper's code, for the generator that it was wrapped around.

    path: where it came from: `_warning` in the name marks their defensive patches. Layers they did not patch (early
    versions left Linear layers out) get an update of 0. Raises `AntiPureError` naming the path for a network that is
    no StarGAN, AttGAN or HiSD, and for layers that contradict each other.
    """
    try:
        generator = generator_from_state(_unwrapped(state))
        layers = patchable_layers(generator.network)
        factors = {name: _factors(state, name, layer) for name, layer in layers.items() if f"{name}.lora_A" in state}
        lost = {key for key in state if key.endswith(".lora_A")} - {f"{name}.lora_A" for name in factors}
        ranks = {b.shape[1] for _, b in factors.values()}
        if lost or len(ranks) != 1:
            what = f"{min(lost)} belongs to no layer" if lost else f"Its layers have the ranks {sorted(ranks)}"
            raise AntiPureError(f"{what}; give a file as their training saved it.")
        config = PatchConfig(ranks.pop(), ALPHA, _gate_of(state))
        tensors: dict[str, Tensor] = {}
        for name, layer in layers.items():
            tensors |= _layer(state, name, layer, factors.get(name), config)
    except AntiPureError as error:
        raise AntiPureError(f"{path} cannot be used as a patch of the paper's code. {error}") from error
    mode = "defensive" if "warning" in path.stem else "evaluation"
    metadata = {"generator": generator.name, "mode": mode, "source": "the paper's code"}
    return LoraPatch(config, tensors, generator.fingerprint, metadata)


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network without its patch."""
    kept = {}
    for key, value in state.items():
        if not key.endswith((".lora_A", ".lora_B", *GATES)):
            for part in WRAPPED:
                key = key.replace(part, ".")
            kept[key] = value
    return kept


def _factors(state: Mapping[str, Tensor], name: str, layer: Patchable) -> tuple[Tensor, Tensor]:
    """A in the shape of our layer's own, and B as outputs × rank; raises `AntiPureError` for other shapes."""
    a, b = state[f"{name}.lora_A"], state.get(f"{name}.lora_B")
    if b is None:
        raise AntiPureError(f"It has no '{name}.lora_B'.")
    if not isinstance(layer, nn.Linear) and a.ndim == 2:
        a, b = b, a
    inputs, outputs = channels_of(layer)
    rank = b.shape[-1]
    with torch.device("meta"):
        expected = make_factors(layer, rank)[0].weight.shape
    if tuple(b.shape) != (outputs, rank) or a.shape != expected:
        raise AntiPureError(
            f"'{name}' has factors of {tuple(a.shape)} and {tuple(b.shape)}, which do not fit its {inputs} inputs and "
            f"{outputs} outputs."
        )
    return a, b


def _gate_of(state: Mapping[str, Tensor]) -> str:
    """Our name of their gates, which are of one kind in a file."""
    if any(key.endswith(".gate") for key in state):
        return "scalar"
    weights = [v for key, v in state.items() if key.endswith((".gate_conv.weight", ".gate_fc.weight"))]
    if not weights:
        return "none"
    return "input" if all(value.shape[0] == 1 for value in weights) else "channel"


def _layer(
    state: Mapping[str, Tensor],
    name: str,
    layer: Patchable,
    factors: tuple[Tensor, Tensor] | None,
    config: PatchConfig,
) -> dict[str, Tensor]:
    """Our tensors of one layer."""
    linear, outputs = isinstance(layer, nn.Linear), channels_of(layer)[1]
    a, b = make_factors(layer, config.rank)
    if factors is not None:
        # Theirs is alpha * B A for Linear layers; ours alpha / sqrt(r) * B A for all.
        root = math.sqrt(config.rank) if linear else 1.0
        with torch.no_grad():
            a.weight.copy_(factors[0])
            b.weight.copy_((root * factors[1]).view_as(b.weight))
    else:
        nn.init.zeros_(a.weight)
        root = 1.0
    found = {"lora_A.weight": a.weight.detach(), "lora_B.weight": b.weight.detach()}
    if config.gate == "scalar":
        found["lora_gate.logit"] = state.get(f"{name}.gate", torch.zeros(())).float().reshape(())
    elif config.gate in ("input", "channel"):
        kind = "gate_fc" if linear else "gate_conv"
        shape = (outputs, outputs) if config.gate == "channel" else (1, 1)
        weight = state.get(f"{name}.{kind}.weight", torch.zeros(shape)).float().reshape(shape)
        bias = state.get(f"{name}.{kind}.bias", torch.zeros(shape[0])).float()
        # The gate looks at the update before it is scaled.
        weight = weight / root
        if config.gate == "input":
            weight = weight.expand(1, outputs) / outputs
        elif not linear:
            weight = weight[..., None, None]
        found |= {"lora_gate.mix.weight": weight.clone(), "lora_gate.mix.bias": bias.clone()}
    return {f"{name}.{key}": value for key, value in found.items()}
