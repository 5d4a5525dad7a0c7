"""ComfyUI 0.33 on the pretended device (tests/pretended), with its dynamic VRAM over a stand-in for comfy-aimdo.

The loaders, ModelPatcherDynamic and the layers are ComfyUI's own. Here is only what needs a GPU's driver: the pages.
Whoever reads what has been paged out fails.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "pretended"))

import device  # noqa: E402

COUNTERS = device.load()
DEVICE = torch.device(device.NAME, 0)


class Pages:
    """What comfy_aimdo.model_vbar.ModelVBAR does: pages of a model, each of which is on the device or not.

    room: how many bytes of all pages together may be on the device; more is paged out, the oldest first.
    """

    room = float("inf")
    _all: list[Pages] = []

    def __init__(self, size: int, index: int):
        self.next, self.serial = 0, 0
        self.tensors: dict[int, torch.Tensor] = {}
        self.signatures: dict[int, int] = {}
        Pages._all.append(self)

    def prioritize(self) -> None:
        pass

    def alloc(self, size: int) -> tuple[Pages, int, int]:
        address, self.next = self.next, self.next + size
        return self, address, size

    def fault(self, address: int, size: int) -> tuple[int]:
        if address not in self.tensors:
            while sum(pages.loaded_size() for pages in Pages._all) + size > Pages.room:
                oldest = next((pages for pages in Pages._all if pages.tensors), None)
                if oldest is None:
                    break
                oldest.free_memory(1)
            self.serial += 1
            self.signatures[address] = self.serial
            self.tensors[address] = torch.empty(size, dtype=torch.uint8, device=DEVICE)
        return (self.signatures[address],)

    def free_memory(self, size: float) -> int:
        freed = 0
        while self.tensors and freed < size:
            page = self.tensors.pop(next(iter(self.tensors)))
            freed += page.numel()
            page.untyped_storage().resize_(0)  # views of it may go on
        return freed

    def loaded_size(self) -> int:
        return sum(page.numel() for page in self.tensors.values())


class NoBuffer:
    """What comfy_aimdo.host_buffer.HostBuffer is while nothing is pinned."""

    size = 0

    def __init__(self, *_):
        pass


def install() -> None:
    """Let ComfyUI run on the pretended device."""
    import comfy.model_management

    management = comfy.model_management
    management.get_torch_device = lambda: DEVICE
    management.get_free_memory = lambda device=None, torch_free_too=False: (8e9, 8e9) if torch_free_too else 8e9
    management.get_total_memory = lambda device=None, torch_total_too=False: (8e9, 8e9) if torch_total_too else 8e9
    management.args.disable_pinned_memory = True


def page(on: bool) -> None:
    """Whether what is loaded from now on is paged; for versions with dynamic VRAM."""
    import comfy.memory_management
    import comfy.model_patcher
    import comfy.utils
    import comfy_aimdo.host_buffer
    import comfy_aimdo.model_vbar
    import comfy_aimdo.torch
    import safetensors.torch

    comfy_aimdo.host_buffer.HostBuffer = NoBuffer
    vbar = comfy_aimdo.model_vbar
    vbar.ModelVBAR = Pages
    vbar.vbar_fault = lambda page: page[0].fault(*page[1:])
    vbar.vbar_unpin = lambda page: None
    vbar.vbar_signature_compare = lambda a, b: a is not None and a == b
    comfy_aimdo.torch.aimdo_to_tensor = lambda page, device: page[0].tensors[page[1]]
    # aimdo's reader needs a GPU
    comfy.utils.load_safetensors = lambda path: (safetensors.torch.load_file(path), {})
    patcher = comfy.model_patcher
    patcher.CoreModelPatcher = patcher.ModelPatcherDynamic if on else patcher.ModelPatcher
    comfy.memory_management.aimdo_enabled = on


def memory() -> SimpleNamespace:
    """Bytes on the device now, and the most since the last call."""
    found = SimpleNamespace(now=COUNTERS.pretended_held(), most=COUNTERS.pretended_most())
    COUNTERS.pretended_forget_most()
    return found
