"""A patch as a LoRA that other programs read: core's loaders, kohya's scripts, diffusers.

Two spellings of the same numbers: a layer's own name behind a prefix, and kohya's `lora_unet_` with underscores, which
is what most programs know. Convolutions are written as LoCon does: `lora_down` with the layer's kernel, `lora_up` 1×1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..architecture import network_of
from ..errors import AntiPureError
from .low_rank import check_mergeable
from .patch import LoraPatch, check_patch, patchable_layers

KOHYA = "lora_unet_"
# diffusers reads SDXL's second embedding from kohya's keys by its original name alone, not by its own.
RENAMED = {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}


def kohya_name(layer: str, known: Mapping[str, str] | None = None) -> str:
    """A layer's name as kohya's scripts write it: "mid_block.resnets.0.conv1" is "lora_unet_mid_block_resnets_0_conv1".

    known: names that are not the layer's own, from the host's key map (a Stable Diffusion network of ComfyUI has other
    names than diffusers', which kohya's files use).
    """
    if known and layer in known:
        return known[layer]
    return KOHYA + RENAMED.get(layer, layer).replace(".", "_")


def standard_lora(
    target: object,
    patch: LoraPatch,
    strength: float = 1.0,
    prefix: str = "",
    name: Callable[[str], str] | None = None,
) -> dict[str, Tensor]:
    """A patch as the LoRA keys other programs read: `{layer}.lora_up.weight`, `.lora_down.weight`, `.alpha`.

    Their loaders add up @ down * alpha / rank; here alpha = rank, and up holds strength * g * s * B. A grouped layer's
    up is block-diagonal, of rank r per group. target: what the patch was made for, for its layers' groups; untouched.
    prefix: before the layers' names. name: instead of it, from a layer's name to the file's (`kohya_name`).
    Raises `AntiPureError` for gates that look at the picture, for transposed convolutions, which the format lacks, and
    where two layers would share a name.
    """
    check_patch(target, patch)
    check_mergeable(patch.config)
    exported: dict[str, Tensor] = {}
    for layer_name, layer in patchable_layers(network_of(target)).items():
        if isinstance(layer, torch.nn.ConvTranspose2d):
            raise AntiPureError(
                f"{layer_name} is a transposed convolution, which standard LoRA files cannot hold; merge the patch "
                "into the weights instead."
            )
        written = prefix + layer_name if name is None else name(layer_name)
        if f"{written}.alpha" in exported:
            raise AntiPureError(f"Two layers would be called {written} in the file; save it as a patch instead.")
        with torch.inference_mode(False):
            a, b = (patch.tensors[f"{layer_name}.lora_{factor}.weight"].float() for factor in "AB")
            logit = patch.tensors.get(f"{layer_name}.lora_gate.logit")
            up = strength * patch.config.scale * (1.0 if logit is None else torch.sigmoid(logit.float())) * b
            groups = getattr(layer, "groups", 1)
            if groups > 1:
                up = torch.block_diag(*up.flatten(1).chunk(groups))[..., None, None]
            exported[f"{written}.lora_up.weight"] = up.clone()
            exported[f"{written}.lora_down.weight"] = a.clone()
            exported[f"{written}.alpha"] = torch.tensor(float(a.shape[0]))
    return exported
