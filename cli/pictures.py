"""Picture files: found, checked before they are decoded, read, and what they hold beside colours written again.

Everything in a file is untrusted. A `Source` is what a file holds that an IMAGE cannot carry; `cli/sources.py` says
which saved pictures are made from which file, and so get it back.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from ..methods.errors import AntiPureError
from ..methods.files import BUNDLED_FOLDER
from .terminal import one_line

# What is opened, whatever a file's name says: Pillow knows formats that start other programs (EPS) or read other files.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "TGA")
KINDS = "a PNG, JPEG, WebP, AVIF, BMP, GIF or TIFF file"
MOST_PIXELS = 178_956_970  # of all frames together; where Pillow's own limit is
AS_THEY_ARE = {"RGB": "", "RGBA": "", "L": "is grey", "LA": "is grey", "P": "has a palette", "PA": "has a palette"}
_ORIENTATION = 274  # EXIF's
_ICC, _X_RESOLUTION, _SUBFILE_TYPE, _REDUCED = 34675, 282, 254, 1  # TIFF's tags, and the bit of a thumbnail


@dataclass(frozen=True)
class Frame:
    """What a file holds beside a frame's colours.

    alpha: H×W, 8 bits, or None; colours: H×W×3, 8 bits, the ones under it. profile: an ICC profile of RGB colours.
    dpi: across and down. chunks: PNG's own colour information, by name. xmp, exif: what credits.py kept of either.
    """

    alpha: np.ndarray | None = None
    colours: np.ndarray | None = None
    profile: bytes | None = None
    dpi: tuple[float, float] | None = None
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    xmp: str | None = None
    exif: bytes | None = None

    def png(self, array: np.ndarray) -> bytes:
        """The bytes of a PNG of these pixels, H×W×3 or 4 in 8 bits, with all of the frame's.

        Nobody sees what is under full transparency: those pixels stay the file's.
        """
        if self.alpha is not None and self.colours is not None and array.shape == self.colours.shape:
            hidden = self.alpha[..., None] == 0
            array = np.concatenate([np.where(hidden, self.colours, array), self.alpha[..., None]], -1)
        information = PngInfo()
        for name, content in self.chunks:
            information.add(name, content)
        if self.xmp is not None:
            information.add_itxt("XML:com.adobe.xmp", self.xmp)
        settings = {"icc_profile": self.profile, "dpi": self.dpi, "exif": self.exif}
        buffer = io.BytesIO()
        Image.fromarray(array).save(
            buffer,
            "PNG",
            compress_level=4,
            pnginfo=information,
            **{key: value for key, value in settings.items() if value is not None},
        )
        return buffer.getvalue()


@dataclass(frozen=True)
class Source:
    """A file's frames, and in words what a picture saved from it has lost or got otherwise."""

    name: str
    size: tuple[int, int]
    frames: tuple[Frame, ...]
    changes: tuple[str, ...] = ()

    def opaque(self) -> Source:
        """The same without alpha, for workflows that take it for a mask, as ComfyUI does."""
        if all(frame.alpha is None for frame in self.frames):
            return self
        told = "is saved without its alpha, which this workflow uses as a mask"
        frames = tuple(replace(frame, alpha=None, colours=None) for frame in self.frames)
        return replace(self, frames=frames, changes=(*self.changes, told))

    @property
    def notes(self) -> list[str]:
        """A printable line for each change."""
        return [f"{one_line(self.name)} {change}." for change in self.changes]


def find_picture(name: str) -> Path:
    """A path as given, or the name of a bundled sample. Raises `AntiPureError` for all that is no file."""
    try:
        path = Path(name).expanduser()
        there, is_file = path.exists(), path.is_file()
    except (OSError, ValueError, RuntimeError, TypeError):  # too long, with NUL, of unknown users, no name at all
        there = is_file = False
        path = Path("none")
    if is_file:
        return path
    if there:
        what = "a folder" if path.is_dir() else "a device or a pipe"
        raise AntiPureError(f"{path} is {what}, not a picture; give the path of {KINDS}.")
    if (BUNDLED_FOLDER / path.name).is_file() and path.suffix == ".png":
        return BUNDLED_FOLDER / path.name
    raise AntiPureError(f"There is no picture {str(name)[:200]}; give the path of {KINDS}.")


def read_picture(path: Path) -> tuple[np.ndarray, np.ndarray | None, Source]:
    """All frames of a file as N×H×W×3 in 8 bits, upright; their alpha, N×H×W, or None; and the rest.

    Raises `AntiPureError` for what is no picture, is truncated or damaged, or has too many pixels: known from its
    header, before anything is decoded.
    """
    with opened_picture(path) as opened:
        return _read(path, opened)


def check_picture_file(path: Path) -> list[str]:
    """What a ComfyUI leaves out when it loads the file and saves a picture made from it, in words. Decodes nothing.

    Raises `AntiPureError` as `read_picture` does, as far as a header tells.
    """
    with opened_picture(path) as opened:
        frame, _ = _beside_colours(opened, getattr(opened, "tag_v2", None))
        alpha = "A" in opened.getbands() or "transparency" in opened.info
    beside = {"alpha": alpha, "colour profile": frame.profile, "colour information": frame.chunks}
    lost = " and ".join(name for name, there in beside.items() if there)
    return [f"{one_line(path.name)} has {lost}, which ComfyUI's Save Image does not save."] if lost else []


@contextmanager
def opened_picture(path: Path) -> Iterator[Image.Image]:
    """The file with its header read, and sentences for all that it may hold. Warnings of Pillow are not shown."""
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is said in words here
            with path.open("rb") as file, Image.open(file, formats=formats) as opened:
                yield opened
    except (AntiPureError, MemoryError):  # the command has a sentence for the latter
        raise
    except UnidentifiedImageError as error:
        raise AntiPureError(f"{path} is not a picture of a kind that is read here; give {KINDS}.") from error
    except Image.DecompressionBombError as error:
        raise AntiPureError(_too_many(path)) from error
    except Exception as error:  # damaged pictures make decoders raise nearly anything
        if isinstance(error, OSError) and error.errno:
            raise AntiPureError(f"{path} cannot be read ({error.strerror}).") from error
        raise AntiPureError(f"{path} is a truncated or damaged picture; copy or download it again.") from error


def _too_many(path: Path) -> str:
    return f"{path} has too many pixels, more than {MOST_PIXELS / 1e6:.0f} million; make it smaller, or cut it."


def _read(path: Path, opened: Image.Image) -> tuple[np.ndarray, np.ndarray | None, Source]:
    # What a phone adds to its picture (depth, a preview) is no frame of it: ComfyUI takes MPO's first one, too.
    count = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
    if opened.width * opened.height * count > MOST_PIXELS:
        raise AntiPureError(_too_many(path))
    colours, alphas, frames, changes = [], [], [], dict[str, None]()
    for tags in _pages(opened, count):
        changes.update(dict.fromkeys(_converted(path, opened)))
        frame, lost = _beside_colours(opened, tags)
        changes.update(dict.fromkeys(lost))
        picture = ImageOps.exif_transpose(opened)
        if frame.dpi and opened.getexif().get(_ORIENTATION) in (5, 6, 7, 8):  # lay on its side
            frame = replace(frame, dpi=frame.dpi[::-1])
        if picture.mode.startswith("I"):
            if np.asarray(picture).max() > 65535:
                raise AntiPureError(f"{path} holds values of more than 16 bits; save it with 8 or 16 bits first.")
            picture = picture.point(lambda value: value / 256).convert("L")
        alpha = None
        if "A" in picture.getbands() or "transparency" in picture.info:
            alpha = np.asarray(picture.convert("RGBA"))[..., 3]
        colours.append(np.asarray(picture.convert("RGB")))
        alphas.append(alpha)
        frames.append(frame)
    if len({array.shape for array in colours}) > 1:
        raise AntiPureError(f"{path} holds pictures of different sizes; save each as a file of its own.")
    if len(frames) > 1:
        changes[f"holds {len(frames)} frames; each is a picture of its own here"] = None
    pixels = np.stack(colours)
    alpha = None
    if any(found is not None for found in alphas):
        alpha = np.stack([np.full(pixels.shape[1:3], 255, np.uint8) if found is None else found for found in alphas])
        if (alpha != 255).any():  # an alpha that hides nothing is not worth another kind of file
            frames = [replace(f, alpha=a, colours=c) for f, a, c in zip(frames, alpha, pixels, strict=True)]
    height, width = pixels.shape[1:3]
    return pixels, alpha, Source(path.name, (height, width), tuple(frames), tuple(changes))


def _pages(opened: Image.Image, count: int) -> Iterator[dict | None]:
    """Go to each frame and give its TIFF tags, None in other files. Thumbnails are no frames."""
    for i in range(count):
        opened.seek(i)
        tags = getattr(opened, "tag_v2", None)
        if i == 0 or tags is None or not tags.get(_SUBFILE_TYPE, 0) & _REDUCED:
            yield None if tags is None else dict(tags)


def _converted(path: Path, opened: Image.Image) -> Iterator[str]:
    """What the frame's colours lose by becoming 8-bit RGB, in words. Raises `AntiPureError` for floating-point ones."""
    if opened.mode == "F":
        raise AntiPureError(f"{path} holds floating-point values, whose range nobody knows; save it with 8 or 16 bits.")
    if ";16" in f"{opened.mode} {getattr(opened, 'tile', '')}" or opened.mode == "I":
        yield "has 16 bits a channel; 8 of them are kept"
        if "transparency" in opened.info:  # a colour of 16 bits, which no 8-bit one is equal to
            yield "has a transparent colour of 16 bits a channel, which is left out"
    elif said := AS_THEY_ARE.get(opened.mode, f"is of mode {opened.mode}"):
        yield f"{said}; it is saved as RGB"


def _beside_colours(opened: Image.Image, tags: dict | None) -> tuple[Frame, list[str]]:
    """The frame's profile, resolution and colour information, and what of it cannot be kept, in words."""
    # Pillow hands the first page's on to pages that have none.
    profile = opened.info.get("icc_profile") if tags is None else tags.get(_ICC)
    lost = []
    if profile and (len(profile) < 128 or profile[36:40] != b"acsp" or profile[16:20] != b"RGB "):
        profile = None
        lost.append("has a colour profile that is not for RGB, which is left out: colours may look different")
    dpi = opened.info.get("dpi") if tags is None or _X_RESOLUTION in tags else None
    try:
        dpi = tuple(float(value) for value in dpi or ())
    except (TypeError, ValueError, ZeroDivisionError):
        dpi = ()
    if len(dpi) != 2 or not all(math.isfinite(value) and 0 < value < 1e6 for value in dpi):
        dpi = None
    return Frame(profile=profile or None, dpi=dpi, chunks=() if profile else tuple(_chunks(opened))), lost


def _chunks(opened: Image.Image) -> Iterator[tuple[bytes, bytes]]:
    """PNG's colour information besides a profile (PNG specification, 11.3.2)."""
    if opened.format != "PNG":
        return
    information = opened.info
    if "chromaticity" in information:
        yield b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in information["chromaticity"]))
    if "gamma" in information:
        yield b"gAMA", struct.pack(">I", round(information["gamma"] * 100_000))
    if "srgb" in information:
        yield b"sRGB", struct.pack(">B", information["srgb"])
