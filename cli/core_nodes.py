"""Stand-ins for the five core nodes the shipped workflows use, behaving as ComfyUI's do."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path

import numpy as np
import torch

from ..methods.diffusion.autoencoder import load_autoencoder
from ..methods.errors import AntiPureError
from ..methods.files import write_new
from ..nodes import host
from ..nodes.model_folders import find_vae, vae_state
from .graph import shown
from .pictures import Frame, Source, find_picture, read_picture

_LONGEST = 200
ANY = "*"  # ComfyUI's type that takes every other


class LoadImage:
    """source: after `load`, what the file holds that IMAGE and MASK do not."""

    source: Source
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
        array, alpha, self.source = read_picture(find_picture(image))
        pixels = torch.from_numpy(array.astype(np.float32) / 255.0)
        if alpha is None:
            mask = torch.zeros(len(pixels), 64, 64)
        else:
            mask = 1 - torch.from_numpy(alpha.astype(np.float32) / 255.0)
        return pixels, mask


class SaveImage:
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "save"

    def __init__(self, folder: Path, source: Source | None = None):
        """source: the file that the pictures are made from; what it holds beside colours is saved with them."""
        self.folder = folder
        self.source = source

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"images": ("IMAGE", {}), "filename_prefix": ("STRING", {})}}

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str | None = None) -> bool | str:
        """Before anything is computed. File systems take 255 bytes for a name; a number and an ending are added."""
        if any(len(part.encode("utf-8", "replace")) > _LONGEST for part in (filename_prefix or "").split("/")):
            return f"filename_prefix is {shown(filename_prefix)}; give a name of at most {_LONGEST} bytes."
        return True

    def place(self, filename_prefix: str) -> Path:
        """Where its files go, without number and suffix. Raises `AntiPureError` for a place outside of its folder."""
        target = (self.folder / f"{filename_prefix}_".replace("\0", "")).resolve()
        if "\0" in filename_prefix or not target.is_relative_to(self.folder.resolve()):
            raise AntiPureError(f"The filename prefix '{filename_prefix}' leads out of the output folder.")
        return target

    def save(self, images: torch.Tensor, filename_prefix: str = "ComfyUI") -> dict:
        target = self.place(filename_prefix)
        pattern = re.compile(re.escape(target.name) + r"(\d+)_\.png")
        existing = target.parent.glob("*.png") if target.parent.is_dir() else ()
        taken = [int(m.group(1)) for m in (pattern.fullmatch(p.name) for p in existing) if m]
        files = []
        frames = iter(self._frames(images))
        for i, image in enumerate(images, start=max(taken, default=0) + 1):
            array = np.clip(255.0 * image.float().cpu().numpy(), 0, 255).astype(np.uint8)
            paths = (target.parent / f"{target.name}{number:05}_.png" for number in count(i))
            files.append(write_new(paths, next(frames).png(array)))
        return {"ui": {"files": files}}

    def _frames(self, images: torch.Tensor) -> tuple[Frame, ...]:
        """What is saved with each picture: the source's frames, where they are its frames."""
        if self.source is None or (len(images), *images.shape[1:3]) != (len(self.source.frames), *self.source.size):
            return (Frame(),) * len(images)
        return self.source.frames


class VAELoader:
    """vae_name: as ComfyUI lists it (a file in models/vae, or taesd and the like in models/vae_approx), or any path."""

    RETURN_TYPES = ("VAE",)
    FUNCTION = "load_vae"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"vae_name": ("STRING", {})}}

    @classmethod
    def IS_CHANGED(cls, vae_name: str) -> str:
        return vae_state(vae_name)

    def load_vae(self, vae_name: str) -> tuple:
        return (host.manage(load_autoencoder(find_vae(vae_name))),)


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
