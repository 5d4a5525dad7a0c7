"""The Markdown page of `benchmarks.speed`."""

from __future__ import annotations

from antipure.methods.figures.text_table import text_table

TITLES = {
    "floor": "Over the bare batched network (lower is better, 1 is the floor)",
    "plain": "Plain code over ours (higher is better)",
    "kernels": "Primitives, a batch of 4 pictures in float32: least bytes moved, and bandwidth",
    "pixels": "Cost and peak memory by size",
    "fast": "`fast` against `strong`, development pictures",
    "substeps": "GrIDPure, 10 iterations, at fewer timesteps: time over all ten's, and quality",
    "options": "With an option over without (lower is better)",
}


def markdown(results: dict) -> str:
    """One table a part and device; a device without results gets a line that says so."""
    lines = [f"{results['machine']}; medians of {results['repeats']} interleaved repeats.", ""]
    if results["quick"]:
        lines += ["A quick look at a small picture: no figures to quote.", ""]
    for device, parts in results["devices"].items():
        lines += [f"## {device}", ""]
        if not parts:
            lines += ["No such device was at hand: nothing measured.", ""]
        for part, rows in parts.items():
            lines += [f"**{TITLES[part]}**", "", table(rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def table(rows: list[dict]) -> str:
    """The rows' keys as columns, in the order in which they first appear; what a row lacks stays empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return text_table(columns, [[_cell(row.get(column)) for column in columns] for row in rows])


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
