"""What talks to a running ComfyUI: its device, cancelling, progress, memory accounting, and its models.

Only this file, model_folders.py and outputs.py import ComfyUI, and only where they need it. Outside of it (command
line, tests) what the pack's own models need works too, on the CPU or the visible GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..methods.attacks.ensemble import CombinedDenoiser, Target, VaeTargets, members_of
from ..methods.diffusion.batching import DEFAULT_MEMORY_BYTES, Sessions
from ..methods.diffusion.denoiser import Denoiser
from ..methods.errors import AntiPureError
from ..methods.gradients.reproducible import is_reproducible
from ..methods.purification.upscaling import Upscaler
from .dynamic_vram import give_up_pages, held_bytes, is_dynamic

# On the CPU, where the host accounts for no memory: what activations may take of a borrowed model's size. Passing
# results and gaps come on top; together they stay below a twentieth for pictures of 128 px.
_GUEST_SHARE = 1 / 40


def inside_comfyui() -> bool:
    """Whether ComfyUI runs in this process (it has imported its model management before any pack)."""
    return "comfy.model_management" in sys.modules and "folder_paths" in sys.modules


def device() -> torch.device:
    """The device networks run on."""
    if inside_comfyui():
        import comfy.model_management

        return comfy.model_management.get_torch_device()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_interrupted() -> None:
    """Raise ComfyUI's interrupt exception when the user pressed cancel."""
    if inside_comfyui():
        import comfy.model_management

        comfy.model_management.throw_exception_if_processing_interrupted()


def interruption() -> type[BaseException]:
    """What `check_interrupted` raises; an `Exception` in some versions."""
    import comfy.model_management

    return comfy.model_management.InterruptProcessingException


def progress_bar(total: int):
    """ComfyUI's progress bar of the node that runs."""
    import comfy.utils

    return comfy.utils.ProgressBar(total)


def show_text(text: str, node_id: str | None) -> None:
    """Show a text on the node itself while the graph runs, where the host can: to the client that asked for the run.

    To nobody where none asked: the host would tell all of them, and a node of that number would show it in any graph.
    """
    if inside_comfyui() and node_id is not None:
        from server import PromptServer

        client = PromptServer.instance.client_id
        if client is not None:
            PromptServer.instance.send_progress_text(text, node_id, client)


# Models ------------------------------------------------------------------------------------------------------


class _Holder(nn.Module):
    """What ComfyUI's ModelPatcher manages: it sets attributes that diffusers models refuse."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network


def manage(owner):
    """Let ComfyUI's memory management know the weights of anything with a `network` and a `to`; elsewhere move them."""
    if isinstance(owner, Sessions):
        owner.allowance = memory_allowance
    if not inside_comfyui():
        move(owner, device())
        return owner
    import comfy.model_management
    import comfy.model_patcher

    owner.host_patcher = comfy.model_patcher.ModelPatcher(
        _Holder(owner.network),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    return owner


def ready_network(owner) -> None:
    """Bring what `manage` took on onto its device, wholly."""
    load_patchers([owner.host_patcher] if hasattr(owner, "host_patcher") else [])
    if hasattr(owner, "host_patcher"):
        move(owner, owner.host_patcher.load_device)


def move(owner, device: torch.device) -> None:
    """Outside the prompt's inference mode: what is moved in it can take no part in a backward pass."""
    with torch.inference_mode(False), torch.no_grad():
        owner.to(device)


def load_patchers(patchers: list) -> None:
    """Let ComfyUI bring models onto their devices, wholly; nothing to do elsewhere."""
    if patchers:
        import comfy.model_management

        with torch.inference_mode(False):
            comfy.model_management.load_models_gpu(patchers, force_full_load=True)


def ready(*models: Sessions | Target | Upscaler) -> None:
    """Bring targets, autoencoders and upscale models onto their device, wholly.

    Those that work together come in one call: ComfyUI makes room by unloading what is not in it. How they batch is
    their sessions' business.
    """
    members = list(_singles(models))
    own: dict[Any, Any] = {member: member.host_patcher for member in members if hasattr(member, "host_patcher")}
    shared = [patcher for member in members for patcher in getattr(member, "shared_patchers", ())]
    if shared:
        import comfy.model_management

        _check_versions(shared)
        # In the prompt's own inference mode, as every core node loads them.
        needed = sum(m.memory_required() for m in members if hasattr(m, "memory_required"))
        comfy.model_management.load_models_gpu(shared, memory_required=needed, force_full_load=True)
        _make_room([patcher for patcher in shared if is_dynamic(patcher)], needed)
    if own:
        load_patchers([*own.values(), *shared])
        for member, patcher in own.items():
            move(member, patcher.load_device)


def networks_of(*models: Sessions | Target | Upscaler | None) -> list[nn.Module]:
    """The networks that run when these are asked, borrowed ones included, each once; none of those compiled."""
    found: dict[int, nn.Module] = {}
    for model in _singles(model for model in models if model is not None):
        if getattr(model, "compiled", False):
            continue
        shared = [patcher.model for patcher in getattr(model, "shared_patchers", ())]
        own = [vars(model)[name] for name in ("unet", "network") if isinstance(vars(model).get(name), nn.Module)]
        found |= {id(network): network for network in shared or own}
    return list(found.values())


def _singles(models: Iterable[Sessions | Target | Upscaler]) -> Iterator[Any]:
    """Every denoiser, VAE and upscale model behind these."""
    for model in models:
        members = members_of(model) if isinstance(model, (Denoiser, VaeTargets, CombinedDenoiser)) else [model]
        for member in members:
            yield from member.autoencoders if isinstance(member, VaeTargets) else (member,)


def _check_versions(patchers: list) -> None:
    """Raise `AntiPureError` where one network would have to be two at once."""
    versions: dict[int, tuple] = {}
    for patcher in patchers:
        objects = {name: id(value) for name, value in getattr(patcher, "object_patches", {}).items()}
        version = getattr(patcher, "patches_uuid", None), objects
        if versions.setdefault(id(patcher.model), version) != version:
            raise AntiPureError(
                "Two denoisers here are one MODEL with different LoRAs or patches, and ComfyUI holds one of them at a "
                "time; use one of the two, or a checkpoint file of its own for the other."
            )


def _make_room(dynamic: list, needed: float) -> None:
    """Free the device for the weights that `held_weights` will put there: ComfyUI makes room for paged ones as it goes.

    needed: bytes to keep free beside them.
    """
    import comfy.model_management

    for patcher in dynamic:
        give_up_pages(patcher)
    keep = [comfy.model_management.LoadedModel(patcher) for patcher in dynamic]
    for device in {patcher.load_device for patcher in dynamic} - {torch.device("cpu")}:
        sizes = {id(patcher.model): held_bytes(patcher) for patcher in dynamic if patcher.load_device == device}
        comfy.model_management.free_memory(sum(sizes.values()) + needed, device, keep_loaded=keep)


def memory_allowance(denoiser: Sessions) -> float:
    """Bytes that a session of what is `ready` may take for activations: half of what a GPU has free.

    A quarter of all it has where plans must not follow what is free (`reproducible`).
    """
    if is_reproducible() and denoiser.device.type != "cpu":
        return max(DEFAULT_MEMORY_BYTES, total_memory(denoiser.device) // 4)
    dynamic = next(filter(is_dynamic, getattr(denoiser, "shared_patchers", ())), None)
    if dynamic is not None and denoiser.device.type != "cpu":
        # Pages of other models are given up as memory is asked for: only the host can count them.
        return max(DEFAULT_MEMORY_BYTES, dynamic.get_free_memory(denoiser.device) // 2)
    if denoiser.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(denoiser.device)
        # What torch keeps for itself is free, too.
        kept = torch.cuda.memory_reserved(denoiser.device) - torch.cuda.memory_allocated(denoiser.device)
        return max(DEFAULT_MEMORY_BYTES, (free + kept) // 2)
    if denoiser.device.type != "cpu" and inside_comfyui():
        import comfy.model_management

        return max(DEFAULT_MEMORY_BYTES, comfy.model_management.get_free_memory(denoiser.device) // 2)
    borrowed = getattr(denoiser, "borrowed_bytes", None)
    return denoiser.memory_bytes if borrowed is None else _GUEST_SHARE * borrowed


def total_memory(device: torch.device) -> int:
    """Bytes of a GPU's memory, used or not; 0 where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    if not inside_comfyui():
        return 0
    import comfy.model_management

    return comfy.model_management.get_total_memory(device)


def diffusion_model(read: Callable[[], dict[str, Tensor]]):
    """ComfyUI's MODEL from a state dict, by core's own detection. read: gives it, also when core loads it once more."""
    import comfy.sd

    def load(disable_dynamic: bool = False):
        options = {"disable_dynamic": True} if disable_dynamic else {}
        model = comfy.sd.load_diffusion_model_state_dict(read(), **options)
        if model is None:
            raise AntiPureError("This version of ComfyUI does not know the layout of the model; update ComfyUI.")
        model.cached_patcher_init = (load, ())  # where core copies a model to train it, it loads it anew (0.33 on)
        return model

    return load()


def vae(read: Callable[[], dict[str, Tensor]]):
    """ComfyUI's VAE from a state dict. read: as in `diffusion_model`."""
    import comfy.sd

    def load(disable_dynamic: bool = False):
        return patched(comfy.sd.VAE(sd=read())).patcher

    def patched(loaded):
        loaded.patcher.cached_patcher_init = (load, ())
        return loaded

    return patched(comfy.sd.VAE(sd=read()))


def is_file_name(text: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a text is the name of a file with one of these endings, rather than a text."""
    return len(text.strip().splitlines()) == 1 and text.strip().lower().endswith(suffixes)


def input_file(name: str) -> Path:
    """A file in ComfyUI's input folder, and nowhere else; outside of ComfyUI any path."""
    if not inside_comfyui():
        return Path(name)
    import folder_paths

    folder = Path(folder_paths.get_input_directory()).resolve()
    path = (folder / name).resolve()
    if folder not in path.parents:
        raise AntiPureError(f"{name} is not in the input folder; put the file there and give its name alone.")
    return path


def seed_clones(model, seed: int):
    """A clone of ComfyUI's MODEL that seeds torch's global random numbers whenever it is cloned itself."""
    from comfy.patcher_extension import CallbacksMP

    seeded = model.clone()
    seeded.add_callback_with_key(CallbacksMP.ON_CLONE, "antipure_seed", lambda *_: torch.manual_seed(seed))
    return seeded


def apply_lora(model, lora: dict[str, Tensor], strength: float):
    """ComfyUI's MODEL with a LoRA on it; the one given stays as it is."""
    import comfy.sd

    return comfy.sd.load_lora_for_models(model, None, lora, strength, 0)[0]


def lora_names(model) -> dict[str, str]:
    """Kohya's names of a MODEL's layers where they are not the layers' own: Stable Diffusion's are diffusers' names.

    From ComfyUI's own key map; empty outside of it. The embeddings keep their own names, which kohya's scripts use for
    SDXL and all loaders know.
    """
    if "comfy.lora" not in sys.modules:  # whoever made a MODEL has imported it
        return {}
    import comfy.lora

    found = {}
    for name, key in comfy.lora.model_lora_keys_unet(model.model, {}).items():
        if name.startswith("lora_unet_") and isinstance(key, str):
            layer = key.removeprefix("diffusion_model.").removesuffix(".weight")
            own = "lora_unet_" + layer.replace(".", "_")
            if name != own and not layer.startswith(("time_embed.", "label_emb.")):
                found[layer] = name
    return found


# What latent_denoiser.py needs of ComfyUI ----------------------------------------------------------------------------


def sampling_kinds():
    """The module whose classes say what a model's sampling is."""
    import comfy.model_sampling

    return comfy.model_sampling


def latent_format(name: str):
    """ComfyUI's description of a family's latents, by its class's name."""
    import comfy.latent_formats

    return getattr(comfy.latent_formats, name)()


def encode_conditions(model, conditioning: list, latent: Tensor) -> list[dict]:
    """A CONDITIONING as a loaded model takes it at the latent's size, made by the model's own code."""
    import comfy.sampler_helpers
    import comfy.samplers

    return comfy.samplers.encode_model_conds(
        model.extra_conds,
        comfy.sampler_helpers.convert_cond(conditioning),
        latent,
        latent.device,
        "positive",
        latent_image=latent,
    )


def denoised(model, conditions: list[dict], x: Tensor, sigma: Tensor, options: dict) -> Tensor:
    """A loaded model's denoised latent, through torch's own attention: sage and flash attention have no backward."""
    import comfy.samplers
    from comfy.ldm.modules.attention import attention_pytorch

    attention = {"optimized_attention_override": lambda function, *args, **kwargs: attention_pytorch(*args, **kwargs)}
    options = {**options, "transformer_options": {**options.get("transformer_options", {}), **attention}}
    return comfy.samplers.calc_cond_batch(model, [conditions], x, sigma, options)[0]
