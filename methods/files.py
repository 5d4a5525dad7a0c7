"""Reading and writing files: the one place. Nothing is executed, and nothing is left half-written."""

from __future__ import annotations

import io
import os
import pickle
import re
import tempfile
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from .errors import AntiPureError

BUNDLED_FOLDER = Path(__file__).resolve().parents[1] / "bundled"  # what the package ships


def reason(error: Exception) -> str:
    """The first line of an exception's message, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; raises `AntiPureError` for an incomplete one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise AntiPureError(f"{path} is not a complete safetensors file; download or copy it again.") from error


def read_pickle(path: Path, wanted: str = "an ADM .pt file") -> dict:
    """What a torch checkpoint holds, read with `weights_only`; raises `AntiPureError` where that is refused."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = str(error)
        if zipfile.is_zipfile(path) and ("GLOBAL" in text or "Unsupported" in text or "weights_only" in text.lower()):
            raise AntiPureError(
                f"{path} holds more than weights (a pickle that could run code), so it was not loaded; "
                "convert it to safetensors with a tool you trust."
            ) from error
        raise AntiPureError(f"{path} is no checkpoint that can be read safely; give {wanted}.") from error
    except Exception as error:  # damaged pickles make the reader raise nearly anything
        raise AntiPureError(f"{path} is not a complete checkpoint; download or copy it again.") from error


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file that appears complete or not at all."""
    write_file(path, safetensors_bytes(tensors, metadata))


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    """What a safetensors file of these tensors holds."""
    from safetensors.torch import save

    return save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata)


def write_checkpoint(path: Path, content: dict) -> None:
    """Write tensors and plain values as `read_pickle` reads them; the file appears complete or not at all."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_file(path, buffer.getvalue())


def write_file(path: Path, content: bytes) -> None:
    """Write a file that appears complete or not at all. Raises `AntiPureError` where it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def check_writable(folder: Path) -> None:
    """Raise `AntiPureError` now where a file in this folder, made or not yet, could not be written later."""
    place = folder.absolute()
    nearest = next((path for path in (place, *place.parents) if os.path.lexists(path)), place)
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise AntiPureError(
            f"{folder} cannot be written ({error.strerror or error}); choose another place, or change its permissions."
        ) from error


def write_new(paths: Iterable[Path], content: bytes) -> Path:
    """Write a file under the first of these paths that is free, complete or not at all; that path.

    No file's place is ever taken, whatever other threads and processes write meanwhile. The paths lie in one folder.
    Raises `AntiPureError` where none can be written.
    """
    remaining = iter(paths)
    path = next(remaining)
    with _temporary(path) as temporary:
        temporary.write_bytes(content)
        _to_disk(temporary)
        while not _claim(temporary, path):
            path = next(remaining)
    return path


def free_names(path: Path) -> Iterator[Path]:
    """This path and, counting on, others beside it: a_00002_.png after ComfyUI's a_00001_.png, a_2.png after a.png.

    Left out are those that differ from a file there in upper and lower case only: elsewhere they are one.
    """
    taken: set[str] = set()
    with suppress(OSError):  # a folder that is not there yet
        taken = {name.casefold() for name in os.listdir(path.parent)}
    numbered = re.fullmatch(r"(.*_)([0-9]{1,20})_", path.stem, re.DOTALL)
    for number in count():
        if numbered:
            prefix, digits = numbered.groups()
            name = f"{prefix}{int(digits) + number:0{len(digits)}}_{path.suffix}"
        else:
            name = f"{path.stem}_{number + 1}{path.suffix}" if number else path.name
        if name.casefold() not in taken:
            yield path.with_name(name)


def _claim(temporary: Path, path: Path) -> bool:
    """Give a finished file this name too, unless something has it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links: the name is taken first, empty, and filled at once
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        os.replace(temporary, path)
    return True


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which takes its place at the end: a reader sees the old file or the new one.

    Nothing is left of it when the block is left by an exception. Raises `AntiPureError` where it cannot be written.
    """
    with _temporary(path) as temporary:
        yield temporary
        _to_disk(temporary)
        os.replace(temporary, path)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A name beside `path` that nobody else uses, gone at the end. Its folder is made; `OSError` becomes a sentence."""
    # Not made of the path's own name, which may be as long as a name can be.
    temporary = path.with_name(f".{os.getpid()}-{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
    except OSError as error:
        raise AntiPureError(
            f"{path} cannot be written ({error.strerror or error}); free space or choose another place."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
