"""What a run of many pictures says: how far it is and how long it will take, what failed, and what came of it."""

from __future__ import annotations

import sys
import time
from collections import Counter
from types import TracebackType
from typing import Any

from ...methods.figures.text_table import text_table
from ...nodes.progress import duration
from ..terminal import complain, one_line
from .manifest import Line

_LINE_SECONDS = 30  # between lines where no bar can be drawn
_LONGEST_NAME = 40
_MOST_NOTES = 5  # of one kind


class Console:
    """Progress of the whole and of the pictures at work, with the time left; use as a context manager.

    A bar in a terminal; elsewhere a line now and then.
    """

    def __init__(self, total: int):
        self.total, self.done = total, 0
        self._parts: dict[str, float] = {}
        self._began = self._last = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Console:
        from tqdm import tqdm

        form = "{l_bar}{bar}| {n:.1f}/{total} [{elapsed}, {remaining} left{postfix}]"
        self._bar = tqdm(total=self.total, unit="picture", disable=None, dynamic_ncols=True, bar_format=form)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._bar.close()

    def tell(self, picture: str, share: float) -> None:
        """How far a picture is, 0..1."""
        self._parts[picture] = share
        self._show()

    def finished(self, picture: str, error: str | None) -> None:
        """A picture is done, or failed with a sentence."""
        self._parts.pop(picture, None)
        self.done += 1
        if self.done == 1:  # the models were loaded in its time
            self._began = time.monotonic()
        if error is not None:
            self._bar.clear()
            complain(f"{one_line(picture)}: {error}")
        self._show()

    def _show(self) -> None:
        now = time.monotonic()
        if not self._bar.disable:
            self._bar.n = min(self.done + sum(self._parts.values()), self.total)
            at_work = ", ".join(f"{_short(name)} {share:.0%}" for name, share in list(self._parts.items())[:3])
            self._bar.set_postfix_str(at_work, refresh=False)
            self._bar.refresh()
        elif now - self._last > _LINE_SECONDS and self.done > 1:
            self._last = now
            left = (now - self._began) / (self.done - 1) * (self.total - self.done)
            print(f"antipure: {self.done} of {self.total} pictures, {duration(left)} left", file=sys.stderr, flush=True)


def _short(name: str) -> str:
    line = one_line(name)
    return line if len(line) <= _LONGEST_NAME else f"…{line[1 - _LONGEST_NAME :]}"


def tell_notes(lines: list[Line]) -> None:
    """What was converted or left out of pictures; of what concerns many of them the first ones."""
    alike = Counter[str]()
    for line in lines:
        name = one_line(line["picture"].rpartition("/")[2])
        for note in line["notes"]:
            kind = note.removeprefix(name).strip()
            alike[kind] += 1
            if alike[kind] <= _MOST_NOTES:
                complain(note)
    for kind, count in alike.items():
        if count > _MOST_NOTES:
            complain(f"{count - _MOST_NOTES} more: … {kind}")


def summary(lines: list[Line], counts: Counter[str], seconds: float) -> str:
    """A table of what became of the pictures, and of the figures of those that succeeded.

    counts: of pictures "done", "finished before", "failed", "failed before", "not reached".
    """
    table = text_table(["pictures", ""], [[name, str(count)] for name, count in counts.items() if count])
    figures = [line["figures"] for line in lines if not line.get("error")]
    rows = []
    for name in dict.fromkeys(name for found in figures for name in found):
        values = sorted(found[name] for found in figures if isinstance(found.get(name), (int, float)))
        if values and name not in ("width", "height", "frames"):
            shown = (values[0], sum(values) / len(values), values[-1])
            rows.append([name.replace("_", " "), *(f"{value:.4g}" for value in shown)])
    parts = [table, *([text_table(["figure", "lowest", "mean", "highest"], rows)] if rows else [])]
    each = f", {seconds / counts['done']:.2f} s a picture" if counts["done"] else ""
    return "\n\n".join([*parts, f"in {duration(seconds)}{each}"])


def measured(lines: list[Line]) -> str:
    """A table of every picture's figures."""
    found = [line for line in lines if not line.get("error")]
    names = [
        name
        for name in dict.fromkeys(name for line in found for name in line["figures"])
        if all(isinstance(line["figures"].get(name), (int, float, type(None))) for line in found)
    ]
    head = ["picture", *(name.replace("_", " ") for name in names)]
    rows = [[_short(line["picture"]), *(_figure(line["figures"].get(name)) for name in names)] for line in found]
    return text_table(head, rows)


def _figure(value: float | None) -> str:
    return "equal" if value is None else f"{value:.4g}"
