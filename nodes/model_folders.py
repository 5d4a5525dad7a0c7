"""Where the pack's models lie: kinds of models, their folders, and the paths behind the names that nodes show.

Inside ComfyUI its model folders; outside of it plain paths.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import NamedTuple

from ..methods.diffusion import checkpoints
from ..methods.errors import AntiPureError
from ..methods.generators import loading
from ..methods.metrics import portrait_judge
from . import host
from .outputs import SAVED_PATCHES

BUNDLED = "bundled"
BUNDLED_PORTRAITS = "bundled_portraits"  # the judge of drawn portraits, in place of a pack that knows photographs
BUNDLED_PAIR = "bundled_pair"  # `bundled` and its sibling together, to protect against


class Kind(NamedTuple):
    """Models of one kind: their folder, the endings of files, what is in a folder that is one, bundled ones by name."""

    folder: str
    suffixes: tuple[str, ...]
    folder_parts: tuple[str, ...] = ()
    bundled: dict[str, Path] = {}


_BUNDLED_DENOISERS = {
    BUNDLED: checkpoints.BUNDLED,
    "bundled_held_out": checkpoints.BUNDLED_HELD_OUT,
    "bundled_judge": checkpoints.BUNDLED_JUDGE,
}
KINDS = {
    "denoisers": Kind("antipure", (".safetensors", ".pt", ".pth"), ("unet", "config.json"), _BUNDLED_DENOISERS),
    "generators": Kind("antipure_generators", (".safetensors", ".ckpt", ".pth", ".pt"), (), {BUNDLED: loading.BUNDLED}),
    "patches": Kind("antipure_patches", (".safetensors", ".pth", ".pt", ".ckpt"), ("adapter_config.json",)),
    "encoders": Kind("antipure_encoders", (".safetensors", ".pth"), ("config.json",)),
    # Packs lie in models/insightface/models.
    "faces": Kind("insightface", (), ("det_*.onnx", "scrfd_*.onnx"), {BUNDLED_PORTRAITS: portrait_judge.BUNDLED}),
}
# What the lists say as long as they are empty, and errors about names that are not in them.
ABSENT = {
    "encoders": "none yet: put one into models/antipure_encoders, or run 'antipure fetch-models alexnet'",
    "faces": "none yet: put a pack into models/insightface, or run 'antipure fetch-models buffalo_l'",
    "patches": "none yet: Save LoRA Patch writes them",
}
_SINGULAR = {"patches": "patch", "faces": "face model"}


def register_model_folders() -> None:
    """Add our folders in models/ to ComfyUI's, keeping what extra_model_paths.yaml says."""
    if not host.inside_comfyui():
        return
    import folder_paths

    for kind in KINDS.values():
        folder_paths.add_model_folder_path(kind.folder, str(models_folder() / kind.folder))
    # As ComfyUI does with LoRAs: what was saved can be loaded.
    saved = Path(folder_paths.get_output_directory()) / SAVED_PATCHES
    folder_paths.add_model_folder_path(KINDS["patches"].folder, str(saved))


def models_folder() -> Path:
    """ComfyUI's models folder; outside of it that of the ComfyUI this pack lies in, else `models` right here."""
    if host.inside_comfyui():
        import folder_paths

        return Path(folder_paths.models_dir)
    pack = Path(__file__).parent.parent
    return pack.parent.parent / "models" if pack.parent.name == "custom_nodes" else Path("models")


def _model_roots(folder: str) -> list[Path]:
    if not host.inside_comfyui():
        return [models_folder() / folder]
    import folder_paths

    return [Path(root) for root in folder_paths.get_folder_paths(folder)]


def _models(kind: Kind) -> dict[str, Path]:
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
    """Names for an input, of a kind in `KINDS` such as "denoisers": the bundled ones first, if there are any."""
    return list(dict.fromkeys([*KINDS[kind].bundled, *_models(KINDS[kind])]))


def find_denoisers(name: str) -> list[Path]:
    """The paths behind the name of a denoiser: two behind `BUNDLED_PAIR`, else one. As `find_model`."""
    names = (BUNDLED, "bundled_held_out") if name == BUNDLED_PAIR else (name,)
    return [find_model("denoisers", one) for one in names]


def find_model(kind: str, name: str) -> Path:
    """The path behind a name of `list_models`.

    Inside ComfyUI only listed names are accepted (workflows come from strangers); the command line takes any path, too.
    """
    if name in KINDS[kind].bundled:
        return KINDS[kind].bundled[name]
    known = _models(KINDS[kind])
    if name in known:
        return known[name]
    if host.inside_comfyui():
        what, folder = _SINGULAR.get(kind, kind.removesuffix("s")), KINDS[kind].folder
        if name == ABSENT.get(kind):
            raise AntiPureError(f"There is no {what} {name}, and refresh.")
        fetched = " ('antipure fetch-models' downloads some)" if kind in ("encoders", "faces") else ""
        raise AntiPureError(f"There is no {what} '{name}' in models/{folder}; put it there{fetched} and refresh.")
    path = Path(name)
    try:
        path.exists()
    except (OSError, ValueError):  # longer than names can be
        raise AntiPureError(f"'{name[:60]}…' is no name of a file; give the path of one.") from None
    return path


def find_vae(name: str) -> Path:
    """Outside ComfyUI: what its Load VAE would load by this name, or any path.

    A file in models/vae, or the encoder, beside its decoder, of a TAESD in models/vae_approx.
    """
    roots = models_folder()
    with suppress(OSError, ValueError):  # longer than names can be
        halves = sorted(roots.glob(f"vae_approx/{escape(name)}_encoder.*"))
        for path in (Path(name), roots / "vae" / name, *halves):
            if path.exists():
                return path
    return Path(name[:200])


def vae_state(name: str) -> str:
    """`model_state` of a VAE by its name, its other half included."""
    path = find_vae(name)
    beside = path.with_name(path.name.replace("_encoder", "_decoder"))
    files = sorted(path.rglob("*")) if path.is_dir() else sorted({path, beside})
    return _digest(files) or name


def model_state(kind: str, name: object) -> str:
    """What IS_CHANGED of a node says that loads this model: another text once any of its files was replaced.

    A folder's own time tells only of files that come and go, so those inside are looked at. What names no model, such
    as a link, gives itself: loading says what is wrong.
    """
    try:
        path = find_model(kind, str(name))
        return _digest(sorted(path.rglob("*")) if path.is_dir() else [path]) or str(name)
    except (AntiPureError, OSError, ValueError):
        return str(name)


def _digest(paths: list[Path]) -> str:
    """Of the files among these: their names, times, sizes and places; "" where there are none."""
    lines = []
    for file in paths:
        if file.is_file():  # follows links, such as those in a Hugging Face cache, to what they stand for
            stat = file.stat()
            lines.append(f"{file}:{stat.st_mtime_ns}:{stat.st_size}:{stat.st_ino}")
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest() if lines else ""
