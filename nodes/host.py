"""The file that talks to ComfyUI (with host_model.py, for its models). Every function works without it, too.

Inside ComfyUI: its device, model folders, progress bar with previews, cancelling and memory accounting.
Outside (command line, tests): the CPU or the visible GPU, plain paths, a tqdm bar on a terminal.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..methods.denoiser import DEFAULT_MEMORY_BYTES, Denoiser, PixelDenoiser
from ..methods.ensemble import CombinedDenoiser, members_of
from ..methods.errors import AntiPureError

BUNDLED = "bundled"
SAVED_PATCHES = "antipure_patches"


class _Kind(NamedTuple):
    """Models of one kind: their folder, the endings of files, what is in a folder that is one, a bundled one."""

    folder: str
    suffixes: tuple[str, ...]
    folder_parts: tuple[str, ...] = ()
    bundled: bool = False


_KINDS = {
    "denoisers": _Kind("antipure", (".safetensors", ".pt", ".pth"), ("unet", "config.json"), True),
    "generators": _Kind("antipure_generators", (".safetensors", ".ckpt", ".pth", ".pt"), (), True),
    "patches": _Kind("antipure_patches", (".safetensors",), ("adapter_config.json",)),
    "encoders": _Kind("antipure_encoders", (".safetensors", ".pth"), ("config.json",)),
    "faces": _Kind("insightface", (), ("det_*.onnx", "scrfd_*.onnx")),  # packs lie in models/insightface/models
}
_SINGULAR = {"patches": "patch", "faces": "face model"}
_output_folder = Path("output")
_PREVIEW_SECONDS = 0.5
_TEXT_SECONDS = 1.0
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
        folder_paths.add_model_folder_path(kind.folder, str(Path(folder_paths.models_dir) / kind.folder))
    # As ComfyUI does with LoRAs: what was saved can be loaded.
    saved = Path(folder_paths.get_output_directory()) / SAVED_PATCHES
    folder_paths.add_model_folder_path(_KINDS["patches"].folder, str(saved))


def _model_roots(folder: str) -> list[Path]:
    if not inside_comfyui():
        return []
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
    """Names for an input, of a kind in `_KINDS` such as "denoisers": the bundled one first, if there is any."""
    return [*([BUNDLED] if _KINDS[kind].bundled else []), *_models(_KINDS[kind])]


def find_model(kind: str, name: str) -> Path | None:
    """The path behind a name of `list_models`; None for the bundled one.

    Inside ComfyUI only listed names are accepted (workflows come from strangers); the command line takes any path.
    """
    if name == BUNDLED and _KINDS[kind].bundled:
        return None
    known = _models(_KINDS[kind])
    if name in known:
        return known[name]
    if inside_comfyui():
        what, folder = _SINGULAR.get(kind, kind.removesuffix("s")), _KINDS[kind].folder
        raise AntiPureError(f"There is no {what} '{name}' in models/{folder}; put it there and refresh.")
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


def manage(denoiser: PixelDenoiser) -> PixelDenoiser:
    """Let ComfyUI's memory management know the denoiser's weights; elsewhere move them to the device."""
    return _manage(denoiser, denoiser.unet)


def manage_network(owner):
    """The same for anything with a `network` and a `to` (generators)."""
    return _manage(owner, owner.network)


def _manage(owner, network: nn.Module):
    if not inside_comfyui():
        owner.to(device())
        return owner
    import comfy.model_management
    import comfy.model_patcher

    owner.host_patcher = comfy.model_patcher.ModelPatcher(
        _Holder(network),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    return owner


def ready_network(owner) -> None:
    """Bring what `manage_network` took on onto its device, wholly."""
    load_patchers([owner.host_patcher] if hasattr(owner, "host_patcher") else [])
    if hasattr(owner, "host_patcher"):
        owner.to(owner.host_patcher.load_device)


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


# Progress ----------------------------------------------------------------------------------------------------


class Progress:
    """A callback for the algorithms: progress bar, preview and cancel. Use as a context manager.

    Called as progress(done, total, picture=None, loss=None), picture 1×3×H×W in 0..1.
    node_id: the node that shows loss and remaining time as text; None shows none.
    """

    def __init__(self, title: str, node_id: str | None = None):
        self.title = title
        self.node_id = node_id
        self._bar = None
        self._last_preview = self._last_text = 0.0
        self._began: tuple[float, int] | None = None  # when the first call came, and with how much done

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc) -> None:
        if self._bar is not None and not inside_comfyui():
            self._bar.close()

    def __call__(self, done: int, total: int, picture: Tensor | None = None, loss: Tensor | None = None) -> None:
        check_interrupted()
        if inside_comfyui():
            self._update_comfyui(done, total, picture)
            self._update_text(done, total, loss)
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

    def _update_text(self, done: int, total: int, loss: Tensor | None) -> None:
        now = time.monotonic()
        if self._began is None:
            self._began = now, done
        elif done < total and now - self._last_text > _TEXT_SECONDS:
            self._last_text = now
            began, first = self._began
            lines = (
                [f"step {done} of {total}"] if loss is None else [f"step {done} of {total}", f"loss {float(loss):.4f}"]
            )
            lines.append(f"{duration((now - began) / (done - first) * (total - done))} left" if done > first else "")
            show_text("\n".join(filter(None, lines)), self.node_id)

    def _update_console(self, done: int, total: int, loss: Tensor | None) -> None:
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=total, desc=self.title, leave=False, disable=None, dynamic_ncols=True)
        self._bar.update(done - self._bar.n)
        if loss is not None and not self._bar.disable and (done == total or done % 10 == 0):
            self._bar.set_postfix(loss=f"{float(loss):.4f}")


def duration(seconds: float) -> str:
    """A duration in words: '45 s', '3 min', '2 h 5 min'."""
    if seconds < 60:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _to_pil(picture: Tensor):
    from PIL import Image

    array = (picture[0].detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)
