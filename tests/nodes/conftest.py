"""A stand-in for ComfyUI's modules."""

from __future__ import annotations

import sys
import types

import pytest
import torch


class Interrupted(BaseException):
    """As in ComfyUI 0.33: not an Exception."""


@pytest.fixture
def comfyui(monkeypatch, tmp_path):
    """Minimal ComfyUI modules; records what the host was asked for."""
    record = types.SimpleNamespace(bars=[], loaded=[], interrupt=False, interrupted=Interrupted)
    record.folder = tmp_path / "antipure"
    management = types.ModuleType("comfy.model_management")
    management.get_torch_device = lambda: torch.device("cpu")
    management.unet_offload_device = lambda: torch.device("cpu")
    management.load_models_gpu = lambda models, **options: record.loaded.append((models, options))

    def interrupt():
        if record.interrupt:
            raise Interrupted

    management.throw_exception_if_processing_interrupted = interrupt
    management.InterruptProcessingException = Interrupted
    patcher = types.ModuleType("comfy.model_patcher")

    class ModelPatcher:
        def __init__(self, model, load_device, offload_device):
            self.model, self.load_device = model, load_device
            model.device = offload_device  # ComfyUI sets this attribute, too

    patcher.ModelPatcher = ModelPatcher
    utils = types.ModuleType("comfy.utils")

    class ProgressBar:
        def __init__(self, total):
            self.calls = []
            record.bars.append(self)

        def update_absolute(self, value, total, preview):
            self.calls.append((value, total, preview))

    utils.ProgressBar = ProgressBar
    comfy = types.ModuleType("comfy")
    comfy.model_management, comfy.model_patcher, comfy.utils = management, patcher, utils
    folder_paths = types.ModuleType("folder_paths")
    folder_paths.models_dir = str(tmp_path)
    folder_paths.get_output_directory = lambda: str(tmp_path / "output")
    folder_paths.get_folder_paths = lambda name: [str(tmp_path / name)]
    for module in (comfy, management, patcher, utils, folder_paths):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return record
