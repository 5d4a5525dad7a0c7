"""From what somebody typed to pictures: files, folders, globs, lists (@list.txt) and standard input (-)."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...methods.errors import AntiPureError
from ..terminal import one_line
from . import places

# Names of files that folders and globs are searched for; what is named by itself may have any.
ENDINGS = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".tga"),
)
STDIN = "-"
SHEET = "antipure_sheet.png"  # what a run adds to its outputs, and no picture of them


@dataclass(frozen=True)
class Picture:
    """source: an absolute path or an address. relative: where below the given folders it lies, with forward slashes."""

    source: str
    relative: str


@dataclass
class Found:
    """pictures: in the order of the arguments, folders sorted. root: the folder they all lie in. notes: what was left
    out on purpose, in words. problems: what could not be looked into, in words."""

    pictures: list[Picture]
    root: str = ""
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def is_many(argument: str) -> bool:
    """Whether this asks for more than a single file by its name."""
    if argument == STDIN or places.is_url(argument) or argument.lower().startswith("file://"):
        return True
    path = os.path.expanduser(argument)
    try:
        if os.path.isfile(path):
            return False
        return os.path.isdir(path) or argument.startswith("@") or glob.has_magic(argument)
    except ValueError:  # names that cannot be
        return False


def find(arguments: Iterable[str], *, is_output: Callable[[str], bool] = lambda source: False) -> Found:
    """The pictures that the arguments name, each once.

    is_output: whether a file in a folder is none of the inputs, but what an earlier run wrote there.
    Raises `AntiPureError` for lists that cannot be read, and where no picture is named at all.
    """
    found = Found([])
    bases: dict[str, str] = {}  # of each source, where it was found below
    counts = dict.fromkeys(("other", "output"), 0)
    for argument in _lines(arguments):
        for source, base, by_name in _sources(argument, found.problems):
            name = os.path.basename(source)
            if by_name and not name.lower().endswith(ENDINGS):
                counts["other"] += 1
            elif by_name and (name == SHEET or is_output(source)):
                counts["output"] += 1
            else:
                bases.setdefault(source, base)
    if counts["other"]:
        found.notes.append(f"{_files(counts['other'])} left out, being no pictures by their names.")
    if counts["output"]:
        found.notes.append(f"{_files(counts['output'])} left out, being outputs of earlier runs.")
    if not bases:
        raise AntiPureError("There is no picture among what was given; give files, folders, globs, @list.txt or '-'.")
    found.root = _common(list(dict.fromkeys(bases.values())))
    found.pictures = [Picture(source, _relative(source, found.root)) for source in bases]
    return found


def _files(count: int) -> str:
    return "1 file is" if count == 1 else f"{count} files are"


def _lines(arguments: Iterable[str]) -> Iterator[str]:
    """The arguments, with those that lists and standard input hold in their place."""
    for argument in arguments:
        if argument == STDIN:
            yield from _listed(sys.stdin.buffer.read(), "standard input")
        elif argument.startswith("@") and not os.path.exists(argument):
            path = os.path.expanduser(argument[1:])
            try:
                content = Path(path).read_bytes()
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or error
                raise AntiPureError(f"The list {one_line(path)} cannot be read ({one_line(why)}).") from error
            yield from _listed(content, path)
        else:
            yield argument


def _listed(content: bytes, name: str) -> Iterator[str]:
    """One path a line, or between NULs (find -print0); empty lines and those that begin with # are none."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):  # as PowerShell writes lists
        text = content.decode("utf-16", "replace")
    else:
        text = os.fsdecode(content.removeprefix(b"\xef\xbb\xbf"))
    lines = text.split("\0") if "\0" in text else text.splitlines()
    found = [line for line in lines if line.strip() and not line.startswith("#")]
    if not found:
        raise AntiPureError(f"The list {one_line(name)} names no picture; write one path a line.")
    yield from found


def _sources(argument: str, problems: list[str]) -> Iterator[tuple[str, str, bool]]:
    """Of one argument: sources, the folder each was found below, and whether its name has to be a picture's."""
    argument = places.plain(argument)
    if places.is_url(argument):
        address = places.canonical(argument)
        listed = places.walk(address)
        if not listed or listed == [address]:
            yield address, address.rpartition("/")[0], False
        else:
            yield from ((each, address, True) for each in listed)
        return
    path = os.path.abspath(os.path.expanduser(argument))
    if os.path.isdir(path):
        yield from ((each, path, True) for each in _walk(path, problems))
    elif glob.has_magic(argument) and not os.path.lexists(path):
        matches = sorted(match for match in glob.glob(path, recursive=True) if os.path.isfile(match))
        if not matches:
            raise AntiPureError(f"No file matches {one_line(argument)}; mind quotes and the folder you are in.")
        parts = Path(path).parts
        fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        yield from ((match, os.path.join(*parts[:fixed]), True) for match in matches)
    else:
        yield path, os.path.dirname(path), False


def _walk(folder: str, problems: list[str]) -> Iterator[str]:
    def unreadable(error: OSError) -> None:
        problems.append(f"{one_line(error.filename)} cannot be looked into ({error.strerror}).")

    for place, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(place, name) for name in sorted(names) if not name.startswith("."))


def _common(bases: list[str]) -> str:
    """The folder that all bases lie in."""
    if len(bases) == 1:
        return bases[0]
    if any(map(places.is_url, bases)):
        first = bases[0].split("/")
        shared = os.path.commonprefix([base.split("/") for base in bases])
        if len(shared) < 3 or not places.is_url(bases[0]) or shared[2] != first[2]:
            raise AntiPureError("Pictures here and at other addresses lie in no common folder; give them in two runs.")
        return "/".join(shared)
    try:
        return os.path.commonpath(bases)
    except ValueError:
        raise AntiPureError("The pictures lie on different drives; give those of each drive in a run.") from None


def _relative(source: str, root: str) -> str:
    if places.is_url(source):
        return source[len(root) :].lstrip("/")
    return Path(os.path.relpath(source, root)).as_posix()
