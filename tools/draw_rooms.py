"""Draw the rooms of the house and who imports whom, from the code: `python -m tools.draw_rooms` writes docs/rooms.svg.

A room is a folder of methods/, or one of nodes/, cli/ and kernels/ as a whole; the files directly in methods/ that
import no room are the ground they all stand on, each other one is a box of its own. Every room stands above all it
imports. Arrows that follow from others are pale. Needs matplotlib, which the package brings along.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import math
import random
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("nodes", "cli", "methods", "kernels")
GROUND = "ground"
Graph = dict[str, set[str]]


@dataclass(frozen=True)
class Import:
    """One import of the package's own: `module`, "methods.attacks.pgd.pgd", in a line of `importer`, "nodes.protect".

    What is imported from a module stands behind it, as it may be a module, too.
    """

    importer: str
    module: str
    path: Path
    line: int


def imports(root: Path = ROOT) -> list[Import]:
    """All imports within the package below `root`, also those inside functions, with relative ones resolved.

    Names begin below the package: "antipure.methods.files" and a relative "..files" are both "methods.files".
    """
    found = []
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        *folders, stem = path.relative_to(root).with_suffix("").parts
        importer = ".".join(folders if stem == "__init__" else [*folders, stem])
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for module in _imported(node, folders):
                    found.append(Import(importer, module.removeprefix("antipure."), path, node.lineno))
    return found


def _imported(node: ast.Import | ast.ImportFrom, folders: list[str]) -> Iterator[str]:
    """The modules of the package, and names within modules, that an import statement of a file in `folders` names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name.startswith("antipure."))
        return
    module = [node.module] if node.module else []
    if node.level:
        module = [*folders[: len(folders) - node.level + 1], *module]
    elif not (node.module or "").startswith("antipure"):
        return
    yield from (".".join([*module, alias.name]) for alias in node.names)


def within(module: str, place: str) -> bool:
    """Whether a module, or a name within one, is `place` or lies below it."""
    return module == place or module.startswith(f"{place}.")


def rooms(root: Path = ROOT) -> Graph:
    """Each room with the rooms it imports. Raises `SystemExit` where rooms import each other in a circle."""
    everything = imports(root)
    folders = {path.name for path in (root / "methods").iterdir() if path.is_dir()}
    files = {path.stem for path in (root / "methods").glob("*.py")} - {"__init__"}

    def room_of(module: str) -> str | None:
        first, *rest = module.split(".")
        if first != "methods":
            return first if first in PACKAGES else None
        return rest[0] if rest and rest[0] in folders | files else None

    graph: Graph = {}
    for each in everything:
        importer, imported = room_of(each.importer), room_of(each.module)
        if importer and imported:
            graph.setdefault(imported, set())
            graph.setdefault(importer, set()).update({imported} - {importer})
    graph = _with_ground(graph, files)
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise SystemExit(f"Rooms import each other in a circle: {' -> '.join(error.args[1])}.") from error
    return graph


def _with_ground(graph: Graph, files: set[str]) -> Graph:
    """The graph with those of `files` that import none but each other as one box."""
    ground = files & set(graph)
    while above := {name for name in ground if graph[name] - ground}:
        ground -= above

    def box(name: str) -> str:
        return GROUND if name in ground else name

    merged: Graph = {}
    for name, imported in graph.items():
        merged.setdefault(box(name), set()).update({box(other) for other in imported} - {box(name)})
    return merged


def floors(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Rooms from the ground up, each one floor above the highest that it imports."""
    level: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        level[name] = max((level[other] + 1 for other in graph[name]), default=0)
    return [sorted(name for name in level if level[name] == floor) for floor in range(max(level.values()) + 1)]


def implied(graph: Mapping[str, set[str]], importer: str, imported: str) -> bool:
    """Whether one room reaches the other through a third, too."""

    def reached(name: str) -> bool:
        return name == imported or any(reached(other) for other in graph[name])

    return any(reached(other) for other in graph[importer] - {imported})


def files_of(room: str, graph: Graph, root: Path = ROOT) -> list[str]:
    """The names of a room's files, without the folder's own `__init__` and without Triton's twins."""
    methods = root / "methods"
    if room == GROUND:
        return sorted(path.stem for path in methods.glob("*.py") if path.stem not in {"__init__", *graph})
    folder = root / room if room in PACKAGES else methods / room
    names = sorted(path.stem for path in folder.glob("*.py"))
    return [name for name in names if name != "__init__" and not name.startswith("triton_")]


def as_text(graph: Graph, root: Path = ROOT) -> str:
    """Rooms, their files and imports in one line. The picture carries it: a test can tell whether it is of today."""
    parts = (
        f"{name} ({' '.join(files_of(name, graph, root))}): {' '.join(sorted(graph[name]))}" for name in sorted(graph)
    )
    return "; ".join(parts)


def _layout(graph: Graph) -> dict[str, tuple[float, float]]:
    """Where each room's middle lies, in widths of the picture and floors, so that few arrows run behind other rooms."""
    rng = random.Random(0)
    floor = {name: i for i, level in enumerate(floors(graph)) for name in level}
    arrows = [(a, b, 1 if implied(graph, a, b) else 20) for a in sorted(graph) for b in sorted(graph[a]) if b != GROUND]
    places = [i / 25 for i in range(3, 23)]

    def behind(x: dict[str, float], a: str, b: str) -> int:
        """How many rooms the straight line between two others crosses."""
        slope = (x[a] - x[b]) / (floor[a] - floor[b])
        crossed = 0
        for name, at in floor.items():
            low, high = max(at - 0.3, floor[b]), min(at + 0.3, floor[a])
            if low < high and name not in (a, b):
                ends = sorted(x[b] + slope * (y - floor[b]) for y in (low, high))
                crossed += ends[0] < x[name] + 0.085 and ends[1] > x[name] - 0.085
        return crossed

    def cost(x: dict[str, float]) -> float:
        close = sum(floor[a] == floor[b] and abs(x[a] - x[b]) < 0.19 for a, b in itertools.combinations(floor, 2))
        lines = sum(weight * (behind(x, a, b) + 0.3 * abs(x[a] - x[b])) for a, b, weight in arrows)
        return 100 * close + lines + abs(sum(x.values()) / len(x) - 0.5)

    def annealed() -> dict[str, float]:
        x = {name: rng.choice(places) for name in sorted(floor)}
        now, heat = cost(x), 20.0
        while heat > 0.05:
            heat *= 0.9993
            moved = x | {rng.choice(sorted(floor)): rng.choice(places)}
            then = cost(moved)
            if then < now or rng.random() < math.exp((now - then) / heat):
                x, now = moved, then
        return x

    best = min((annealed() for _ in range(6)), key=cost)
    return {name: (best[name], floor[name]) for name in sorted(floor)}


def draw(graph: Graph, out: Path, root: Path = ROOT) -> None:
    """The picture of the rooms, as SVG or PNG by the name's ending; what all stand on has no arrows."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    arrows = {(a, b) for a in graph for b in graph[a] if b != GROUND}
    plain = {(a, b) for a, b in arrows if not implied(graph, a, b)}
    where = _layout(graph)
    with matplotlib.rc_context({"svg.hashsalt": "rooms", "font.family": "DejaVu Sans", "svg.fonttype": "path"}):
        height = 1 + max(floor for _, floor in where.values())
        # As many points as the SVG has: boxes are laid out once, before the arrows are cut at them.
        figure = plt.figure(figsize=(17, 1.35 * height), dpi=72)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 1), ylim=(-0.6, height - 0.4))
        axes.axis("off")
        boxes = {}
        for name, (x, y) in where.items():
            lines = [
                f"$\\bf{{{name}}}$".replace("_", "\\_"),
                *textwrap.wrap(", ".join(files_of(name, graph, root)), 40),
            ]
            look = {"boxstyle": "round,pad=0.5", "facecolor": _COLOURS.get(name, "#eef4f8"), "edgecolor": _DARK}
            boxes[name] = axes.text(x, y, "\n".join(lines), ha="center", va="center", size=10, zorder=3, bbox=look)
        figure.canvas.draw()
        for a, b in sorted(arrows):
            order, colour = (2, _DARK) if (a, b) in plain else (1, _PALE)
            ends = {"patchA": boxes[a].get_bbox_patch(), "patchB": boxes[b].get_bbox_patch()}
            style = {"arrowstyle": "-|>,head_width=.3,head_length=.6", "color": colour, "shrinkA": 0, "shrinkB": 1}
            axes.annotate("", xy=where[b], xytext=where[a], zorder=order, arrowprops=style | ends)
        described = {"Date": None, "Creator": None, "Description": as_text(graph, root)}
        figure.savefig(out, dpi=72, metadata=described if out.suffix == ".svg" else None)
        plt.close(figure)


_DARK, _PALE = "#30506a", "#c3ced6"
_COLOURS = {"nodes": "#fdf1dd", "cli": "#fdf1dd", "kernels": "#e6f2e4", GROUND: "#f0f0f0"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "rooms.svg", help="SVG or PNG")
    draw(rooms(), parser.parse_args().out)
