"""Where nodes save, and pictures: below ComfyUI's output folder, or below the command line's."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..methods.errors import AntiPureError
from ..methods.file_names import legal_path
from ..methods.files import without_clashes, write_new
from . import host

SAVED_PATCHES = "antipure_patches"
_output_folder = Path("output")


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
    """{output folder}/{SAVED_PATCHES}/{name}{suffix}, with names that are legal everywhere.

    Raises `AntiPureError` for a name that leaves the folder.
    """
    path = legal_path(_root() / SAVED_PATCHES, name, suffix)
    if path is None:
        raise AntiPureError(f"The name '{name}' leads out of the output folder; give a plain name.")
    return path


def save_new(prefix: str, suffix: str, content: bytes) -> Path:
    """Save what a node made under `saved_path` with the first number that is free; that path."""
    paths = (saved_path(prefix, f"_{number:05}{suffix}") for number in count(1))
    return write_new(without_clashes(paths), content)


def save_pictures(images: Tensor, prefix: str, texts: dict[str, str]) -> list[Any]:
    """Save an IMAGE batch as PNGs, {output folder}/{prefix}_00001_.png and on, as core's Save Image numbers them.

    texts: by keyword, saved with each picture unless ComfyUI was told to save none. Returns what a node shows as
    "images" inside ComfyUI, and the paths elsewhere. Raises `AntiPureError` for a prefix that leads out of the folder.
    """
    root = _root()
    target = legal_path(root, f"{prefix}_")
    if target is None:
        raise AntiPureError(f"The filename prefix '{prefix}' leads out of the output folder; give a plain name.")
    paths = without_clashes(target.with_name(f"{target.name}{number:05}_.png") for number in count(1))
    saved = [write_new(paths, _png(image, texts if _texts_wanted() else {})) for image in images]
    return [_shown(path, root, "output") for path in saved] if host.inside_comfyui() else saved


def preview_pictures(images: Tensor) -> list[Any]:
    """What a node shows as "images" beside those it saves: kept as ComfyUI keeps previews. Elsewhere nothing."""
    if not host.inside_comfyui():
        return []
    import folder_paths

    root = Path(folder_paths.get_temp_directory())
    paths = without_clashes(root / f"antipure_original_{number:05}_.png" for number in count(1))
    return [_shown(write_new(paths, _png(image, {})), root, "temp") for image in images]


def _root() -> Path:
    if not host.inside_comfyui():
        return _output_folder
    import folder_paths

    return Path(folder_paths.get_output_directory())


def _texts_wanted() -> bool:
    """Whether ComfyUI runs without --disable-metadata."""
    if not host.inside_comfyui():
        return True
    from comfy.cli_args import args

    return not args.disable_metadata


def _shown(path: Path, root: Path, kind: str) -> dict[str, str]:
    subfolder = path.parent.resolve().relative_to(root.resolve()).as_posix()
    return {"filename": path.name, "subfolder": "" if subfolder == "." else subfolder, "type": kind}


def _png(image: Tensor, texts: dict[str, str]) -> bytes:
    """One H×W×C picture of an IMAGE, rounded to 8 bits."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for keyword, text in texts.items():
        info.add_text(keyword, text)
    array = (image.float().cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", pnginfo=info, compress_level=4)
    return buffer.getvalue()
