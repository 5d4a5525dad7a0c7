"""What a server saved, brought here: named harmlessly, checked to be a picture, and never in another file's place."""

from __future__ import annotations

import io
import unicodedata
import warnings
from pathlib import Path
from urllib.parse import urlencode

from PIL import Image

from ..methods.errors import AntiPureError
from ..methods.file_names import legal_name
from ..methods.files import free_names, write_new
from . import connection
from .connection import Server
from .terminal import controls, one_line

# Formats that Pillow decodes as a check, those that it only opens (it knows some of their codecs), and the rest, which
# are known by their first bytes.
_DECODED = {
    ".png": "PNG",
    ".apng": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".gif": "GIF",
    ".bmp": "BMP",
}
_OPENED = {".tif": "TIFF", ".tiff": "TIFF"}
_SIGNATURES = {
    ".exr": (0, b"\x76\x2f\x31\x01"), ".webm": (0, b"\x1a\x45\xdf\xa3"), ".mp4": (4, b"ftyp"), ".avif": (4, b"ftyp"),
}  # fmt: skip
_SAVED = {*_DECODED, *_OPENED, *_SIGNATURES}
_DEEPEST = 8


def download(server: Server, subfolder: str, filename: str, out: Path) -> Path:
    """Download one saved picture below `out`; its path, which no other file had.

    Raises `AntiPureError`, with nothing written, for one that is gone, too long, or not what its name says.
    """
    path = out / local_name(subfolder, filename)
    query = urlencode({"filename": filename, "subfolder": subfolder, "type": "output"}, errors="replace")
    status, data = server.call(f"/view?{query}", limit=connection.LONGEST_PICTURE)
    if status != 200 or not data:
        raise AntiPureError(f"The server no longer has {one_line(filename)} (HTTP {status}); run it again.")
    if not is_what_it_claims(path.suffix.lower(), data):
        raise AntiPureError(
            f"What the server gives as {one_line(filename)} is damaged or no such picture; it was not kept."
        )
    return write_new(free_names(path), data)


def local_name(subfolder: str, filename: str) -> Path:
    """A relative path made from a server's names: below where it is put, legal everywhere, and named as a picture."""
    text = unicodedata.normalize("NFC", f"{subfolder}/{filename}").replace("\\", "/")
    text = "".join("_" if controls(c) else c for c in text)
    parts = [part for part in map(_legal, text.split("/")) if part]
    path = Path(*parts[-_DEEPEST:])
    if path.suffix.lower() not in _SAVED:
        raise AntiPureError(f"The server gives '{one_line(filename)}' for a picture; it was not downloaded.")
    return path


def _legal(part: str) -> str:
    """The end of a name, as much as every file system takes, made legal; "" where nothing is left."""
    part = part[-100:]
    while len(part.encode()) > 200:
        part = part[1:]
    part = part.strip(". ")
    return part and legal_name(part)


def is_what_it_claims(suffix: str, data: bytes) -> bool:
    """Whether these bytes are a file of the kind that a suffix (".png") stands for."""
    if suffix in _SIGNATURES:
        start, signature = _SIGNATURES[suffix]
        return data[start : start + len(signature)] == signature
    kind = _DECODED.get(suffix) or _OPENED[suffix]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=[kind]) as picture:
                if suffix in _DECODED:
                    picture.load()
    except Image.DecompressionBombError:  # a picture so large that it is not decoded here
        return True
    except Exception:  # damaged files make the readers raise nearly anything
        return False
    return True
