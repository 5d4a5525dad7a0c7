"""locales/: complete for every node, and in step with the English texts that were translated.

ComfyUI reads locales/<language>/nodeDefs.json of every pack (0.33, app/custom_node_manager.py).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from antipure.nodes import NODE_CLASS_MAPPINGS

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("de", "fr", "ja", "zh")
# What everybody uses has its tooltips, too.
EVERYDAY = ("AntiPureLoadDenoiser", "AntiPureProtect", "AntiPureDiffusionPurify", "AntiPureSave")

each_language = pytest.mark.parametrize("language", LANGUAGES)


def translated(language: str) -> dict:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def inputs_of(node_id: str) -> dict[str, dict]:
    types = NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()
    groups = (types.get(group, {}) for group in ("required", "optional"))
    return {name: options for group in groups for name, (_, options) in group.items()}


def test_languages():
    assert sorted(path.name for path in (ROOT / "locales").iterdir()) == sorted(LANGUAGES)


@each_language
def test_every_node_input_and_output_has_its_name(language):
    found = translated(language)
    assert list(found) == list(NODE_CLASS_MAPPINGS)
    for node_id, texts in found.items():
        node = NODE_CLASS_MAPPINGS[node_id]
        assert list(texts["inputs"]) == list(inputs_of(node_id)), node_id
        assert list(texts.get("outputs", {})) == [str(i) for i in range(len(node.RETURN_NAMES))], node_id
        names = [texts["display_name"], *(entry["name"] for entry in texts["inputs"].values())]
        names += [entry["name"] for entry in texts.get("outputs", {}).values()]
        assert all(name and name == name.strip() for name in names), node_id


@each_language
def test_what_everybody_uses_is_explained(language):
    for node_id in EVERYDAY:
        texts = translated(language)[node_id]
        assert texts["description"]
        assert all(entry.get("tooltip") for entry in texts["inputs"].values()), node_id


@each_language
def test_titles_tell_nodes_apart(language):
    titles = [texts["display_name"] for texts in translated(language).values()]
    assert len(set(titles)) == len(titles)


def test_the_english_that_was_translated_is_todays():
    """Translate anew what changed, in all languages, then write the new English into locale_sources.json."""
    sources = json.loads((ROOT / "tests" / "data" / "locale_sources.json").read_text(encoding="utf-8"))
    for key, text in sources.items():
        node_id, _, name = key.partition(".inputs.")
        today = inputs_of(node_id)[name]["tooltip"] if name else NODE_CLASS_MAPPINGS[node_id].DESCRIPTION
        assert text == today, key
    for language in LANGUAGES:
        for node_id, texts in translated(language).items():
            wanted = {key for key in sources if key.partition(".")[0] == node_id}
            given = {f"{node_id}.inputs.{name}" for name, entry in texts["inputs"].items() if "tooltip" in entry}
            assert given | ({node_id} if "description" in texts else set()) == wanted, (language, node_id)


@each_language
def test_values_are_not_translated(language):
    """Presets, paths and placeholders are typed as they are."""
    protect, save = translated(language)["AntiPureProtect"], translated(language)["AntiPureSave"]
    for word in ("robust", "strong_shaped", "random", "smooth", "none"):
        assert re.search(rf"\b{word}(?![a-z_])", protect["inputs"]["preset"]["tooltip"], re.ASCII), word
    assert "%name%" in save["inputs"]["filename_prefix"]["tooltip"]


@pytest.mark.parametrize(("language", "script"), [("ja", "[ぁ-んァ-ン]"), ("zh", "[一-鿿]")])
def test_texts_are_in_their_script(language, script):
    for node_id in EVERYDAY:
        assert re.search(script, translated(language)[node_id]["description"])
