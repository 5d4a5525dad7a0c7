"""The file that talks to ComfyUI, and the only one that imports it.

Inside ComfyUI: its device, model folders, cancelling and memory accounting, and its models. Outside (command line,
tests) what the pack's own models need works too: the CPU or the visible GPU, plain paths.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..methods.checkpoints import BUNDLED_HELD_OUT
from ..methods.denoiser import DEFAULT_MEMORY_BYTES, Denoiser
from ..methods.ensemble import CombinedDenoiser, members_of
from ..methods.errors import AntiPureError

BUNDLED = "bundled"
SAVED_PATCHES = "antipure_patches"


class _Kind(NamedTuple):
    """Models of one kind: their folder, the endings of files, what is in a folder that is one, bundled ones by name.

    A bundled model of None is the one its loader takes by itself.
    """

    folder: str
    suffixes: tuple[str, ...]
    folder_parts: tuple[str, ...] = ()
    bundled: dict[str, Path | None] = {}


_BUNDLED_DENOISERS = {BUNDLED: None, "bundled_held_out": BUNDLED_HELD_OUT}
_KINDS = {
    "denoisers": _Kind("antipure", (".safetensors", ".pt", ".pth"), ("unet", "config.json"), _BUNDLED_DENOISERS),
    "generators": _Kind("antipure_generators", (".safetensors", ".ckpt", ".pth", ".pt"), (), {BUNDLED: None}),
    "patches": _Kind("antipure_patches", (".safetensors",), ("adapter_config.json",)),
    "encoders": _Kind("antipure_encoders", (".safetensors", ".pth"), ("config.json",)),
    "faces": _Kind("insightface", (), ("det_*.onnx", "scrfd_*.onnx")),  # packs lie in models/insightface/models
}
_SINGULAR = {"patches": "patch", "faces": "face model"}
_output_folder = Path("output")
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
    """Show a text on the node itself while the graph runs, where the host can."""
    if inside_comfyui() and node_id is not None:
        from server import PromptServer

        PromptServer.instance.send_progress_text(text, node_id)


# Models ------------------------------------------------------------------------------------------------------


def register_model_folders() -> None:
    """Add our folders in models/ to ComfyUI's, keeping what extra_model_paths.yaml says."""
    if not inside_comfyui():
        return
    import folder_paths

    for kind in _KINDS.values():
        folder_paths.add_model_folder_path(kind.folder, str(models_folder() / kind.folder))
    # As ComfyUI does with LoRAs: what was saved can be loaded.
    saved = Path(folder_paths.get_output_directory()) / SAVED_PATCHES
    folder_paths.add_model_folder_path(_KINDS["patches"].folder, str(saved))


def models_folder() -> Path:
    """ComfyUI's models folder; outside of it that of the ComfyUI this pack lies in, else `models` right here."""
    if inside_comfyui():
        import folder_paths

        return Path(folder_paths.models_dir)
    pack = Path(__file__).parent.parent
    return pack.parent.parent / "models" if pack.parent.name == "custom_nodes" else Path("models")


def _model_roots(folder: str) -> list[Path]:
    if not inside_comfyui():
        return [models_folder() / folder]
    import folder_paths

    return [Path(root) for root in folder_paths.get_folder_paths(folder)]


def _models(kind: _Kind) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for root in _model_roots(kind.folder):
        if not root.is_dir():
            continue
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            inside_folder = any(parent.as_posix() in found for parent in Path(name).parents)
            is_folder = path.is_dir() and any(any(path.glob(part)) for part in kind.folder_parts)
            is_file = path.is_file() and path.suffix.lower() in kind.suffixes
            if (is_folder or is_file) and not inside_folder:
                found.setdefault(name, path)
    return found


def list_models(kind: str) -> list[str]:
    """Names for an input, of a kind in `_KINDS` such as "denoisers": the bundled ones first, if there are any."""
    return list(dict.fromkeys([*_KINDS[kind].bundled, *_models(_KINDS[kind])]))


def find_model(kind: str, name: str) -> Path | None:
    """The path behind a name of `list_models`; None for `BUNDLED`.

    Inside ComfyUI only listed names are accepted (workflows come from strangers); the command line takes any path, too.
    """
    if name in _KINDS[kind].bundled:
        return _KINDS[kind].bundled[name]
    known = _models(_KINDS[kind])
    if name in known:
        return known[name]
    if inside_comfyui():
        what, folder = _SINGULAR.get(kind, kind.removesuffix("s")), _KINDS[kind].folder
        fetched = " ('antipure fetch-models' downloads some)" if kind in ("encoders", "faces") else ""
        raise AntiPureError(f"There is no {what} '{name}' in models/{folder}; put it there{fetched} and refresh.")
    return Path(name)


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Where nodes save for a while outside ComfyUI, which has its own output folder."""
    global _output_folder
    before, _output_folder = _output_folder, folder
    try:
        yield
    finally:
        _output_folder = before


def saved_path(name: str, suffix: str) -> Path:
    """{output folder}/{SAVED_PATCHES}/{name}{suffix}. Raises `AntiPureError` for a name that leaves the folder."""
    root = _output_folder
    if inside_comfyui():
        import folder_paths

        root = Path(folder_paths.get_output_directory())
    root = (root / SAVED_PATCHES).resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root) or not name.strip() or path == root:
        raise AntiPureError(f"The name '{name}' leads out of the output folder; give a plain name.")
    return path.with_name(path.name + suffix)


def new_output_path(prefix: str, suffix: str) -> Path:
    """A path that does not exist yet for something a node saves: `saved_path` with a number."""
    base = saved_path(prefix, "")
    number = 1
    while (path := base.with_name(f"{base.name}_{number:05}{suffix}")).exists():
        number += 1
    return path


class _Holder(nn.Module):
    """What ComfyUI's ModelPatcher manages: it sets attributes that diffusers models refuse."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network


def manage(owner):
    """Let ComfyUI's memory management know the weights of anything with a `network` and a `to`; elsewhere move them."""
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


def ready(denoiser: Denoiser | CombinedDenoiser) -> Denoiser | CombinedDenoiser:
    """Bring the denoisers onto their device, wholly, and size their batches for the memory that is free."""
    members = members_of(denoiser)
    own = {member: member.host_patcher for member in members if hasattr(member, "host_patcher")}
    shared = [patcher for member in members for patcher in getattr(member, "shared_patchers", ())]
    if shared:
        import comfy.model_management

        # In the prompt's own inference mode, as every core node loads them.
        needed = sum(m.memory_required() for m in members if hasattr(m, "memory_required"))
        comfy.model_management.load_models_gpu(shared, memory_required=needed, force_full_load=True)
    if own:
        # All in one call: ComfyUI makes room by unloading what is not in it.
        load_patchers([*own.values(), *shared])
        for member, patcher in own.items():
            move(member, patcher.load_device)
    for member in members:
        member.max_batch = None
        if member.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(member.device)
            member.memory_bytes = max(DEFAULT_MEMORY_BYTES, free // 2)
        elif hasattr(member, "borrowed_bytes"):
            member.memory_bytes = _GUEST_SHARE * member.borrowed_bytes
    return denoiser


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


# What host_model.py needs of ComfyUI ----------------------------------------------------------------------------


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
