"""`antipure fetch-models`: download weights that metrics use, when the user says so and never otherwise.

A download is written beside its place under another name, checked against its sha256 and then renamed: whatever
happens on the way, there is the whole file or none. Nothing of it is executed.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..methods.errors import AntiPureError
from .model_registry import MODELS, Model

_BLOCK = 1 << 20
_SECONDS = 60  # without any answer
Report = Callable[[int, int], None]


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
        print(listing(models))
    for name in names:
        for path in fetch(name, models, accept_licence=accept_licence, registry=MODELS):
            print(path)


def listing(models: Path) -> str:
    """What can be fetched, as text: size, licence, purpose, and whether it is in the models folder."""
    lines = [f"models folder: {models}"]
    for name, model in MODELS.items():
        state = "present" if model.present(models) else "absent"
        lines += [f"{name:<10} {model.size / 1e6:4.0f} MB  {state:<8} for {model.purpose}"]
        lines += [f"{'':<10} {model.licence}" + ("; needs --accept-licence" if model.restricted else "")]
    return "\n".join(lines)


def fetch(name: str, models: Path, *, accept_licence: bool, registry: dict[str, Model]) -> list[Path]:
    """Download one model into a models folder, unless it is there; its files.

    Raises `AntiPureError` when its licence is not accepted, or the download, its checksum or the disk fail.
    """
    model = registry[name]
    files = model.files(models)
    if model.present(models):
        return files
    if model.restricted and not accept_licence:
        raise AntiPureError(
            f"The licence of {name} is {model.licence}; add --accept-licence when your use agrees with it."
        )
    with _folder(models / model.folder) as folder:
        _check_space(folder, model.size * (2 if model.members else 1))
        with _partial(folder / model.file_name) as partial, _progress(name) as report:
            _download(model, partial, report)
            if model.members:
                _unpack(partial, files)
            else:
                os.replace(partial, files[0])
    return files


@contextmanager
def _folder(folder: Path) -> Iterator[Path]:
    """A folder that is made, and removed again with its new parents if nothing comes to lie in it."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise AntiPureError(
            f"{folder} cannot be written ({error.strerror or error}); choose another folder."
        ) from error
    finally:
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """Another name to write to, gone at the end unless it was renamed."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _progress(name: str) -> Iterator[Report]:
    from tqdm import tqdm

    with tqdm(desc=name, unit="B", unit_scale=True, leave=False, disable=None, dynamic_ncols=True) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total or None
            bar.update(done - bar.n)

        yield report


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise AntiPureError(f"{folder} has {free / 1e6:.0f} MB free and {needed / 1e6:.0f} MB are needed; make room.")


def _download(model: Model, partial: Path, report: Report) -> None:
    by_hand = f"try again, or download {model.url} yourself"
    done, digest = 0, hashlib.sha256()
    with partial.open("wb") as file:
        try:
            with urllib.request.urlopen(model.url, timeout=_SECONDS) as answer:
                total = int(answer.headers.get("Content-Length") or 0)
                while block := answer.read(_BLOCK):
                    _write(file, block)
                    digest.update(block)
                    done += len(block)
                    report(done, total)
        except urllib.error.HTTPError as error:
            raise AntiPureError(f"{model.file_name} is not to be had (HTTP status {error.code}); {by_hand}.") from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise AntiPureError(
                f"{model.file_name} could not be downloaded ({reason}); check the network and {by_hand}."
            ) from error
    if total and done != total:
        raise AntiPureError(f"{model.file_name} broke off after {done} of {total} bytes; {by_hand}.")
    if digest.hexdigest() != model.sha256:
        raise AntiPureError(
            f"{model.file_name} came with the wrong checksum (sha256 {digest.hexdigest()[:8]}… instead of "
            f"{model.sha256[:8]}…) and was thrown away; {by_hand}."
        )


def _write(file, block: bytes) -> None:
    try:
        file.write(block)
    except OSError as error:  # not the network's
        what = (
            "The disk is full" if error.errno == errno.ENOSPC else f"The disk refuses to be written ({error.strerror})"
        )
        raise AntiPureError(f"{what}; make room in {Path(file.name).parent}, or choose another folder.") from error


def _unpack(archive: Path, files: list[Path]) -> None:
    """The members of a zip archive by their names, whatever folder they lie in there; all of them or none."""
    partials = [path.with_name(f"{path.name}.{os.getpid()}.partial") for path in files]
    try:
        with zipfile.ZipFile(archive) as content:
            members = {Path(info.filename).name: info for info in content.infolist() if not info.is_dir()}
            for path, partial in zip(files, partials, strict=True):
                if path.name not in members:
                    raise AntiPureError(
                        f"{archive.name.split('.zip')[0]}.zip has no {path.name} in it; it was thrown away."
                    )
                with content.open(members[path.name]) as source, partial.open("wb") as target:
                    while block := source.read(_BLOCK):
                        _write(target, block)
        for path, partial in zip(files, partials, strict=True):
            os.replace(partial, path)
    except zipfile.BadZipFile as error:
        raise AntiPureError(
            f"{files[0].parent.name} came as a damaged archive and was thrown away; try again."
        ) from error
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)
