"""What is to be done: every picture's output name, and which are finished, failed before, or to be worked on."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ...methods.errors import AntiPureError
from ...methods.file_names import legal_name
from ..terminal import one_line
from . import places
from .inputs import Picture
from .manifest import Line, Manifest

ENDINGS = {"protect": "_protected", "purify": "_purified", "report": "_robustness", "measure": ""}
_LONGEST = 180  # bytes of a name; a number and an ending are added, and file systems take 255


@dataclass(frozen=True)
class Job:
    """One picture's work. picture: its place below the given folders. source: its path or address. others: those of
    what it is measured against. output: the name of what it gives, below the output folder, without ending."""

    command: str
    picture: str
    source: str
    others: tuple[str, ...]
    output: str

    @property
    def key(self) -> tuple[str, str]:
        return self.command, self.picture


@dataclass
class Plan:
    """todo: to be worked on. finished: lines of pictures that are as they should be. failed: lines of pictures that
    failed before and are not to be tried again."""

    todo: list[Job] = field(default_factory=list)
    finished: list[Line] = field(default_factory=list)
    failed: list[Line] = field(default_factory=list)


def sha256(place: str) -> str | None:
    """The checksum of a file, None where there is none that can be read."""
    try:
        return hashlib.sha256(places.read(place)).hexdigest()
    except AntiPureError:
        return None


def kept_place(source: str, out: str | None) -> str:
    """A source as the manifest keeps it: relative to the outputs' folder, so that both can be moved together."""
    if out is None or places.is_url(source) or places.is_url(out):
        return source
    try:
        return Path(os.path.relpath(source, out)).as_posix()
    except ValueError:  # another drive
        return source


def found_place(kept: str, out: str | None) -> str:
    """What `kept_place` was given."""
    return kept if out is None or places.is_url(kept) else os.path.normpath(os.path.join(out, kept))


def same_settings(line: Mapping[str, Any], settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> bool:
    """Whether a line was made with these settings. One that the line does not know yet counts as its default then."""
    kept = line["settings"]
    return all(kept.get(name, defaults.get(name)) == value for name, value in settings.items()) and kept.keys() <= {
        *settings
    }


def make_jobs(
    command: str, pictures: Sequence[Picture], others: Sequence[tuple[str, ...]], lines: Mapping[tuple[str, str], Line]
) -> list[Job]:
    """A job for each picture; `others` go with them. A name once given in the manifest stays the picture's."""
    plain = [_name(command, picture, "plain") for picture in pictures]
    counts = Counter(name.casefold() for name in plain)
    taken = {line["output"].casefold() for line in lines.values()}
    jobs = []
    for picture, beside, name in zip(pictures, others, plain, strict=True):
        line = lines.get((command, picture.relative))
        if line is not None:
            chosen = line["output"]
        else:
            names = [*([name] if counts[name.casefold()] == 1 else []), _name(command, picture, "with ending")]
            names.append(_name(command, picture, "with digest"))
            chosen = next(each for each in names if each.casefold() not in taken or each == names[-1])
            taken.add(chosen.casefold())
        jobs.append(Job(command, picture.relative, picture.source, beside, chosen))
    return jobs


def _name(command: str, picture: Picture, form: str) -> str:
    """photo_protected for photo.jpg; where another picture takes that name: photo_jpg_protected."""
    path = PurePosixPath(picture.relative)
    stem, suffix = path.stem, path.suffix.lstrip(".")
    if form != "plain" and suffix:
        stem = f"{stem}_{suffix}"
    digest = hashlib.sha256(picture.relative.encode(errors="surrogateescape")).hexdigest()[:8]
    name = stem + ENDINGS[command]
    if form == "with digest" or len(name.encode(errors="surrogateescape")) > _LONGEST:
        kept = stem.encode(errors="surrogateescape")[: _LONGEST - 40].decode(errors="ignore")
        name = f"{kept}_{digest}{ENDINGS[command]}"
    folders = [part if part == ".." else legal_name(part) for part in path.parts[:-1]]
    return "/".join([*folders, legal_name(name)])


def check_no_input_is_an_output(jobs: Sequence[Job], out: str) -> None:
    """Raise `AntiPureError` where an output would take an input's place."""
    inputs = {_identity(source) for job in jobs for source in (job.source, *job.others)}
    for job in jobs:
        target = places.join(out, f"{job.output}.png")
        if _identity(target) in inputs:
            raise AntiPureError(
                f"{one_line(target)} is an input, and what {one_line(job.source)} becomes; give another --out."
            )


def _identity(place: str) -> str:
    return place if places.is_url(place) else os.path.normcase(os.path.realpath(place))


def plan(
    jobs: Sequence[Job],
    manifest: Manifest,
    settings: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    out: str,
    retry: bool,
) -> Plan:
    """Which jobs are to be done, by the manifest and by what inputs and outputs hold now.

    Raises `AntiPureError` where a picture's name is that of another one, elsewhere, whose output is in the folder.
    """
    found = Plan()
    for job in jobs:
        line = manifest.lines.get(job.key)
        if line is None:
            found.todo.append(job)
            continue
        now = [sha256(source) for source in (job.source, *job.others)]
        unchanged = now == [line["input_sha256"], *(other["sha256"] for other in line["others"])]
        before = found_place(line["input"], out)
        if not unchanged and _identity(before) != _identity(job.source) and places.exists(before):
            raise AntiPureError(
                f"{one_line(job.output)} in {one_line(out)} belongs to {one_line(before)}, not to "
                f"{one_line(job.source)}; give another --out."
            )
        if not unchanged or not same_settings(line, settings, defaults):
            found.todo.append(job)
        elif line.get("error"):
            (found.todo if retry else found.failed).append(job if retry else line)  # type: ignore[arg-type]
        elif all(sha256(places.join(out, each["path"])) == each["sha256"] for each in line["outputs"]):
            found.finished.append(line)
        else:
            found.todo.append(job)
    return found


def is_output_of(lines: Sequence[Line], claims: set[str], out: str) -> Callable[[str], bool]:
    """A function that tells whether a source is an output that these lines tell of, or that a run had begun to make."""
    known = {_identity(places.join(out, output["path"])) for line in lines for output in line["outputs"]}
    begun = {_identity(places.join(out, name)) for name in claims}

    def is_output(source: str) -> bool:
        place = _identity(source)
        name, _, ending = place.rpartition(".")
        return place in known or (
            ending.lower() == "png" and not begun.isdisjoint({name, re.sub(r"_\d{5}$", "", name)})
        )

    return is_output
