"""The walls between the rooms: which part of the house must not import which, and why (docs/ARCHITECTURE.md)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

WALLS = {
    # Two papers: each can be read, used and removed without the other.
    "methods.antipure": ["methods.lora_patching"],
    "methods.lora_patching": ["methods.antipure", "methods.customization", "methods.diffusion.checkpoints"],
    # What AntiPure is compared with stands beside it, not on it.
    "methods.baselines": ["methods.antipure"],
    # What judges a protection knows none.
    "methods.customization": ["methods.antipure", "methods.baselines"],
    "methods.metrics": ["methods.lora_patching"],
    # A network knows neither the patches it may carry nor the diffusion models on the disk.
    "methods.generators": ["methods.lora_patching", "methods.diffusion.checkpoints"],
    # Data flows one way: nodes -> methods -> kernels.
    "methods": ["nodes", "cli"],
    "kernels": ["methods", "nodes", "cli"],
    "nodes": ["cli"],
}
# The registry's archive and the wheel carry none of these.
NOT_SHIPPED = re.compile(r"^\s*(from|import)\s+(antipure\.|\.*)?(benchmarks|tools|tests)\b", re.MULTILINE)


@pytest.fixture
def rooms(tool):
    return tool("draw_rooms")


def broken(rooms, root: Path, place: str, others: list[str]) -> list[str]:
    """Imports of `others` in `place`, as "file:line imports module"."""
    return [
        f"{each.path.relative_to(root)}:{each.line} imports {each.module}"
        for each in rooms.imports(root)
        if rooms.within(each.importer, place) and any(rooms.within(each.module, other) for other in others)
    ]


@pytest.mark.parametrize("place", WALLS)
def test_wall(rooms, place):
    assert broken(rooms, ROOT, place, WALLS[place]) == []


def test_every_wall_stands_between_rooms_that_exist():
    for name in {*WALLS, *(other for others in WALLS.values() for other in others)}:
        path = ROOT.joinpath(*name.split("."))
        assert path.is_dir() or path.with_suffix(".py").is_file(), name


def test_what_is_shipped_imports_nothing_that_is_not():
    folders = ("cli", "kernels", "methods", "nodes")
    found = [
        path for folder in folders for path in (ROOT / folder).rglob("*.py") if NOT_SHIPPED.search(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("methods/antipure/a.py", "from ..lora_patching.layer import Layer"),
        ("methods/antipure/a.py", "from .. import lora_patching"),
        ("methods/antipure/a.py", "from ... methods import lora_patching"),
        ("methods/antipure/deep/a.py", "from ...lora_patching import layer"),
        ("methods/antipure/__init__.py", "from ..lora_patching import layer"),
        ("methods/antipure/a.py", "from antipure.methods.lora_patching.layer import Layer"),
        ("methods/antipure/a.py", "from antipure.methods import lora_patching as other"),
        ("methods/antipure/a.py", "import antipure.methods.lora_patching.layer"),
        ("methods/antipure/a.py", "def f():\n    if True:\n        from ..lora_patching import layer"),
        ("methods/antipure/a.py", "import torch, antipure.methods.lora_patching as other"),
    ],
)
def test_a_hole_in_a_wall_is_found(rooms, tmp_path, file, code):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(f"import torch\n{code}\n")
    found = broken(rooms, tmp_path, "methods.antipure", WALLS["methods.antipure"])
    assert len(found) == 1
    assert found[0].startswith(f"{file}:")


@pytest.mark.parametrize(
    "code",
    [
        "from ..lora_patching_notes import x",  # another room, whose name begins alike
        "from .lora_patching import x",  # a file of this room
        "import lora_patching",  # somebody else's package
        "from ..attacks import lora_patching",
        '"""from ..lora_patching import layer"""',
    ],
)
def test_no_hole_is_seen_where_there_is_none(rooms, tmp_path, code):
    path = tmp_path / "methods" / "antipure" / "a.py"
    path.parent.mkdir(parents=True)
    path.write_text(code)
    assert broken(rooms, tmp_path, "methods.antipure", WALLS["methods.antipure"]) == []


def test_a_single_file_behind_a_wall(rooms, tmp_path):
    path = tmp_path / "methods" / "generators" / "a.py"
    path.parent.mkdir(parents=True)
    path.write_text("from ..diffusion.checkpoints import load\nfrom ..diffusion import checkpoints, denoiser\n")
    assert len(broken(rooms, tmp_path, "methods.generators", WALLS["methods.generators"])) == 2


def test_the_picture_of_the_rooms_is_of_today(rooms):
    picture = (ROOT / "docs" / "rooms.svg").read_text(encoding="utf-8")
    assert rooms.as_text(rooms.rooms()) in picture, "draw it anew: python -m tools.draw_rooms"


def test_rooms_in_a_circle_have_no_floors(rooms, tmp_path):
    for name, other in (("attacks", "metrics"), ("metrics", "attacks")):
        path = tmp_path / "methods" / name / "a.py"
        path.parent.mkdir(parents=True)
        path.write_text(f"from ..{other} import a\n")
    with pytest.raises(SystemExit, match="Rooms import each other in a circle: .*attacks.*metrics"):
        rooms.rooms(tmp_path)


def test_each_room_stands_above_what_it_imports(rooms):
    graph = rooms.rooms()
    floor = {name: i for i, level in enumerate(rooms.floors(graph)) for name in level}
    assert all(floor[name] > floor[other] for name in graph for other in graph[name])
    assert len(graph) == len(floor) > 10


def test_an_arrow_is_implied_only_by_a_way_through_a_third_room(rooms):
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert rooms.implied(graph, "a", "c")
    assert not rooms.implied(graph, "a", "b")
    assert not rooms.implied(graph, "b", "c")
