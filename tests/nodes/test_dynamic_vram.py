"""Weights under dynamic VRAM, held for a while; tests/comfyui/test_pretended_device.py has ComfyUI's own patchers."""

from __future__ import annotations

import pytest
import torch
from antipure.nodes.dynamic_vram import held_bytes, held_weights


class Patcher:
    """What a ModelPatcher with dynamic VRAM does for `held_weights`."""

    load_device = offload_device = torch.device("cpu")

    def __init__(self, model: torch.nn.Module, dynamic: bool = True):
        self.model, self.dynamic, self.patches = model, dynamic, {}
        self.given_up = 0

    def is_dynamic(self) -> bool:
        return self.dynamic

    def partially_unload(self, device, size: float) -> None:
        self.given_up += 1

    def patch_weight_to_device(self, key: str, device, return_weight: bool) -> torch.Tensor:
        assert return_weight
        return self.model.get_parameter(key) + self.patches[key]


def network() -> torch.nn.Module:
    """As ComfyUI 0.33 leaves them: inference tensors in the file's fp16, where it means to compute in others."""
    with torch.inference_mode():
        layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        ).half()
    for name in ("weight", "bias"):
        setattr(layers[0], f"{name}_comfy_model_dtype", torch.bfloat16)
    layers[1].running_mean_comfy_model_dtype = torch.float32
    layers[2].weight_comfy_model_dtype = None
    layers[3].weight = layers[2].weight
    layers[0]._v, layers[0]._v_weight = (object(), 0, 24), torch.zeros(12)
    return layers


def tensors(model: torch.nn.Module) -> dict[str, int]:
    return {name: id(x) for name, x in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())}


def test_weights_are_plain_in_the_precision_they_compute_in_and_return():
    patcher = Patcher(network())
    model, before, paging = patcher.model, tensors(patcher.model), vars(patcher.model[0]).copy()
    expected = model[0].weight.detach().bfloat16()
    with torch.inference_mode(), held_weights(patcher):
        assert {p.dtype for p in model[0].parameters()} == {torch.bfloat16}
        assert torch.equal(model[0].weight, expected)
        assert model[1].running_mean.dtype == torch.float32
        assert model[2].weight.dtype == torch.float16, "nothing is declared"
        assert model[3].weight is model[2].weight, "tied weights stay tied"
        assert not any(p.is_inference() for p in model[0].parameters())
        assert not hasattr(model[0], "_v"), "the layer would page"
        assert held_bytes(patcher) == sum(
            x.nbytes for m in model.modules() for x in (*m._parameters.values(), *m._buffers.values())
        )
    assert tensors(model) == before
    assert vars(model[0]).keys() == paging.keys()
    assert model[0]._v is paging["_v"]
    assert patcher.given_up == 2


def test_a_lora_lies_on_the_held_weight_only():
    patcher = Patcher(network())
    weight = patcher.model[2].weight.detach().clone()
    patcher.patches["2.weight"] = torch.ones(2, 2, dtype=torch.float16)
    with held_weights(patcher):
        assert torch.equal(patcher.model[2].weight, weight + 1)
        assert patcher.model[3].weight is patcher.model[2].weight
    assert torch.equal(patcher.model[2].weight, weight)


def test_nested_blocks_over_one_network_hold_it_once():
    model = network()
    outer, inner = Patcher(model), Patcher(model)
    before = tensors(model)
    with held_weights(outer):
        held = tensors(model)
        with held_weights(inner):
            assert tensors(model) == held
        assert tensors(model) == held
    assert tensors(model) == before
    assert inner.given_up == 0


class Stop(BaseException):
    pass


@pytest.mark.parametrize("when", ["inside", "half way"])
def test_weights_return_however_it_ends(when):
    patcher = Patcher(network())
    before = tensors(patcher.model)
    if when == "half way":
        patcher.patches["2.weight"] = "no tensor"  # fails after the first layers were replaced
    with pytest.raises((Stop, TypeError)), held_weights(patcher):
        raise Stop
    assert tensors(patcher.model) == before
    assert hasattr(patcher.model[0], "_v")
    with held_weights(patcher if when == "inside" else Patcher(network())):
        assert not hasattr(patcher.model[0], "_v") or when == "half way"


def test_patchers_without_dynamic_vram_are_left_alone():
    patcher = Patcher(network(), dynamic=False)
    before = tensors(patcher.model)
    older = type("Older", (), {"model": network()})()
    with held_weights(patcher, older):
        assert tensors(patcher.model) == before
    assert patcher.given_up == 0
