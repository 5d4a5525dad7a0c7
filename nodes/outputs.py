"""Where nodes save: below ComfyUI's output folder, or below the command line's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

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
    root = _output_folder
    if host.inside_comfyui():
        import folder_paths

        root = Path(folder_paths.get_output_directory())
    path = legal_path(root / SAVED_PATCHES, name, suffix)
    if path is None:
        raise AntiPureError(f"The name '{name}' leads out of the output folder; give a plain name.")
    return path


def save_new(prefix: str, suffix: str, content: bytes) -> Path:
    """Save what a node made under `saved_path` with the first number that is free; that path."""
    paths = (saved_path(prefix, f"_{number:05}{suffix}") for number in count(1))
    return write_new(without_clashes(paths), content)
