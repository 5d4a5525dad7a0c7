"""Which models a run's settings name, by what is in their files: the same name may hold other weights tomorrow."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...methods.errors import AntiPureError
from ...nodes.model_folders import find_denoisers, find_vae

_PIECE = 2**22  # bytes
_NONE = "none"


def sums_of_models(settings: Mapping[str, Any]) -> dict[str, str]:
    """The checksum of each model by the name it was given. Raises `AntiPureError` where one cannot be read."""
    found = {}
    for name in dict.fromkeys(settings.get(kind) for kind in ("denoiser", "held_out")):
        if name and name != _NONE:
            found[name] = sum_of(*find_denoisers(name))
    vaes = settings.get("vaes") or [settings.get("vae")]
    for name in dict.fromkeys(vaes):
        if name:
            path = find_vae(name)
            halves = [path.with_name(path.name.replace("_encoder", half)) for half in ("_encoder", "_decoder")]
            found[name] = sum_of(*dict.fromkeys(half for half in halves if half.exists() or half == path))
    return found


def sum_of(*paths: Path) -> str:
    """sha256 of a file; of a folder or of several files, of their names and sums."""
    if len(paths) == 1 and not paths[0].is_dir():
        digest = hashlib.sha256()
        try:
            with paths[0].open("rb") as file:
                while piece := file.read(_PIECE):
                    digest.update(piece)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise AntiPureError(f"The model {str(paths[0])[:200]} cannot be read ({why}); give another one.") from error
        return digest.hexdigest()
    files = [
        each for path in paths for each in (sorted(path.rglob("*")) if path.is_dir() else [path]) if each.is_file()
    ]
    return hashlib.sha256("".join(f"{file.name} {sum_of(file)}\n" for file in files).encode()).hexdigest()
