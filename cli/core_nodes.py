"""Stand-ins for the four core nodes the shipped workflows use, behaving as ComfyUI's do."""

from __future__ import annotations

import io
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from ..methods.errors import AntiPureError
from ..methods.files import BUNDLED_FOLDER, write_file
from .graph import shown

_LONGEST = 200
ANY = "*"  # ComfyUI's type that takes every other


def find_picture(name: str) -> Path:
    """A path as given, or the name of a bundled sample."""
    with suppress(OSError, ValueError, RuntimeError):  # too long, a NUL in it, a home that nobody has
        path = Path(name).expanduser()
        if path.exists():
            return path
        if (BUNDLED_FOLDER / path.name).is_file() and path.suffix == ".png":
            return BUNDLED_FOLDER / path.name
    raise AntiPureError(f"There is no picture {shown(str(name))[1:-1]}; give the path of a PNG, JPEG or WebP file.")


class LoadImage:
    RETURN_TYPES = ("IMAGE", "MASK")

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"image": ("STRING", {})}}

    @classmethod
    def IS_CHANGED(cls, image: str) -> str:
        path = find_picture(image)
        stat = path.stat()
        return f"{path.resolve()}:{stat.st_mtime_ns}:{stat.st_size}"

    FUNCTION = "load"

    def load(self, image: str) -> tuple:
        path = find_picture(image)
        try:
            with Image.open(path) as opened:
                picture = ImageOps.exif_transpose(opened)
                if picture.mode.startswith("I"):
                    picture = picture.point(lambda value: value / 256).convert("L")
                alpha = None
                if "A" in picture.getbands() or "transparency" in picture.info:
                    alpha = np.asarray(picture.convert("RGBA"))[..., 3]
                array = np.asarray(picture.convert("RGB"))
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise AntiPureError(f"{path} is not a picture that can be read; give a PNG, JPEG or WebP file.") from error
        pixels = torch.from_numpy(array.astype(np.float32) / 255.0)[None]
        if alpha is None:
            mask = torch.zeros(1, 64, 64)
        else:
            mask = 1 - torch.from_numpy(alpha.astype(np.float32) / 255.0)[None]
        return pixels, mask


class SaveImage:
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "save"

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"images": ("IMAGE", {}), "filename_prefix": ("STRING", {})}}

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str | None = None) -> bool | str:
        """Before anything is computed. File systems take 255 bytes for a name; a number and an ending are added."""
        if any(len(part.encode("utf-8", "replace")) > _LONGEST for part in (filename_prefix or "").split("/")):
            return f"filename_prefix is {shown(filename_prefix)}; give a name of at most {_LONGEST} bytes."
        return True

    def save(self, images: torch.Tensor, filename_prefix: str = "ComfyUI") -> dict:
        target = (self.folder / f"{filename_prefix}_").resolve()
        if not target.is_relative_to(self.folder.resolve()):
            raise AntiPureError(f"The filename prefix '{filename_prefix}' leads out of the output folder.")
        pattern = re.compile(re.escape(target.name) + r"(\d+)_\.png")
        existing = target.parent.glob("*.png") if target.parent.is_dir() else ()
        taken = [int(m.group(1)) for m in (pattern.fullmatch(p.name) for p in existing) if m]
        files = []
        for i, image in enumerate(images, start=max(taken, default=0) + 1):
            array = np.clip(255.0 * image.float().cpu().numpy(), 0, 255).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(array).save(buffer, "PNG", compress_level=4)
            path = target.parent / f"{target.name}{i:05}_.png"
            write_file(path, buffer.getvalue())
            files.append(path)
        return {"ui": {"files": files}}


class PreviewImage:
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "preview"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"images": ("IMAGE", {})}}

    def preview(self, images: torch.Tensor) -> dict:
        return {"ui": {}}


class PreviewAny:
    """Shows a text on the node; what it returns differs between versions, so nothing is taken from it."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "main"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"source": (ANY, {})}}

    def main(self, source: object = None) -> dict:
        return {"ui": {"text": [str(source)]}}
