"""Checks of LoRA patches on a MODEL over ComfyUI's own classes; test_model_patches.py runs it in each checkout.

Usage, in a checkout and with its interpreter: python patch_checks.py PACK_FOLDER --cpu
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent))

from model_checks import Reference, error, make, opened, picture  # noqa: E402, I001  (it prepares ComfyUI and the pack)

import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from antipure.methods.errors import AntiPureError  # noqa: E402
from antipure.methods.lora_patching.patch import LoraPatch, apply_patch, patchable_layers
from antipure.methods.architecture import fingerprint  # noqa: E402
from antipure.methods.lora_patching.low_rank import PatchConfig, make_factors, make_gate  # noqa: E402
from antipure.methods.lora_patching.diffusion_training import ModelTrainingConfig, train_model_patch  # noqa: E402
from antipure.methods.lora_patching.save_and_load import load_patch  # noqa: E402
from antipure.nodes import NODE_CLASS_MAPPINGS as NODES  # noqa: E402
from antipure.methods.lora_patching.standard_lora import kohya_name  # noqa: E402
from antipure.nodes import host, outputs  # noqa: E402


def random_patch(network, gate: str) -> LoraPatch:
    config, tensors = PatchConfig(4, 2.0, gate), {}
    generator = torch.Generator().manual_seed(6)

    def randn(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator) / max(like[0].numel(), 1) ** 0.5 if like.ndim > 1 else like

    with torch.inference_mode(False), torch.no_grad():
        for name, layer in patchable_layers(network).items():
            a, b = make_factors(layer, config.rank)
            tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = randn(a.weight), randn(b.weight)
            gates = make_gate(layer, gate)
            if gates is not None:
                for key, value in gates.named_parameters():
                    tensors[f"{name}.lora_gate.{key}"] = randn(value.detach().clone())
    return LoraPatch(config, tensors, fingerprint(network), {"mode": "defensive"})


@torch.inference_mode()
def sampled(patcher, text) -> torch.Tensor:
    latent = torch.zeros(1, 4, 8, 8)
    noise = comfy.sample.prepare_noise(latent, 1)
    return comfy.sample.sample(patcher, noise, 3, 1.0, "euler", "normal", text, text, latent, seed=1)


def apply(patch, strength, model):
    with torch.inference_mode():
        return NODES["AntiPureLoraPatchApply"]().apply(patch, strength, model=model)[1]


def check_core_loader() -> dict:
    """Our weight patch, and the standard LoRA file that our node writes, through ComfyUI's own loader."""
    patcher, _, text = make()
    network = patcher.model.diffusion_model
    result = {}
    for gate in ("scalar", "none"):
        patch = random_patch(network, gate)
        before = sampled(patcher, text)
        ours = sampled(apply(patch, 0.7, patcher), text)
        with tempfile.TemporaryDirectory() as folder:
            saved_path = outputs.saved_path
            outputs.saved_path = lambda name, suffix, to=folder: Path(to) / (name + suffix)
            try:
                with torch.inference_mode():
                    save = NODES["AntiPureSaveLoraPatch"]().save
                    (path,) = save(patch, "lora", "standard LoRA", model=patcher)["result"]
                    (own,) = save(patch, "own", "patch")["result"]
                    lora = comfy.utils.load_torch_file(path, safe_load=True)
                    theirs = comfy.sd.load_lora_for_models(patcher, None, lora, 0.7, 0)[0]
                again = apply(load_patch(own), 0.7, patcher)
            finally:
                outputs.saved_path = saved_path
        result[gate] = {
            "names": sorted({key.split(".")[0] for key in lora}),
            "layers": len(patchable_layers(network)),
            "taken": len(theirs.patches),
            "acts": error(ours, before),
            "core": error(sampled(theirs, text), ours),
            "after_saving": error(sampled(again, text), ours),
            "gone_afterwards": bool(torch.equal(sampled(patcher, text), before)),
        }
    return result


def check_names() -> dict:
    """Every layer's name in a standard LoRA file of ours, as ComfyUI's own key map reads it, for four families."""
    import comfy.ldm.flux.model
    import comfy.ldm.modules.diffusionmodules.mmdit
    import comfy.lora
    import comfy.ops

    operations, result = comfy.ops.disable_weight_init, {}
    flux = {
        "in_channels": 4, "out_channels": 4, "vec_in_dim": 8, "context_in_dim": 8, "hidden_size": 16, "mlp_ratio": 2.0,
        "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [2, 2, 4], "theta": 100, "qkv_bias": True,
        "guidance_embed": True, "patch_size": 2,
    }  # fmt: skip
    if "txt_ids_dims" in comfy.ldm.flux.model.FluxParams.__dataclass_fields__:
        flux["txt_ids_dims"] = []
    embedder = {"target": "torch.nn.Linear", "params": {"in_features": 8, "out_features": 128}}
    mmdit = {"depth": 2, "in_channels": 4, "patch_size": 2, "input_size": 8, "pos_embed_max_size": 8}
    networks = {
        "SD": make()[0].model.diffusion_model,
        "SDXL": make(num_classes="sequential", adm_in_channels=8)[0].model.diffusion_model,
        "Flux": comfy.ldm.flux.model.Flux(**flux, operations=operations, dtype=torch.float32, device="cpu"),
        "SD 3": comfy.ldm.modules.diffusionmodules.mmdit.MMDiT(
            **mmdit, adm_in_channels=8, context_embedder_config=embedder,
            operations=operations, dtype=torch.float32, device="cpu",
        ),
    }  # fmt: skip
    bases = {"Flux": "Flux", "SD 3": "SD3"}
    configs = {"Flux": flux, "SD 3": mmdit}
    for family, network in networks.items():
        if family in bases:
            base = object.__new__(getattr(comfy.model_base, bases[family]))
            torch.nn.Module.__init__(base)
            base.diffusion_model = network
            base.model_config = SimpleNamespace(unet_config=configs[family])
        else:
            base = (make() if family == "SD" else make(num_classes="sequential", adm_in_channels=8))[0].model
        known = host.lora_names(SimpleNamespace(model=base))
        read = comfy.lora.model_lora_keys_unet(base, {})
        names = {layer: kohya_name(layer, known) for layer in patchable_layers(network)}
        result[family] = {
            "layers": len(names),
            "read": sum(read.get(name) == f"diffusion_model.{layer}.weight" for layer, name in names.items()),
            "different": len(set(names.values())),
            "diffusers": sum("down_blocks" in name or "up_blocks" in name for name in names.values()),
            "missed": [name for layer, name in names.items() if read.get(name) != f"diffusion_model.{layer}.weight"],
        }
    return result


def check_gates() -> dict:
    """Every gate against peft's layers around a copy of the network."""
    patcher, vae, text = make()
    x, t = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(4)), torch.tensor([9, 400])
    result = {}
    for gate in ("none", "scalar", "input", "channel"):
        patch = random_patch(patcher.model.diffusion_model, gate)
        denoiser = opened(apply(patch, 0.5, patcher), vae, text)
        with denoiser.session(), torch.no_grad():
            ours = denoiser.predict(x, t)[0]
        plain = opened(patcher, vae, text)
        with plain.session(), torch.no_grad():
            original = plain.predict(x, t)[0]
        with torch.inference_mode(False), torch.no_grad():
            outside = Reference(patcher, vae, text)
            outside.text = outside.text.expand(2, -1, -1)
            apply_patch(outside.unet, patch, 0.5)
            expected = outside.predict(x.double(), t)[0]
        result[gate] = {"acts": error(ours, original), "peft": error(ours, expected)}
    return result


def check_stacking() -> dict:
    """Twice half a patch is the patch; weight patches add up with each other."""
    patcher, _, text = make()
    patch = random_patch(patcher.model.diffusion_model, "scalar")
    once, twice = apply(patch, 1.0, patcher), apply(patch, 0.5, apply(patch, 0.5, patcher))
    return {"error": error(sampled(twice, text), sampled(once, text))}


def check_training() -> dict:
    patcher, vae, text = make()
    network = patcher.model.diffusion_model
    before, modules = sampled(patcher, text), [id(m) for m in network.modules()]
    denoiser = opened(patcher, vae, text)
    pictures = (picture(64, 64) + 1) / 2
    with denoiser.session():
        result = train_model_patch(denoiser, pictures, ModelTrainingConfig(rank=4, steps=40, learning_rate=1e-2))
    losses = [row["total"] for row in result.history]
    stopped = None

    def cancel(*_, **__):
        raise KeyboardInterrupt

    try:
        with denoiser.session():
            train_model_patch(denoiser, pictures, ModelTrainingConfig(rank=4, steps=2), progress=cancel)
    except KeyboardInterrupt:
        stopped = True
    after = sampled(apply(result.patch, 1.0, patcher), text)
    return {
        "first": sum(losses[:5]) / 5,
        "last": sum(losses[-5:]) / 5,
        "acts": error(after, before),
        "stopped": stopped,
        "same_modules": modules == [id(m) for m in network.modules()],
        "unpatched_is_identical": bool(torch.equal(sampled(patcher, text), before)),
    }


def check_refusals() -> dict:
    patcher, _, _ = make()
    other = make(channel_mult=[1, 3])[0]
    patch = random_patch(patcher.model.diffusion_model, "input")
    result = {}
    cases = {
        "architecture": lambda: apply(patch, 1.0, other),
        "adaptive_export": lambda: NODES["AntiPureSaveLoraPatch"]().save(patch, "x", "standard LoRA", model=patcher),
        "nothing": lambda: NODES["AntiPureLoraPatchApply"]().apply(patch, 1.0),
    }
    for name, case in cases.items():
        try:
            case()
            result[name] = "accepted"
        except AntiPureError as problem:
            result[name] = str(problem)
    return result


if __name__ == "__main__":
    checks = {name[6:]: run for name, run in list(globals().items()) if name.startswith("check_")}
    print("RESULT " + json.dumps({name: run() for name, run in checks.items()}))
