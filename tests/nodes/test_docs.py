"""The help pages in web/docs and the tooltips: every node, input and output is explained, with its real numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from antipure import WEB_DIRECTORY
from antipure.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

DOCS = Path(__file__).resolve().parents[2] / WEB_DIRECTORY / "docs"
SECTIONS = ("required", "optional")

each_node = pytest.mark.parametrize("node_id", NODE_CLASS_MAPPINGS)


def read_page(node_id: str) -> str:
    return (DOCS / f"{node_id}.md").read_text(encoding="utf-8")


def table(page: str, heading: str) -> dict[str, tuple[str, str]]:
    """Name -> (facts, meaning) of the rows "| `name` | *facts.* meaning |" under "## heading"."""
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| \*([^*]+)\.\* (.+) \|$", section, re.MULTILINE)
    assert len(rows) == section.count("\n| `")
    return {name: (facts, meaning) for name, facts, meaning in rows}


def inputs_of(node_id: str) -> dict[str, tuple[str, object, dict]]:
    """Name -> (section, type, options); hidden inputs are not shown to anyone."""
    types = NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()
    return {name: (section, *types[section][name]) for section in SECTIONS for name in types.get(section, {})}


def range_text(options: dict) -> str:
    top = "2^64 - 1" if options["max"] == 2**64 - 1 else f"{options['max']:g}"
    return f"{options['min']:g}..{top}"


def test_one_page_for_each_node():
    assert {path.stem for path in DOCS.glob("*.md")} == set(NODE_CLASS_MAPPINGS)


@each_node
def test_title_is_the_nodes_name(node_id):
    assert read_page(node_id).splitlines()[0] == f"# {NODE_DISPLAY_NAME_MAPPINGS[node_id]}"


@each_node
def test_inputs(node_id):
    described, inputs = table(read_page(node_id), "Inputs"), inputs_of(node_id)
    assert list(described) == list(inputs)
    for name, (section, kind, options) in inputs.items():
        facts, meaning = described[name]
        if isinstance(kind, list):
            default = options.get("default")  # none: the list is the user's files
            assert facts == (f"COMBO, default `{default}`" if default else f"COMBO, {section}")
            fixed = kind[:1] if default == "bundled" else kind if default else []
            assert all(f"`{choice}`" in meaning for choice in fixed)
        elif kind in ("INT", "FLOAT"):
            assert facts == f"{kind}, default {options['default']:g}, {range_text(options)}"
        else:
            assert facts == f"{kind}, {section}"


@each_node
def test_outputs(node_id):
    node = NODE_CLASS_MAPPINGS[node_id]
    described = table(read_page(node_id), "Outputs")
    assert list(described) == list(node.RETURN_NAMES)
    assert [facts for facts, _ in described.values()] == list(node.RETURN_TYPES)


@each_node
def test_tooltips(node_id):
    node = NODE_CLASS_MAPPINGS[node_id]
    assert node.DESCRIPTION
    assert node.CATEGORY.startswith("AntiPure")
    assert len(node.OUTPUT_TOOLTIPS) == len(node.RETURN_NAMES) == len(node.RETURN_TYPES)
    assert all(node.OUTPUT_TOOLTIPS)
    for name, (_, _, options) in inputs_of(node_id).items():
        assert options.get("tooltip"), name


@each_node
def test_sections(node_id):
    page = read_page(node_id)
    for heading in ("Wiring", "How it works", "Tips", "Limits", "References"):
        assert f"\n## {heading}\n" in page
    patching = NODE_CLASS_MAPPINGS[node_id].CATEGORY == "AntiPure/LoRA Patching"
    assert ("arXiv 2510.03747" if patching else "arXiv 2509.13922") in page


def test_diffusion_purify_says_what_it_is_for():
    assert "exists to measure protections" in read_page("AntiPureDiffusionPurify")


PURPOSE = "Built as a measurement of how fragile proactive defences are and, by default, to stamp visible warnings."


@pytest.mark.parametrize(
    ("node_id", "sentences"),
    [
        ("AntiPureLoadGenerator", [PURPOSE, "StarGAN's labels are guessed"]),
        ("AntiPureDisruptProtect", ["JPEG at quality 75 undoes most of it"]),
        ("AntiPureTrainLoraPatch", [PURPOSE, "JPEG 75 weakens Disrupting without any patch"]),
        ("AntiPureTrainModelPatch", [PURPOSE, "our extension: not in the paper"]),
        ("AntiPureSaveLoraPatch", ["only for `scalar` and `none` gates, and only for patches of a MODEL"]),
        ("AntiPureDefenceReport", [PURPOSE, "JPEG 75 weakens Disrupting without any patch"]),
    ],
)
def test_lora_patching_says_what_it_is_for_and_where_it_ends(node_id, sentences):
    page = " ".join(read_page(node_id).split())
    assert all(sentence in page for sentence in sentences)
