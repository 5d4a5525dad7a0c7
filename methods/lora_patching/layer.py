"""The gated layer, as a peft LoRA layer: peft's own injection puts it where Linear and convolutions were.

Importing this module imports peft (and with it transformers), so `lora_patching` does it only when needed.
"""

from __future__ import annotations

import re
import warnings
from functools import partial
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from ..errors import AntiPureError
from .low_rank import (
    PATCHABLE,
    Gate,
    Patchable,
    PatchConfig,
    channels_of,
    check_mergeable,
    make_factors,
    make_gate,
    product,
)

ADAPTER = "default"


class PatchLayer(nn.Module, LoraLayer):
    """y = W x + strength * g * s * B(A x) around `base_layer`.

    strength: multiplies the update. bypass: True gives the base layer alone.
    """

    base_layer: Patchable
    # Everything that peft moves, trains, saves and deletes with the adapter.
    adapter_layer_names = (*LoraLayer.adapter_layer_names, "lora_gate")

    def __init__(self, base_layer: Patchable, adapter_name: str, *, patch: PatchConfig, **_: object):
        nn.Module.__init__(self)
        with warnings.catch_warnings():  # old versions of peft warn of layers they do not know
            warnings.simplefilter("ignore")
            LoraLayer.__init__(self, base_layer)
        self.in_features, self.out_features = channels_of(base_layer)
        self.lora_gate = nn.ModuleDict()
        self.patch, self.strength, self.bypass = patch, 1.0, False
        self._unmerged: nn.Parameter | Tensor | None = None
        self._active_adapter = adapter_name
        self.update_layer(adapter_name)

    def update_layer(self, adapter_name: str, *_: object, **__: object) -> None:
        base, patch = self.base_layer, self.patch
        self.r[adapter_name], self.lora_alpha[adapter_name] = patch.rank, patch.alpha
        self.scaling[adapter_name] = patch.scale
        self.lora_dropout[adapter_name] = nn.Identity()
        # Half precision trains badly: the update has at least single precision.
        device, dtype = base.weight.device, torch.promote_types(base.weight.dtype, torch.float32)
        a, b = make_factors(base, patch.rank)
        self.lora_A[adapter_name], self.lora_B[adapter_name] = a.to(device, dtype), b.to(device, dtype)
        gate = make_gate(base, patch.gate)
        if gate is not None:
            self.lora_gate[adapter_name] = gate.to(device, dtype)
        self.set_adapter([adapter_name])

    @property
    def factors(self) -> tuple[Patchable, nn.Linear | nn.Conv2d]:
        """A and B."""
        a, b = self.lora_A[ADAPTER], self.lora_B[ADAPTER]
        return cast(Patchable, a), cast("nn.Linear | nn.Conv2d", b)

    @property
    def gate(self) -> Gate | None:
        return cast("Gate | None", next(iter(self.lora_gate.values()), None))

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        y = self.base_layer(x, *args, **kwargs)
        if self.bypass or self.merged or self.disable_adapters or not self.strength:
            return y
        (a, b), gate, scale = self.factors, self.gate, self.strength * self.scaling[ADAPTER]
        rank_outputs = a(x.to(a.weight.dtype), *args, **kwargs)
        if self.patch.mergeable:  # a constant may as well scale the r outputs of A, which are fewer
            return y + b(rank_outputs * (scale if gate is None else scale * gate())).to(y.dtype)
        update = b(rank_outputs)
        assert gate is not None  # what cannot be merged has one
        return y + (scale * gate(update) * update).to(y.dtype)

    def effective_scale(self) -> float | Tensor:
        """strength * g * s, for the gates that do not look at the picture."""
        check_mergeable(self.patch)
        gate = self.gate
        return self.strength * self.scaling[ADAPTER] * (1.0 if gate is None else gate().detach())

    @torch.no_grad()
    def get_delta_weight(self, adapter: str = ADAPTER) -> Tensor:
        """strength * g * s * B A in the shape of the layer's weight."""
        a, b = self.factors
        return self.effective_scale() * product(self.base_layer, a.weight, b.weight)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold the update into the weight. The original parameter is kept aside, not changed."""
        if self.merged:
            return
        original = self.base_layer._parameters.get("weight")
        if original is None:
            raise AntiPureError(
                "A layer computes its weight anew for every picture (weight or spectral normalisation), so nothing can "
                "be merged into it; remove the normalisation first or apply the patch instead."
            )
        with torch.inference_mode(False), torch.no_grad():
            # Summed in the precision of the update, then rounded once.
            merged = (original.to(self.factors[0].weight.dtype) + self.get_delta_weight()).to(original.dtype)
        self._unmerged = original
        self.base_layer.weight = nn.Parameter(merged, requires_grad=False)
        self.merged_adapters.append(ADAPTER)

    def unmerge(self) -> None:
        """Put the original parameter back: the same object, bit for bit."""
        if self.merged:
            self.base_layer.weight = cast(nn.Parameter, self._unmerged)
            self._unmerged = None
            self.merged_adapters.clear()


def lora_config(layers: list[str], patch: PatchConfig) -> LoraConfig:
    """peft's configuration for a patch of the named layers, our layer classes registered in it."""
    alpha: Any = patch.alpha  # peft says int and takes any number
    config = LoraConfig(
        r=patch.rank,
        lora_alpha=alpha,
        use_rslora=True,  # alpha / sqrt(r)
        target_modules=target_pattern(layers),
        bias="none",
    )
    classes: dict[Any, Any] = {kind: partial(PatchLayer, patch=patch) for kind in PATCHABLE}
    config._register_custom_module(classes)
    return config


def target_pattern(layers: list[str]) -> str:
    """A regular expression for exactly these names: peft takes a list's entries for endings of names."""
    return "|".join(re.escape(name) for name in layers)


def inject(network: nn.Module, layers: list[str], patch: PatchConfig) -> dict[str, PatchLayer]:
    """Wrap the named layers in place; the new modules by name. The global random state is left alone."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inject_adapter_in_model(lora_config(layers, patch), network, ADAPTER)
    return {name: cast(PatchLayer, network.get_submodule(name)) for name in layers}
