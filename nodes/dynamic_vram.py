"""Gradients under ComfyUI's dynamic VRAM, without a second copy of the weights.

ComfyUI 0.33 pages such weights in as each layer runs, and may page them out before a backward pass reads them. Here
they stand on the device for good while a gradient is taken, and the host's own pages are given up for that time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_ALL = 1e32  # bytes: what ComfyUI itself says for "everything"
# What a layer is paged by, and views of its page. Without them it takes the weights that stand in it.
_PAGING = ("_v", "_v_block", "_v_weight", "_v_bias", "_prefetch")
_HELD = "_antipure_held"


def is_dynamic(patcher) -> bool:
    """Whether a ModelPatcher pages its weights; older versions know none that does."""
    return getattr(patcher, "is_dynamic", lambda: False)()


def give_up_pages(patcher) -> None:
    """Free what a patcher with dynamic VRAM has on the device. The host pages it in again when it next needs it."""
    patcher.partially_unload(patcher.offload_device, _ALL)


def held_bytes(patcher) -> int:
    """What `held_weights` puts on the device for this patcher."""
    return sum(
        tensor.numel() * _dtype(module, name, tensor).itemsize
        for module in patcher.model.modules()
        for table in (module._parameters, module._buffers)
        for name, tensor in table.items()
        if tensor is not None
    )


@contextmanager
def held_weights(*patchers) -> Iterator[None]:
    """Hold the weights of patchers with dynamic VRAM on their device inside the block; others are left alone.

    What stands there are ordinary tensors in the precision that ComfyUI means them to compute in, with the patcher's
    LoRAs on them: what a load without dynamic VRAM makes. They are made one by one, after the host's pages were freed,
    so that the device never holds two copies. The weights as the loader left them (mapped files, mostly) are
    back in place afterwards, however the block is left. Blocks over the same network may stand in each other.
    Quantised weights are not touched: `plain_weights` refuses them.
    """
    with ExitStack() as stack:
        for patcher in patchers:
            if is_dynamic(patcher) and not hasattr(patcher.model, _HELD):
                stack.enter_context(_held(patcher))
        yield


@contextmanager
def _held(patcher) -> Iterator[None]:
    replaced: list[tuple[dict, str, Any]] = []
    give_up_pages(patcher)
    try:
        vars(patcher.model)[_HELD] = True
        with torch.inference_mode(False), torch.no_grad():
            _unpage(patcher.model, replaced)
            _materialise(patcher, replaced)
        yield
    finally:
        vars(patcher.model).pop(_HELD, None)
        try:
            give_up_pages(patcher)  # whatever the host moved meanwhile, taken for the originals
        finally:
            for table, name, original in reversed(replaced):
                table[name] = original


def _unpage(model: nn.Module, replaced: list) -> None:
    for module in model.modules():
        table = vars(module)
        for name in _PAGING:
            if name in table:
                replaced.append((table, name, table.pop(name)))


def _materialise(patcher, replaced: list) -> None:
    made: dict[int, Tensor] = {}  # by the original's id: tied weights stay tied
    for path, module in patcher.model.named_modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in list(table.items()):
                if type(tensor) not in (Tensor, nn.Parameter):
                    continue
                replaced.append((table, name, tensor))
                if id(tensor) not in made:
                    table[name] = _on_device(patcher, module, name, tensor)
                    key = f"{path}.{name}" if path else name
                    if key in patcher.patches:
                        patched = patcher.patch_weight_to_device(key, patcher.load_device, return_weight=True)
                        table[name] = nn.Parameter(patched, requires_grad=False)
                    made[id(tensor)] = table[name]
                table[name] = made[id(tensor)]


def _on_device(patcher, module: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """The tensor on the patcher's device, in the precision that ComfyUI notes on the module if it notes one."""
    dtype = _dtype(module, name, tensor)
    if tensor.is_meta:  # a weight that the file does not have: ComfyUI starts those at zero
        value = torch.zeros(tensor.shape, dtype=dtype, device=patcher.load_device)
    else:
        value = tensor.detach().to(patcher.load_device, dtype)
    return nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value


def _dtype(module: nn.Module, name: str, tensor: Tensor) -> torch.dtype:
    return getattr(module, f"{name}_comfy_model_dtype", None) or tensor.dtype
