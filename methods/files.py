"""Reading and writing files: the one place. Nothing is executed, and nothing is left half-written."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
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
    from safetensors.torch import save

    write_file(path, save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata))


def write_checkpoint(path: Path, content: dict) -> None:
    """Write tensors and plain values as `read_pickle` reads them; the file appears complete or not at all."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_file(path, buffer.getvalue())


def write_file(path: Path, content: bytes) -> None:
    """Write a file that appears complete or not at all. Raises `AntiPureError` where it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which takes its place at the end: a reader sees the old file or the new one.

    Nothing is left of it when the block is left by an exception. Raises `AntiPureError` where it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise AntiPureError(
            f"{path} cannot be written ({error.strerror or error}); free space or choose another place."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
