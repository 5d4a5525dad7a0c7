"""What a defence report holds and how it is written: shares with their cases and intervals, as text and as data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..errors import AntiPureError
from ..figures.text_table import text_table
from .defence_metrics import wilson

INPUTS = (
    "picture as it is",
    "random noise",
    "JPEG",
    "Disrupting",
    "Disrupting + JPEG",
    "Disrupting, leaked patch",
    "Disrupting, leaked patch + JPEG",
)
STRONG = ("strong defender", "strong defender + JPEG")
UNIVERSAL = ("CMUA-Watermark", "CMUA-Watermark + JPEG")
TRANSFERRED = ("Disrupting, another patch", "Disrupting, another patch + JPEG")
# The columns about disruption, and about the warning: field of `Row` -> heading.
DISRUPTED = {
    "original": "disrupted, original",
    "patched": "disrupted, patched",
    "against_original": "patched, vs the original's edit",
}
SEEN = {"visible": "warning visible", "visible_jpeg": "after JPEG", "visible_painted": "after painting over"}


@dataclass(frozen=True)
class Row:
    """One kind of input, over all faces and edits.

    original, patched: share of edits that the input disrupts in each network: masked L2 to the *same network's* edit
    of the plain picture above 0.05. against_original: the patched network's output against the *original network's*
    edit of the plain picture, within that edit's mask: what a user of the patched network gets instead of the edit.
    visible, visible_jpeg, visible_painted: share of the patched network's edits that show the warning (correlation of
    at least 0.5 with it, less the original's edit of the plain picture), that still do after the edit is saved as
    JPEG, and after the input's pixels are pasted over the warning's usual place; NaN for a patch without a warning.
    cases: how many edits each share was counted in, by the field's name; edits that change nothing are not among them.
    mean_l2: the means of the masked L2 behind `original`, `patched` and `against_original`.
    """

    input: str
    original: float
    patched: float
    visible: float
    visible_jpeg: float
    against_original: float = math.nan
    visible_painted: float = math.nan
    cases: Mapping[str, int] = field(default_factory=dict)
    mean_l2: Mapping[str, float] = field(default_factory=dict)

    def interval(self, column: str) -> tuple[float, float]:
        """Wilson's 95 % interval of a share, by the field's name."""
        return wilson(getattr(self, column), self.cases.get(column, 0))


@dataclass(frozen=True)
class DefenceReport:
    """rows: see `Row`. psnr, ssim: patched edits of plain pictures against the original network's, means.

    examples: for the first face and edit, pictures 1×3×H×W in 0..1 by name.
    """

    rows: list[Row]
    psnr: float
    ssim: float
    faces: int
    edits: tuple[str, ...]
    quality: int
    examples: dict[str, Tensor]

    def markdown(self) -> str:
        """The table, percentages of the edits, a dash where nothing can be said; then cases and intervals."""
        warns = any(not math.isnan(row.visible) for row in self.rows)
        columns = ["original", "patched", *(SEEN if warns else ()), "against_original"]
        headings = {**DISRUPTED, **SEEN, "visible_jpeg": f"after JPEG {self.quality}"}
        names = [row.input.replace("JPEG", f"JPEG {self.quality}") for row in self.rows]
        shares = [
            [name, *(_percent(getattr(row, column)) for column in columns)]
            for name, row in zip(names, self.rows, strict=True)
        ]
        spread = [
            [name, *(_counted(row, column) for column in columns)] for name, row in zip(names, self.rows, strict=True)
        ]
        total = self.faces * len(self.edits)
        return (
            f"{text_table(['input', *(headings[c] for c in columns)], shares)}\n\n"
            f"{self.faces} faces, edits {', '.join(self.edits)}; patched against original edits of plain pictures: "
            f"{self.psnr:.2f} dB, SSIM {self.ssim:.4f}.\n\n"
            "'disrupted' compares each network with its own edit of the plain picture, the last column the patched "
            f"network with the original's. 95 % intervals (Wilson) and valid cases of {total}; an edit that changes "
            "nothing is no case:\n\n"
            f"{text_table(['interval, cases', *(headings[c] for c in columns)], spread)}"
        )

    def data(self) -> dict[str, object]:
        """The report without its pictures, as plain values: for JSON. What cannot be said is None."""
        rows = []
        for row in self.rows:
            values: dict[str, Any] = {"input": row.input}
            for column in (*DISRUPTED, *SEEN):
                share, (low, high) = getattr(row, column), row.interval(column)
                if not math.isnan(share):
                    cases = row.cases.get(column, 0)
                    values[column] = {"share": share, "cases": cases, "interval": [low, high]}
                    if column in row.mean_l2:
                        values[column] |= {"mean_l2": row.mean_l2[column]}
                else:
                    values[column] = None
            rows.append(values)
        settings = {"faces": self.faces, "edits": list(self.edits), "quality": self.quality}
        return {**settings, "psnr": self.psnr, "ssim": self.ssim, "rows": rows}

    def row(self, name: str) -> Row:
        """The row of an input."""
        return next(row for row in self.rows if row.input == name)


def pooled(reports: Sequence[Mapping[str, Any]]) -> DefenceReport:
    """One report of several, each as `DefenceReport.data` gives it, about other faces under the same settings.

    Shares and cases add up exactly; there are no examples. Raises `AntiPureError` for settings that differ.
    """
    first = reports[0]
    same = ("edits", "quality")
    inputs = [row["input"] for row in first["rows"]]
    if any(
        [r[k] for k in same] != [first[k] for k in same] or [x["input"] for x in r["rows"]] != inputs for r in reports
    ):
        raise AntiPureError("These reports have other edits, rows or a JPEG quality of their own; measure them alike.")
    rows = []
    for i, name in enumerate(inputs):
        values: dict[str, float] = {}
        cases: dict[str, int] = {}
        l2: dict[str, float] = {}
        for column in (*DISRUPTED, *SEEN):
            parts = [part for r in reports if (part := r["rows"][i][column]) is not None]
            cases[column] = sum(part["cases"] for part in parts)
            hits = sum(round(part["share"] * part["cases"]) for part in parts)
            values[column] = hits / cases[column] if cases[column] else math.nan
            if cases[column] and column in DISRUPTED:
                l2[column] = sum(part["mean_l2"] * part["cases"] for part in parts) / cases[column]
        rows.append(Row(name, cases=cases, mean_l2=l2, **values))
    faces = sum(r["faces"] for r in reports)
    means = [sum(r[name] * r["faces"] for r in reports) / faces for name in ("psnr", "ssim")]
    return DefenceReport(rows, means[0], means[1], faces, tuple(first["edits"]), first["quality"], {})


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"


def _counted(row: Row, column: str) -> str:
    low, high = row.interval(column)
    cases = row.cases.get(column, 0)
    return f"-, {cases}" if math.isnan(low) else f"{100 * low:.1f}..{100 * high:.1f} %, {cases}"
