"""nodes/inputs.py, and that every node's inputs come from there and make sense."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from antipure.nodes import NODE_CLASS_MAPPINGS, inputs

NODES = Path(inputs.__file__).parent


def test_each_kind_as_comfyui_describes_it():
    assert inputs.integer(3, 1, 9, "Tip.") == ("INT", {"default": 3, "min": 1, "max": 9, "tooltip": "Tip."})
    assert inputs.integer(4, 2, 8, "Tip.", step=2)[1]["step"] == 2
    assert inputs.seed("Tip.") == ("INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF, "tooltip": "Tip."})
    options = {"default": 0.5, "min": 0.0, "max": 1.0, "step": 0.1, "tooltip": "Tip."}
    assert inputs.number(0.5, 0.0, 1.0, 0.1, "Tip.") == ("FLOAT", options)
    assert inputs.number(0.5, 0.0, 1.0, 0.1, "Tip.", round=0.01) == ("FLOAT", {**options, "round": 0.01})
    assert inputs.choice(("a", "b"), "b", "Tip.") == (["a", "b"], {"default": "b", "tooltip": "Tip."})
    assert inputs.file(["mine.pt"], "Tip.") == (["mine.pt"], {"tooltip": "Tip."})
    assert inputs.file(["mine.pt"], "Tip.", absent="None.")[0] == ["mine.pt"]
    assert inputs.file([], "Tip.", absent="None.")[0] == ["None."]
    assert inputs.boolean(False, "Tip.") == ("BOOLEAN", {"default": False, "tooltip": "Tip."})
    assert inputs.text("", "Tip.") == ("STRING", {"default": "", "tooltip": "Tip."})
    assert inputs.text("a", "Tip.", multiline=True)[1] == {"default": "a", "multiline": True, "tooltip": "Tip."}
    assert inputs.image("Tip.") == inputs.wire("IMAGE", "Tip.") == ("IMAGE", {"tooltip": "Tip."})


def test_groups_that_are_empty_are_left_out():
    one = inputs.image("Tip.")
    assert inputs.declare(a=one) == {"required": {"a": one}}
    full = inputs.declare(a=one, optional={"b": one}, node_id=True)
    assert full == {"required": {"a": one}, "optional": {"b": one}, "hidden": {"node_id": "UNIQUE_ID"}}
    assert list(full) == ["required", "optional", "hidden"]


def test_rarely_used_inputs_are_marked_and_keep_their_place():
    found = inputs.declare(
        a=inputs.boolean(True, "A."), b=inputs.text("", "B."), optional={"c": inputs.image("C.")}, advanced=("b", "c")
    )
    assert [name for group in found.values() for name, (_, o) in group.items() if o.get("advanced")] == ["b", "c"]
    assert list(found["required"]) == ["a", "b"]
    assert found["required"]["b"] == ("STRING", {"default": "", "tooltip": "B.", "advanced": True})


def test_every_input_that_is_marked_exists():
    """A name that is spelt otherwise would mark nothing, in silence."""
    for path in NODES.glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "declare":
                words = {keyword.arg: keyword.value for keyword in call.keywords}
                names = {getattr(key, "value", None) for key in getattr(words.get("optional"), "keys", [])}
                marked = {item.value for item in getattr(words.get("advanced"), "elts", [])}
                assert marked <= words.keys() | names, path.name


@pytest.mark.parametrize("node_id", NODE_CLASS_MAPPINGS)
def test_what_is_asked_for_first_is_not_hidden(node_id):
    types = NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()
    shown = [name for name, (_, options) in types["required"].items() if not options.get("advanced")]
    assert shown


@pytest.mark.parametrize("node_id", NODE_CLASS_MAPPINGS)
def test_defaults_can_be_chosen(node_id):
    types = NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()
    for name, (kind, options) in {**types["required"], **types.get("optional", {})}.items():
        if kind in ("INT", "FLOAT"):
            assert options["min"] <= options["default"] <= options["max"], name
            expected = int if kind == "INT" else float
            assert all(type(options[key]) is expected for key in ("default", "min", "max")), name
        elif isinstance(kind, list) and "default" in options:
            assert options["default"] in kind, name


@pytest.mark.parametrize("node_id", NODE_CLASS_MAPPINGS)
def test_what_one_caller_changes_no_other_sees(node_id):
    """Other packs rewrite the dictionaries that they are given."""
    node = NODE_CLASS_MAPPINGS[node_id]
    before = repr(node.INPUT_TYPES())
    changed = node.INPUT_TYPES()
    for group in changed.values():
        for spec in group.values():
            if isinstance(spec, tuple):
                spec[1]["tooltip"] = "changed"
                if isinstance(spec[0], list):
                    spec[0].append("changed")
        group["changed"] = ("INT", {})
    assert repr(node.INPUT_TYPES()) == before


def test_no_node_describes_its_inputs_by_hand():
    for path in NODES.glob("*.py"):
        if path.name == "inputs.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            keys = [key.value for key in getattr(node, "keys", []) if isinstance(key, ast.Constant)]
            assert "tooltip" not in keys, f"{path.name}, line {node.lineno}"
