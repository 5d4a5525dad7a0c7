"""Reading and writing files: the one place. Nothing is executed, and nothing is left half-written."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import tempfile
import time
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from .errors import AntiPureError
from .requirements import missed

BUNDLED_FOLDER = Path(__file__).resolve().parents[1] / "bundled"  # what the package ships
HEADER_LIMIT = JSON_LIMIT = 16 * 2**20  # bytes: the largest models' are a tenth of it
SAFE_TORCH = (2, 6)
# Where trainers put the state dict: averaged weights before raw ones (HiSD's are gen_test), generators by their names.
NESTS = (
    *("gen_test", "gen", "nets_ema", "G_ema", "G", "netG", "generator", "ema", "model_ema", "ema_state_dict"),
    *("params_ema", "state_dict", "model_state_dict", "model", "nets", "params", "shadow"),
)
WRAPPERS = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile, Lightning
FORMATS = (".safetensors", ".bin")
STALE = 3600  # seconds since anything was written to a temporary file: whoever began it is gone
_PART = re.compile(r"\.\d+-[0-9a-f]{32}\.part")  # what `_temporary` calls its files
VARIANTS = ("fp32", "ema", "fp16", "bf16")


def reason(error: Exception) -> str:
    """The first line of an exception's message, or its type; of a missing requirement, how to install it."""
    return missed(error) or (str(error).strip().splitlines() or [type(error).__name__])[0]


def regular_file(path: Path) -> Path:
    """The path; raises `AntiPureError` where it is missing or a folder, a pipe or a device, which may never end."""
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise AntiPureError(f"{path} {what}; give another path, or download or copy it again.")
    return path


def read_json(path: Path) -> dict:
    """The settings in a JSON file; raises `AntiPureError` for a missing, damaged or absurdly large or deep one."""
    if regular_file(path).stat().st_size > JSON_LIMIT:
        raise AntiPureError(f"{path} is too large for settings; download or copy the folder again.")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AntiPureError(f"{path} cannot be read ({error.strerror or error}).") from error
    except (ValueError, RecursionError) as error:
        raise AntiPureError(f"{path} is not valid JSON; download or copy the folder again.") from error
    if not isinstance(settings, dict):
        raise AntiPureError(f"{path} holds no settings; download or copy the folder again.")
    return settings


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; raises `AntiPureError` for an incomplete one.

    Its library checks that tensors lie side by side inside the file, so they take no more memory than that.
    """
    from safetensors import SafetensorError, safe_open

    check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise AntiPureError(f"{path} is not a complete safetensors file; download or copy it again.") from error


def weight_names(path: Path) -> set[str]:
    """The names of the tensors in a safetensors file, without reading them. Raises as `read_safetensors` does."""
    from safetensors import SafetensorError, safe_open

    check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise AntiPureError(f"{path} is not a complete safetensors file; download or copy it again.") from error


def check_header(path: Path) -> None:
    """Raise `AntiPureError` for a safetensors header of absurd size, of which its library would parse 100 MB."""
    try:
        with regular_file(path).open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise AntiPureError(f"{path} cannot be read ({error.strerror or error}).") from error
    if HEADER_LIMIT < header < size:
        raise AntiPureError(f"{path} has a header of {header // 2**20} MB, far beyond any model's; it is not read.")


def check_pickles_are_safe(path: Path) -> None:
    """Raise `AntiPureError` where this torch runs code that a pickle hides from `weights_only` (CVE-2025-32434)."""
    version = re.match(r"(\d+)\.(\d+)", str(torch.__version__))  # such as 2.6.0a0+git123.nv25.01
    if version is None or (int(version[1]), int(version[2])) < SAFE_TORCH:
        raise AntiPureError(
            f"{path} is a pickle, from which torch {torch.__version__} may run code (CVE-2025-32434), so it was not "
            "loaded; update torch to 2.6 or newer, or convert the file to safetensors."
        )


def _check_archive(path: Path) -> None:
    """Raise `AntiPureError` where an archive's entries would take more memory than the file: torch compresses none."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise AntiPureError(
            f"{path} holds compressed entries, which torch never writes and which may grow without bound, so it was "
            "not loaded; save it again with torch.save, or convert it to safetensors."
        )


def read_pickle(path: Path, wanted: str = "an ADM .pt file") -> dict:
    """What a torch checkpoint holds, read with `weights_only`; raises `AntiPureError` where that is refused."""
    check_pickles_are_safe(regular_file(path))
    try:
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":  # how torch itself recognises its archives
                _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except AntiPureError:
        raise
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


def read_weights(path: Path, wanted: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict in a file, by name, and its metadata: the one way in for weights of every kind.

    A .safetensors file, or else a torch checkpoint, which may nest the state dict under a name in `NESTS`. Names that
    wrappers put before all others ("module.", ...) are taken off.
    wanted: what is asked for, for errors. Raises `AntiPureError` naming the path.
    """
    if path.suffix.lower() == ".safetensors":
        state, metadata = read_safetensors(path)
        return unwrap(state) or {}, metadata
    found = unwrap(read_pickle(path, wanted))
    if not found:
        raise AntiPureError(f"{path} holds no plain state dict; give {wanted}.")
    # Views that repeat their values, or many of one storage: gigabytes once converted, from a file of a few bytes.
    # Twice is room for tied weights.
    if sum(value.numel() * value.element_size() for value in found.values()) > 2 * path.stat().st_size:
        raise AntiPureError(f"{path} holds tensors far larger than the file itself; save its plain weights again.")
    return found, {}


def unwrap(checkpoint: object, depth: int = 8) -> dict[str, Tensor] | None:
    """The state dict in a checkpoint: tensors by name, without its wrappers; None where there is none.

    Averaged weights are preferred to raw ones, as whoever publishes both means them to be used.
    depth: how many nests may lie in each other; a pickle may contain itself.
    """
    if not isinstance(checkpoint, Mapping) or depth == 0:
        return None
    nests = (checkpoint[name] for name in NESTS if isinstance(checkpoint.get(name), Mapping))
    for nest in nests:
        if inner := unwrap(nest, depth - 1):
            return inner
    state = {key: value for key, value in checkpoint.items() if key != "n_averaged"}  # torch's AveragedModel counts
    if not all(isinstance(key, str) and _is_plain(value) for key, value in state.items()):
        return None
    while state and (prefix := next((p for p in WRAPPERS if all(key.startswith(p) for key in state)), None)):
        state = {key[len(prefix) :]: value for key, value in state.items()}
    return state


def _is_plain(value: object) -> bool:
    """Whether a value is a tensor with its values in memory, neither sparse, quantised nor without any."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_meta or value.is_quantized)


def find_weights(folder: Path, stem: str, suffixes: tuple[str, ...] = FORMATS) -> tuple[list[Path], str | None]:
    """Files that hold the weights of a Hugging Face folder, and which of its variants they are.

    stem: such as "diffusion_pytorch_model". One file, or the shards its `.index.json` names; safetensors before
    pickles, unless `suffixes` leaves these out; full precision before the variants in `VARIANTS`.
    Raises `AntiPureError` where there are none, or a shard is missing.
    """
    for variant in (None, *VARIANTS):
        for suffix in suffixes:
            inner = "" if variant is None else f".{variant}"
            if (whole := folder / f"{stem}{inner}{suffix}").is_file():
                return [whole], variant
            for name in (f"{suffix}.index{inner}.json", f"{suffix}{inner}.index.json"):  # diffusers 0.30: the latter
                if (index := folder / f"{stem}{name}").is_file():
                    return _shards(index, suffix), variant
    raise AntiPureError(f"{folder} has no {stem}.safetensors; download or copy the folder again.")


def _shards(index: Path, suffix: str) -> list[Path]:
    names = read_json(index).get("weight_map")
    names = set(names.values()) if isinstance(names, dict) and all(map(_is_text, names.values())) else set()
    # Plain names alone: a path in them could lead anywhere.
    if not names or any(Path(name).name != name or "\\" in name or not name.endswith(suffix) for name in names):
        raise AntiPureError(f"{index} names no {suffix} files; download or copy the folder again.")
    shards = [index.parent / name for name in sorted(names)]
    missing = next((shard for shard in shards if not shard.is_file()), None)
    if missing is not None:
        raise AntiPureError(f"{missing.parent} lacks {missing.name}, a part of the weights; download it again.")
    return shards


def _is_text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


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
    numbered = re.fullmatch(r"(.*_)([0-9]{1,20})_", path.stem, re.DOTALL)

    def names() -> Iterator[Path]:
        for number in count():
            if numbered:
                prefix, digits = numbered.groups()
                name = f"{prefix}{int(digits) + number:0{len(digits)}}_{path.suffix}"
            else:
                name = f"{path.stem}_{number + 1}{path.suffix}" if number else path.name
            yield path.with_name(name)

    return without_clashes(names())


def without_clashes(paths: Iterable[Path]) -> Iterator[Path]:
    """Those of these paths, all in one folder, that differ from every file there in more than upper and lower case."""
    taken: set[str] | None = None
    for path in paths:
        if taken is None:
            taken = set()
            with suppress(OSError):  # a folder that is not there yet
                taken = {name.casefold() for name in os.listdir(path.parent)}
        if path.name.casefold() not in taken:
            yield path


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


def remove_stale(paths: Iterable[Path]) -> None:
    """Remove those temporary files and folders that killed runs left: nothing was written to them for `STALE` seconds.

    What somebody is writing now is left alone, and what cannot be removed stays.
    """
    before = time.time() - STALE
    for path in paths:
        with suppress(OSError):
            inside = path.iterdir() if path.is_dir() else ()
            if max(each.stat().st_mtime for each in (path, *inside)) < before:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A name beside `path` that nobody else uses, gone at the end. Its folder is made; `OSError` becomes a sentence."""
    # Not made of the path's own name, which may be as long as a name can be.
    temporary = path.with_name(f".{os.getpid()}-{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            remove_stale([path.with_name(name) for name in os.listdir(path.parent) if _PART.fullmatch(name)])
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
