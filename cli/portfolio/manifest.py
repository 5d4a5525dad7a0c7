"""The manifest of a run: what became of every picture, one line of JSON each (JSON Lines).

A line is appended, whole, after the picture's outputs are on the disk. Lines of pictures that are done again are taken
out before the work begins, so that no picture ever has two. Beside the manifest, while pictures are outstanding, lies a
file of claims: names of outputs that a run began to make, which a later run may therefore replace.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...methods.errors import AntiPureError
from ...methods.files import check_writable, write_file

NAME = "antipure_manifest.jsonl"
VERSION = 1
Line = dict[str, Any]


def key_of(line: Line) -> tuple[str, str]:
    """What tells lines apart: the command, and the picture's place below the folders given."""
    return line["command"], line["picture"]


def read_lines(path: Path) -> list[Line]:
    """The lines of a manifest, the last one for each picture. A last line that is cut off, as a lost power supply may
    leave it, is none. Raises `AntiPureError` for a file that is no manifest."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise AntiPureError(f"The manifest {path} cannot be read ({error.strerror}).") from error
    found: dict[tuple[str, str], Line] = {}
    for number, text in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            line = json.loads(text)
            key = key_of(line)
            known = line["version"] <= VERSION and isinstance(line["settings"], dict) and all(map(_is_text, key))
        except (ValueError, TypeError, KeyError, RecursionError):
            known = False
        if not known:
            raise AntiPureError(f"{path} is no manifest that is understood here (line {number}); move it elsewhere.")
        found.pop(key, None)
        found[key] = line
    return list(found.values())


def read_claims(path: Path) -> set[str]:
    """Names of outputs, without endings, that runs with this manifest began to make and did not write down."""
    try:
        found = json.loads(_claims_file(path).read_bytes())
    except FileNotFoundError:
        return set()
    except (OSError, ValueError) as error:
        raise AntiPureError(f"{_claims_file(path)} cannot be read; remove it.") from error
    return {name for name in found if isinstance(name, str)} if isinstance(found, list) else set()


def _claims_file(path: Path) -> Path:
    return path.with_name(f".{path.stem}.claims.json")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


class Manifest:
    """An open manifest: nobody else writes to it meanwhile. Use as a context manager.

    path: a local file, made when the first line comes. Raises `AntiPureError` where it cannot be written or another run
    has it open.
    """

    def __init__(self, path: Path):
        self.path = path
        check_writable(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(path.with_name(f".{path.name}.lock"), path)
        try:
            self.lines = {key_of(line): line for line in read_lines(path)}
            self.claims = read_claims(path)
            self._write(self.lines.values())  # without what was cut off
            self._file = self._open()
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
        os.close(self._lock)

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))

    def outputs(self) -> set[str]:
        """Names of all outputs that the lines tell of, below the folder of the outputs."""
        return {output["path"] for line in self.lines.values() for output in line["outputs"]}

    def begin(self, keys: Collection[tuple[str, str]], names: Iterable[str]) -> None:
        """Take the lines of pictures out that are to be worked on, and claim the names of what they give."""
        taken = [self.lines.pop(key) for key in keys if key in self.lines]
        self.claims |= {*names, *(output["path"] for line in taken for output in line["outputs"])}
        self._write_claims()
        if taken:
            os.close(self._file)  # Windows replaces no file that is open
            try:
                self._write(self.lines.values())
            finally:
                self._file = self._open()

    def append(self, line: Line) -> None:
        """Add a picture's line: whole and on the disk, or not at all.

        Raises `AntiPureError` where it cannot be written, the file was removed, or the picture has a line already.
        """
        key = key_of(line)
        if key in self.lines:
            raise AntiPureError(f"{line['picture']} has a line in {self.path} already; that is a defect, report it.")
        text = json.dumps({"version": VERSION, **line}).encode() + b"\n"
        self.check_there()
        before = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, text)
            if written < len(text):
                os.write(self._file, text[written:])
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, before)
            raise AntiPureError(
                f"The manifest {self.path} cannot be written ({error.strerror}); free space, then run the same command "
                "again: it goes on where it stopped."
            ) from error
        self.lines[key] = line

    def check_there(self) -> None:
        """Raise `AntiPureError` where the file that is open is no longer the one at its path."""
        try:
            same = os.path.samestat(os.stat(self.path), os.fstat(self._file))
        except OSError:
            same = False
        if not same:
            raise AntiPureError(
                f"{self.path.parent} or the manifest in it was removed or replaced meanwhile; run the same command "
                "again."
            )

    def end(self, outstanding: Iterable[str]) -> None:
        """Keep the claims of those outputs only that are still to be made. What claims too much does no harm."""
        with suppress(AntiPureError, OSError):
            self.check_there()
            self.claims &= set(outstanding)
            self._write_claims()

    def _write_claims(self) -> None:
        if self.claims:
            write_file(_claims_file(self.path), json.dumps(sorted(self.claims)).encode())
        else:
            _claims_file(self.path).unlink(missing_ok=True)

    def _write(self, lines: Iterable[Line]) -> None:
        whole = b"".join(json.dumps({"version": VERSION, **line}).encode() + b"\n" for line in lines)
        if not self.path.exists() or self.path.read_bytes() != whole:
            write_file(self.path, whole)


def _locked(lock: Path, path: Path) -> int:
    """An open file that is locked until it is closed or the process ends, however it ends."""
    try:
        file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise AntiPureError(f"{path} cannot be written ({error.strerror}); choose another place.") from error
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            os.close(file)
            raise AntiPureError(
                f"Another run is writing to {path}; wait for its end, or give another --out."
            ) from error
        # A file system that knows no locks: two runs at once are then the user's care.
    return file


_HELD = {11, 13, 35, 36}  # EAGAIN, EACCES; EAGAIN and EDEADLOCK by other systems' numbers
