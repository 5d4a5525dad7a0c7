"""What reaches a terminal: text from servers, workflows and file names, without what a terminal would obey."""

from __future__ import annotations

import json
import sys
import unicodedata
from typing import TextIO

_JOINERS = "\u200c\u200d"  # invisible, but part of words and emoji
_LONGEST = 2000


def printable(text: str) -> str:
    """The text with every character that controls a terminal or turns a line's direction as its JSON escape (\\u001b).

    Newlines and tabs stay, and JSON stays the JSON it is.
    """
    return "".join(json.dumps(c)[1:-1] if controls(c) and c not in "\n\t" else c for c in text)


def one_line(text: object, limit: int = 300) -> str:
    """Anything as one printable line; what is longer than `limit` characters loses its middle."""
    try:
        line = printable(" ".join(str(text).split()))
    except RecursionError:  # lists in lists without end
        return type(text).__name__
    if len(line) <= limit:
        return line
    return f"{line[: 2 * limit // 3]}...{line[-(limit // 3 - 3) :]}"


def show(text: object) -> None:
    """Print a text, made `printable`; what the terminal has no letters for is escaped, too."""
    _write(printable(str(text)), sys.stdout)


def complain(message: object) -> None:
    """Print an error's sentence as one line on stderr."""
    _write(f"antipure: {one_line(message, _LONGEST)}", sys.stderr)


def controls(character: str) -> bool:
    """Whether a character does something to a terminal or a name instead of standing in it."""
    kind = unicodedata.category(character)
    return kind in ("Cc", "Cs", "Zl", "Zp") or (kind == "Cf" and character not in _JOINERS)


def _write(text: str, stream: TextIO) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)
