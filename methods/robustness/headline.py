"""One line for each protection, before all figures: does it hold, against whom, and is it seen."""

from __future__ import annotations

from .report import MATCHED, RANDOM, Column, Report, level_of

# rms levels that an eye-like blur leaves of luma or chroma: a hundredth of mid-grey, which by Weber's law is just about
# noticed side by side.
SEEN = 1.3
_NAMED = 3  # attackers that are named; of more their number


def headlines(report: Report) -> str:
    """A line for each protection: "strong: holds in part (...). Visible: yes." """
    return "\n".join(headline(report, protection) for protection in report.protections)


def headline(report: Report, protection: str) -> str:
    """Whether a protection holds, by the levels of the verdict: the lower one of the ratios to both kinds of noise.

    "holds": it survives all judging purifiers. "holds in part": it survives some, or some in part. "does not hold":
    none leaves more of it than noise. Judging are the diffusion purifiers, or the transforms where there are no others.
    """
    found = {column: _level(report, protection, column) for column in report.judging}
    kept, partly, lost = ([c for c, level in found.items() if level == wanted] for wanted in _LEVELS)
    total = len(found)
    if len(kept) == total:
        what = f"holds against {_attackers(kept, total)}"
    elif not kept and not partly:
        what = f"does not hold against {_attackers(lost, total)}"
    else:
        parts = [f"against {_attackers(kept, total)}"] if kept else []
        parts += [f"partly against {_attackers(partly, total)}"] if partly else []
        parts += [f"not against {_attackers(lost, total)}"] if lost else []
        what = f"holds in part: {', '.join(parts)}"
    return f"{protection}: {what}.{_visible(report, protection)}"


_LEVELS = (level_of(3.0), level_of(1.5), level_of(0.0))


def _level(report: Report, protection: str, column: Column) -> str:
    return level_of(min(report.mean_ratio(protection, column, control) for control in (MATCHED, RANDOM)))


def _attackers(columns: list[Column], total: int) -> str:
    if len(columns) == total and total > 1:
        return f"all {total} purifiers" if columns[0].diffusion else f"all {total} transforms"
    names = [column.name + (f" ({column.denoiser})" if column.denoiser else "") for column in columns]
    return ", ".join(names) if len(names) <= _NAMED else f"{len(names)} of {total} purifiers"


def _visible(report: Report, protection: str) -> str:
    """By the picture that is seen most; "" for reports that did not look."""
    rows = [report.row(i, "protection", protection) for i in range(report.pictures)]
    seen = [max(row.looks.seen_luma, row.looks.seen_chroma) for row in rows if row.looks is not None]
    if not seen:
        return ""
    return f" Visible: {'yes' if max(seen) > SEEN else 'barely'}."
