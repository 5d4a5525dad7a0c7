"""Which pictures belong together: originals and what was made of them, told by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from ...methods.errors import AntiPureError
from ..terminal import one_line
from .inputs import Picture
from .plan import ENDINGS


def pair(originals: Sequence[Picture], made: Sequence[Picture]) -> tuple[list[tuple[Picture, Picture]], list[str]]:
    """Each of `made` with its original, and a sentence for each that has none.

    A single original belongs to all. Else photo_protected.png, photo_protected_00001_.png and photo.webp belong to
    photo.jpg of the same folder below what was given; photo_jpg_protected.png, where there is a photo.png, too.
    """
    if len(originals) == 1:
        return [(originals[0], picture) for picture in made], []
    by_name: dict[str, list[Picture]] = {}
    for original in originals:
        path = PurePosixPath(original.relative.casefold())
        for name in {path.stem, f"{path.stem}_{path.suffix.lstrip('.')}"}:
            by_name.setdefault(str(path.with_name(name)), []).append(original)
    pairs, problems = [], []
    for picture in made:
        path = PurePosixPath(picture.relative.casefold())
        found = next((by_name[name] for name in _names(path) if name in by_name), [])
        if len(found) > 1:  # of photo.png and photo.jpg the one with the same ending
            found = [each for each in found if each.relative.casefold().endswith(path.suffix)] or found
        if len(found) == 1:
            pairs.append((found[0], picture))
        else:
            what = "several originals" if found else "no original"
            problems.append(f"{one_line(picture.relative)} has {what} by its name.")
    if not pairs:
        raise AntiPureError(
            "No picture has an original by its name; photo_protected.png or photo.png belong to photo.jpg in a folder "
            "of the same structure."
        )
    return pairs, problems


def _names(path: PurePosixPath) -> list[str]:
    """What the original may be called: as the picture, then without what commands add, one after another."""
    stems, added = [path.stem], rf"(_\d{{5}}_?|{'|'.join(ending for ending in ENDINGS.values() if ending)})$"
    while (shorter := re.sub(added, "", stems[-1])) != stems[-1]:
        stems.append(shorter)
    return [str(path.with_name(stem)) for stem in stems if stem]
