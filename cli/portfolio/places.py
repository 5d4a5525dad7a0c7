"""Where pictures come from and go to: folders here, or whatever fsspec knows (s3://, gs://, …)."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ...methods.errors import AntiPureError
from ...methods.files import check_writable, reason, write_file
from ..terminal import one_line

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def is_url(place: str) -> bool:
    """Whether this is an address, not a path; file:// addresses are paths (see `plain`)."""
    return _URL.match(place) is not None and not place.lower().startswith("file://")


def plain(place: str) -> str:
    """A file:// address as the path it stands for; all else as it is."""
    return unquote(urlsplit(place).path) if place.lower().startswith("file://") else place


def open_url(url: str) -> tuple[Any, str]:
    """fsspec's file system for an address, and the path in it. Raises `AntiPureError` where it cannot be reached."""
    try:
        import fsspec
    except ImportError:
        raise AntiPureError(
            f"{one_line(url)} is an address, which the package fsspec reads; pip install 'antipure[ray]' brings it."
        ) from None
    try:
        return fsspec.core.url_to_fs(url)
    except Exception as error:  # each kind of storage has exceptions of its own
        raise AntiPureError(f"{one_line(url)} cannot be reached ({one_line(reason(error))}).") from error


def join(base: str, relative: str) -> str:
    """A place below a folder or an address; relative has forward slashes."""
    if is_url(base):
        return f"{base.rstrip('/')}/{relative}"
    return os.path.join(base, *relative.split("/"))


def exists(place: str) -> bool:
    """Whether there is anything."""
    if not is_url(place):
        return os.path.lexists(place)
    system, path = open_url(place)
    try:
        return bool(system.exists(path))
    except Exception as error:
        raise AntiPureError(f"{one_line(place)} cannot be reached ({one_line(reason(error))}).") from error


def read(place: str) -> bytes:
    """All that a file holds. Raises `AntiPureError` where it is missing or cannot be read."""
    try:
        if not is_url(place):
            with open(place, "rb") as file:
                return file.read()
        system, path = open_url(place)
        return system.cat_file(path)
    except FileNotFoundError:
        raise AntiPureError(f"There is no picture {one_line(place)}; give another path, or copy it there.") from None
    except AntiPureError:
        raise
    except OSError as error:
        raise AntiPureError(f"{one_line(place)} cannot be read ({error.strerror or reason(error)}).") from error
    except Exception as error:
        if not is_url(place):
            raise
        raise AntiPureError(f"{one_line(place)} cannot be read ({one_line(reason(error))}).") from error


def write(place: str, content: bytes) -> None:
    """Write a file that appears complete or not at all, as object stores do by themselves.

    Raises `AntiPureError` where it cannot be written.
    """
    if not is_url(place):
        write_file(Path(place), content)
        return
    system, path = open_url(place)
    try:
        system.makedirs(path.rpartition("/")[0], exist_ok=True)
        system.pipe_file(path, content)
    except Exception as error:
        raise AntiPureError(f"{one_line(place)} cannot be written ({one_line(reason(error))}).") from error


def check_folder(place: str) -> None:
    """Raise `AntiPureError` now where a file in this folder could not be written later."""
    if not is_url(place):
        check_writable(Path(place))
        return
    probe = join(place, f".antipure-{os.getpid()}")
    write(probe, b"")
    system, path = open_url(probe)
    try:
        system.rm_file(path)
    except Exception as error:
        raise AntiPureError(f"{one_line(place)} cannot be tidied ({one_line(reason(error))}).") from error


def canonical(url: str) -> str:
    """An address in the form in which `walk` gives what lies below it."""
    system, path = open_url(url)
    return str(system.unstrip_protocol(path)).rstrip("/")


def walk(url: str) -> list[str]:
    """Addresses of all files below a folder's address, sorted; of the address alone where it is a file."""
    system, path = open_url(url)
    try:
        found = sorted(system.find(path))
    except Exception as error:
        raise AntiPureError(f"{one_line(url)} cannot be listed ({one_line(reason(error))}).") from error
    return [str(system.unstrip_protocol(each)) for each in found]


@contextmanager
def at_hand(place: str, content: bytes) -> Iterator[Path]:
    """A path with this content, which was read from the place: the file itself, or a copy while it is used."""
    if not is_url(place):
        yield Path(place)
        return
    name = re.sub(r"[^\w.-]", "_", place.rpartition("/")[2])[-80:] or "picture"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        yield path
