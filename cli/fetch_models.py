"""`antipure fetch-models`: download weights that metrics use, when the user says so and never otherwise.

A download is written beside its place under another name, its sha256 is checked, and then it is renamed: whatever
happens on the way, there is the whole file or none. No more is taken than the known size (`torch.hub`'s own download
takes whatever comes). Nothing of it is executed.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import ssl
import sys
import urllib.error
import urllib.request
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm import tqdm

from ..methods.errors import AntiPureError
from ..methods.files import remove_stale
from .model_registry import MODELS, PRESENT, Model
from .terminal import show

_SECONDS = 60  # without any answer
_BLOCK = 2**20
_SCRATCH = ".antipure-fetch-"
# What a network raises; any other OSError is the disk's.
_NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


def run_fetch_models(names: list[str], models: Path | None, *, accept_licence: bool = False) -> None:
    """The command: download the named models, or list all of them. models: ComfyUI's models folder; None: found."""
    if models is None:
        from ..nodes.model_folders import models_folder

        models = models_folder()
    elif not models.is_dir():
        raise AntiPureError(f"There is no folder {models}; give ComfyUI's models folder with --models.")
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        raise AntiPureError(f"There is no model '{unknown[0]}' to fetch; there are {', '.join(MODELS)}.")
    if not names:
        show(listing(models))
    for name in names:
        for path in fetch(name, models, accept_licence=accept_licence, registry=MODELS):
            show(path)


def listing(models: Path) -> str:
    """What can be fetched, as text: size, licence, purpose, and whether it is in the models folder."""
    lines = [f"models folder: {models}"]
    for name, model in MODELS.items():
        state = model.state(models)
        lines += [f"{name:<10} {model.total_size / 1e6:4.0f} MB  {state:<8} for {model.purpose}"]
        lines += [f"{'':<10} {model.licence}" + ("; needs --accept-licence" if model.restricted else "")]
    return "\n".join(lines)


def fetch(name: str, models: Path, *, accept_licence: bool, registry: dict[str, Model]) -> list[Path]:
    """Download one model into a models folder, unless it is there and whole; its files.

    Raises `AntiPureError` when its licence is not accepted, or the download, its checksum or the disk fail.
    """
    model = registry[name]
    files = model.files(models)
    if model.state(models) == PRESENT:
        return files
    if model.restricted and not accept_licence:
        raise AntiPureError(
            f"The licence of {name} is {model.licence}; add --accept-licence when your use agrees with it."
        )
    for each in model.downloads:
        _fetch_one(replace(each, others=()), models)
    return files


def _fetch_one(model: Model, models: Path) -> None:
    """One of a model's downloads, unless it is there and whole: of two halves the one that came stays."""
    if model.state(models) == PRESENT:
        return
    files = model.files(models)
    with _folder(models / model.folder) as folder:
        remove_stale([*folder.glob(f"{model.file_name}.*.partial"), *folder.glob(f"{_SCRATCH}*")])
        _check_space(folder, model.size * (2 if model.members else 1))
        if model.members:
            with TemporaryDirectory(dir=folder, prefix=_SCRATCH) as scratch:
                archive = Path(scratch) / model.file_name
                _download(model, archive)
                for unpacked, file in zip(_unpack(archive, files), files, strict=True):
                    os.replace(unpacked, file)
        else:
            _download(model, files[0])


@contextmanager
def _folder(folder: Path) -> Iterator[Path]:
    """A folder that is made, and removed again with its new parents if nothing comes to lie in it."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        reason = error.strerror or error
        raise AntiPureError(f"{folder} cannot be written ({reason}); make room, or choose another folder.") from error
    finally:
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise AntiPureError(f"{folder} has {free / 1e6:.0f} MB free and {needed / 1e6:.0f} MB are needed; make room.")


def _download(model: Model, path: Path) -> None:
    """Download to `path`, whole and with the right checksum, or not at all. Raises `OSError` for the disk's errors."""
    by_hand = f"try again, or download {model.url} yourself"
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        if _received(model, partial) != model.sha256:
            raise AntiPureError(
                f"{model.file_name} came broken off or changed (its sha256 is not {model.sha256[:8]}…) and was "
                f"thrown away; {by_hand}."
            )
        os.replace(partial, path)
    except urllib.error.HTTPError as error:
        raise AntiPureError(f"{model.file_name} is not to be had (HTTP status {error.code}); {by_hand}.") from error
    except _NETWORK_ERRORS as error:
        reason = getattr(error, "reason", None) or error
        raise AntiPureError(
            f"{model.file_name} could not be downloaded ({reason}); check the network and {by_hand}."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _received(model: Model, path: Path) -> str:
    """Write what the network gives, at most the model's size and a byte; its sha256."""
    digest, left = hashlib.sha256(), model.size + 1
    with (
        urllib.request.urlopen(model.url, timeout=_SECONDS) as answer,
        path.open("wb") as file,
        tqdm(total=model.size, disable=not sys.stderr.isatty(), unit="B", unit_scale=True) as bar,
    ):
        while left and (block := answer.read(min(_BLOCK, left))):
            file.write(block)
            digest.update(block)
            bar.update(len(block))
            left -= len(block)
    return digest.hexdigest()


def _unpack(archive: Path, files: list[Path]) -> list[Path]:
    """The members of a zip archive by their names, whatever folder they lie in there, unpacked beside it."""
    try:
        with zipfile.ZipFile(archive) as content:
            members = {Path(info.filename).name: info for info in content.infolist() if not info.is_dir()}
            missing = [path.name for path in files if path.name not in members]
            if missing:
                raise AntiPureError(f"{archive.name} has no {missing[0]} in it; it was thrown away.")
            unpacked = [archive.with_name(path.name) for path in files]
            for path in unpacked:
                with content.open(members[path.name]) as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target)
    except zipfile.BadZipFile as error:
        raise AntiPureError(f"{archive.name} came as a damaged archive and was thrown away; try again.") from error
    return unpacked
