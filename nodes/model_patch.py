"""A LoRA patch on a ComfyUI MODEL, through its ModelPatcher: the model's own code and modules are never touched."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..methods.errors import AntiPureError
from ..methods.lora_patching.low_rank import Patchable, make_factors, make_gate
from ..methods.lora_patching.patch import LoraPatch, check_patch, patchable_layers
from ..methods.lora_patching.standard_lora import standard_lora
from . import host

PREFIX = "diffusion_model."


def patch_model(model, patch: LoraPatch, strength: float):
    """A copy of the MODEL with the patch on it; both share their weights.

    Gates that do not look at the picture become ordinary weight patches, as core LoRAs are. Others run beside their
    layers, whose `forward` the ModelPatcher replaces while the model is loaded (an object patch; in every version).
    Raises `AntiPureError` for a patch of another architecture.
    """
    network = model.model.diffusion_model
    if patch.config.mergeable:
        lora = standard_lora(network, patch, prefix=PREFIX)
        patched = host.apply_lora(model, lora, strength)
        keys = [key.replace(".lora_up.", ".") for key in lora if key.endswith(".lora_up.weight")]
        taken = sum(len(patched.patches.get(key, ())) > len(model.patches.get(key, ())) for key in keys)
        if taken != len(keys):
            raise AntiPureError(f"The MODEL took {taken} of the patch's {len(keys)} layers; load its own model.")
        return patched
    check_patch(network, patch)
    patched = model.clone()
    for name, layer in patchable_layers(network).items():
        where = f"{PREFIX}{name}.forward"
        patched.add_object_patch(where, _beside(patched.get_model_object(where), layer, name, patch, strength))
    return patched


def _beside(forward: Callable, layer: Patchable, name: str, patch: LoraPatch, strength: float) -> Callable:
    """forward(x) + strength * g * s * B(A x), in the update's own precision."""
    with torch.inference_mode(False), torch.no_grad():
        a, b = make_factors(layer, patch.config.rank)
        gate = make_gate(layer, patch.config.gate)
        assert gate is not None, "a patch without gates is mergeable"
        parts = nn.ModuleDict({"lora_A": a, "lora_B": b, "lora_gate": gate})
        state = {key.removeprefix(f"{name}."): t for key, t in patch.tensors.items() if key.startswith(f"{name}.lora_")}
        parts.load_state_dict({key: value.float().clone() for key, value in state.items()})
        parts.float().requires_grad_(False)
    scale = strength * patch.config.scale

    def run(x: Tensor, *args, **kwargs) -> Tensor:
        y = forward(x, *args, **kwargs)
        parts.to(x.device)
        update = b(a(x.float(), *args, **kwargs))
        return y + (scale * gate(update) * update).to(y.dtype)

    return run
