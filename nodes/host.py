"""The file that talks to ComfyUI (with host_model.py, for its models). Every function works without it, too.

Inside ComfyUI: its device, model folders, progress bar with previews, cancelling and memory accounting.
Outside (command line, tests): the CPU or the visible GPU, plain paths, a tqdm bar on a terminal.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from ..methods.denoiser import DEFAULT_MEMORY_BYTES, Denoiser, PixelDenoiser
from ..methods.ensemble import CombinedDenoiser, members_of
from ..methods.errors import AntiPureError

MODEL_FOLDER = "antipure"
BUNDLED = "bundled"
_CHECKPOINT_SUFFIXES = {".safetensors", ".pt", ".pth"}
_PREVIEW_SECONDS = 0.5


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


def show_text(text: str, node_id: str | None) -> None:
    """Show a text on the node itself while the graph runs, where the host can."""
    if inside_comfyui() and node_id is not None:
        from server import PromptServer

        PromptServer.instance.send_progress_text(text, node_id)


# Models ------------------------------------------------------------------------------------------------------


def register_model_folder() -> None:
    """Add models/antipure to ComfyUI's folders, keeping what extra_model_paths.yaml says."""
    if inside_comfyui():
        import folder_paths

        folder_paths.add_model_folder_path(MODEL_FOLDER, str(Path(folder_paths.models_dir) / MODEL_FOLDER))


def _model_roots() -> list[Path]:
    if not inside_comfyui():
        return []
    import folder_paths

    return [Path(root) for root in folder_paths.get_folder_paths(MODEL_FOLDER)]


def _models() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for root in _model_roots():
        if not root.is_dir():
            continue
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            inside_folder = any(parent.as_posix() in found for parent in Path(name).parents)
            is_folder = path.is_dir() and ((path / "unet").is_dir() or (path / "config.json").is_file())
            is_file = path.is_file() and path.suffix.lower() in _CHECKPOINT_SUFFIXES
            if (is_folder or is_file) and not inside_folder:
                found.setdefault(name, path)
    return found


def list_denoisers() -> list[str]:
    """Names for the denoiser input: the bundled one first, then files and folders in models/antipure."""
    return [BUNDLED, *_models()]


def find_denoiser(name: str) -> Path | None:
    """The path behind a name of `list_denoisers`; None for the bundled one.

    Inside ComfyUI only listed names are accepted (workflows come from strangers); the command line takes any path.
    """
    if name == BUNDLED:
        return None
    known = _models()
    if name in known:
        return known[name]
    if inside_comfyui():
        raise AntiPureError(f"There is no denoiser '{name}' in models/{MODEL_FOLDER}; put it there and refresh.")
    return Path(name)


class _Holder(nn.Module):
    """What ComfyUI's ModelPatcher manages: it sets attributes that diffusers models refuse."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network


def manage(denoiser: PixelDenoiser) -> PixelDenoiser:
    """Let ComfyUI's memory management know the denoiser's weights; elsewhere move them to the device."""
    if not inside_comfyui():
        denoiser.to(device())
        return denoiser
    import comfy.model_management
    import comfy.model_patcher

    denoiser.host_patcher = comfy.model_patcher.ModelPatcher(
        _Holder(denoiser.unet),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    return denoiser


def ready(denoiser: Denoiser | CombinedDenoiser) -> Denoiser | CombinedDenoiser:
    """Bring the denoisers onto their device, wholly, and size their batches for the memory that is free."""
    members = members_of(denoiser)
    own = {member: member.host_patcher for member in members if hasattr(member, "host_patcher")}
    shared = [patcher for member in members for patcher in getattr(member, "shared_patchers", ())]
    if own or shared:
        import comfy.model_management

        if shared:
            # In the prompt's own inference mode, as every core node loads them.
            comfy.model_management.load_models_gpu(
                shared, memory_required=sum(m.memory_required() for m in members if hasattr(m, "memory_required")),
                force_full_load=True,
            )  # fmt: skip
        if own:
            # All in one call: ComfyUI makes room by unloading what is not in it.
            with torch.inference_mode(False):
                comfy.model_management.load_models_gpu([*own.values(), *shared], force_full_load=True)
            for member, patcher in own.items():
                member.to(patcher.load_device)
    for member in members:
        member.max_batch = None
        if member.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(member.device)
            member.memory_bytes = max(DEFAULT_MEMORY_BYTES, free // 2)
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


# Progress ----------------------------------------------------------------------------------------------------


class Progress:
    """A callback for the algorithms: progress bar, preview and cancel. Use as a context manager.

    Called as progress(done, total, picture=None, loss=None), picture 1×3×H×W in 0..1.
    """

    def __init__(self, title: str):
        self.title = title
        self._bar = None
        self._last_preview = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc) -> None:
        if self._bar is not None and not inside_comfyui():
            self._bar.close()

    def __call__(self, done: int, total: int, picture: Tensor | None = None, loss: Tensor | None = None) -> None:
        check_interrupted()
        if inside_comfyui():
            self._update_comfyui(done, total, picture)
        else:
            self._update_console(done, total, loss)

    def _update_comfyui(self, done: int, total: int, picture: Tensor | None) -> None:
        import comfy.utils

        if self._bar is None:
            self._bar = comfy.utils.ProgressBar(total)
        preview = None
        if picture is not None and (done == total or time.monotonic() - self._last_preview > _PREVIEW_SECONDS):
            self._last_preview = time.monotonic()
            preview = ("JPEG", _to_pil(picture), 512)
        self._bar.update_absolute(done, total, preview)

    def _update_console(self, done: int, total: int, loss: Tensor | None) -> None:
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=total, desc=self.title, leave=False, disable=None, dynamic_ncols=True)
        self._bar.update(done - self._bar.n)
        if loss is not None and not self._bar.disable and (done == total or done % 10 == 0):
            self._bar.set_postfix(loss=f"{float(loss):.4f}")


def _to_pil(picture: Tensor):
    from PIL import Image

    array = (picture[0].detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)
