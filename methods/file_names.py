"""File names that every system takes: Windows has characters and names of its own that it refuses or obeys.

https://learn.microsoft.com/windows/win32/fileio/naming-a-file, as Python's `ntpath.isreserved` reads it. Names that are
legal there stay as they are.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

_ILLEGAL = re.compile(r'[\x00-\x1f"*:<>?|/\\]')
_PORTS = {f"{port}{number}" for port in ("COM", "LPT") for number in "123456789¹²³"}
_DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", *_PORTS}


def legal_name(name: str) -> str:
    """One file's or folder's name with "_" for what is illegal, before a device's name and for a name of dots alone."""
    name = _ILLEGAL.sub("_", name).rstrip(". ") or "_"
    return f"_{name}" if name.partition(".")[0].rstrip(" ").upper() in _DEVICES else name


def legal_path(root: Path, text: str, ending: str = "") -> Path | None:
    r"""A file below `root` by what somebody typed and an ending, every name in it legal; None where it leads elsewhere.

    Slashes of either kind part folders: r"a:/b\con" and ".png" are root/a_/b/_con.png.
    """
    *folders, name = posixpath.normpath(text.replace("\\", "/")).split("/")
    if "\0" in text or not name.strip() or name in (".", ".."):
        return None
    # Only folders are looked up: on Windows, a device's name would be found.
    kept = [folder if folder in ("", "..") else legal_name(folder) for folder in folders]
    folder = (root / "/".join([*kept, ""])).resolve()
    return folder / legal_name(name + ending) if folder.is_relative_to(root.resolve()) else None
