"""The options of `antipure` that concern many pictures, and when a command is about many."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import places
from .inputs import is_many

ENGINES = ("processes", "ray")
# Options about how a run goes, not about what becomes of a picture.
OF_THE_RUN = ("workers", "threads", "engine", "address", "retry", "manifest", "page")
_ABOUT_MANY = (*OF_THE_RUN, "keep_exif")


def out_folder(text: str) -> Path | str:
    """A folder here as a path, an address as it is."""
    return text if places.is_url(text) else Path(places.plain(text))


def add_options(parser: argparse.ArgumentParser, *, pictures: bool) -> None:
    """The options for many pictures; pictures: whether the command saves them."""
    group = parser.add_argument_group("many pictures (folders, globs, @list.txt, - for standard input)")
    group.add_argument("--workers", type=int, metavar="N", help="so many processes, or actors of Ray (default 1)")
    group.add_argument("--threads", type=int, metavar="N",
                       help="threads of each worker (default: torch's own; of several their share)")  # fmt: skip
    group.add_argument("--engine", choices=ENGINES, help="who does the work (default: processes here)")
    group.add_argument("--address", metavar="ADDRESS", help="of a running Ray cluster, e.g. auto, or ray://HOST:10001")
    group.add_argument("--retry", action="store_true", help="try pictures again that failed in an earlier run")
    group.add_argument("--manifest", type=Path, metavar="FILE",
                       help="where it is written down what became of each picture (default: in --out)")  # fmt: skip
    if pictures:
        group.add_argument("--keep-exif", action="store_true",
                           help="keep all EXIF and XMP data, not the creator's name and rights alone")  # fmt: skip
    group.add_argument("--page", action="store_true",
                       help="also a contact sheet and an HTML page with before and after; both hold parts of your "
                       "unprotected pictures")  # fmt: skip


def about_many(args: argparse.Namespace) -> bool:
    """Whether a command is about more than single files by their names, saved as they always were."""
    given = {
        "protect": ("picture", "more"),
        "purify": ("picture", "more"),
        "measure": ("reference", "image"),
        "report": ("picture", "protected"),
    }.get(args.command)
    if given is None:
        return False
    values = [value for name in given for value in _listed(getattr(args, name))]
    return (
        any(map(is_many, values))
        or bool(getattr(args, "more", ()))
        or isinstance(args.out, str)
        or any(getattr(args, name, None) for name in _ABOUT_MANY)
    )


def _listed(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]
