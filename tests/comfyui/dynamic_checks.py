"""Checks of the precision under dynamic VRAM, on a CPU; test_dynamic_vram.py runs it in each checkout.

Usage, in a checkout and with its interpreter: python dynamic_checks.py PACK_FOLDER CHECKPOINT --cpu
Loads the checkpoint as ComfyUI does without and with dynamic VRAM, there up to the paging, which needs a GPU, and
prints one JSON object, or null for a version that knows no dynamic VRAM.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, ".")
PACK, CHECKPOINT = Path(sys.argv.pop(1)), sys.argv.pop(1)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_patcher  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402

spec = importlib.util.spec_from_file_location("antipure", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
antipure = importlib.util.module_from_spec(spec)
sys.modules["antipure"] = antipure
spec.loader.exec_module(antipure)

from antipure.nodes import host  # noqa: E402
from antipure.nodes.latent_denoiser import ModelDenoiser  # noqa: E402

logging.disable(logging.WARNING)
torch.set_num_threads(1)


class Dynamic(comfy.model_patcher.ModelPatcher):
    """What ModelPatcherDynamic says of itself; on a CPU ComfyUI puts the plain one in its place."""

    def is_dynamic(self) -> bool:
        return True

    def partially_unload(self, *_) -> int:
        return 0


@torch.inference_mode()
def load():
    model, _, vae, _ = comfy.sd.load_checkpoint_guess_config(CHECKPOINT, output_clip=False)
    return model, vae


@torch.inference_mode()
def gradient(model, vae) -> tuple[list[dict[str, str]], torch.Tensor]:
    """What both networks compute in, and a gradient."""
    text = [[torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(1)), {}]]
    denoiser = ModelDenoiser(model, vae, text)
    host.ready(denoiser)
    with denoiser.session():
        used = [dtypes(model.model), dtypes(vae.first_stage_model)]
        pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)).requires_grad_()
        denoiser.batching.size(64, 64, 1)
        z = denoiser.encode(pixels)
        z = z + denoiser.predict(z, torch.tensor([300]))[0]
        (denoiser.decode(z / 10).mean() + z.square().mean()).backward()
    return used, pixels.grad.double()


def dtypes(network: torch.nn.Module) -> dict[str, str]:
    return {name: str(tensor.dtype) for name, tensor in network.state_dict().items()}


def check() -> dict:
    plain, expected = gradient(*load())
    comfy.model_patcher.CoreModelPatcher = Dynamic
    comfy.memory_management.aimdo_enabled = True
    comfy.utils.load_safetensors = lambda path: (safetensors.torch.load_file(path), {})  # aimdo's reader needs a GPU
    model, vae = load()
    before = [dtypes(model.model), dtypes(vae.first_stage_model)]
    mine, found = gradient(model, vae)
    return {
        "dynamic": model.is_dynamic() and vae.patcher.is_dynamic(),
        "kept as in the file": all("torch.float16" in kinds.values() for kinds in before),
        "same dtypes": plain == mine,
        "dtypes": [sorted(set(kinds.values())) for kinds in mine],
        "the host's return": before == [dtypes(model.model), dtypes(vae.first_stage_model)],
        "error": float((found - expected).norm() / expected.norm()),
    }


if __name__ == "__main__":
    print("RESULT " + json.dumps(check() if hasattr(comfy.model_patcher, "ModelPatcherDynamic") else None))
