"""The demo model's files and prompts, against the networks of its training (tools.latent_networks)."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from antipure.methods.customization import demo_model
from antipure.methods.errors import AntiPureError
from antipure.nodes import NODE_CLASS_MAPPINGS
from safetensors import safe_open
from safetensors.torch import load_file

MOST_BYTES = 6_000_000


def metadata() -> dict[str, list[str]]:
    with safe_open(demo_model.FOLDER / "conditions.safetensors", "pt") as file:
        return json.loads(file.metadata()["slots"])


def test_classes_are_those_of_the_file():
    stored = metadata()
    assert [list(values) for values in demo_model.CLASSES.values()] == list(stored.values())
    assert [name.replace("_", " ") for name in demo_model.CLASSES][1:] == list(stored)[1:]


def test_files_are_small_and_whole(tool):
    files = sorted(demo_model.FOLDER.iterdir())
    assert all(path.stat().st_size < MOST_BYTES for path in files)
    networks = tool("latent_networks")
    found = demo_model.model_weights()
    expected = networks.MMDiT().state_dict()
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in expected.items()}
    assert all(v.isfinite().all() for v in found.values())
    vae = networks.Autoencoder().exported()
    assert {k: v.shape for k, v in demo_model.vae_weights().items()} == {k: v.shape for k, v in vae.items()}


def test_a_prompt_is_what_the_training_makes_of_the_labels(tool):
    stored = metadata()
    tables = tool("latent_networks").Conditions({name: len(values) for name, values in stored.items()})
    tables.load_state_dict({k: v.float() for k, v in load_file(demo_model.FOLDER / "conditions.safetensors").items()})
    labels = torch.zeros(1, len(stored), dtype=torch.long)
    for name, value in {"who": "stranger 2", "style": "oil", "hair colour": "red"}.items():
        labels[0, list(stored).index(name)] = stored[name].index(value)
    context, pooled = tables(labels)
    made = demo_model.prompt({"person": "stranger 2", "style": "oil", "hair_colour": "red"})
    assert torch.allclose(made.context, context, atol=1e-6)
    assert torch.allclose(made.pooled, pooled, atol=1e-6)
    assert made.context.shape == (1, 14, 64)
    assert not torch.equal(made.context, demo_model.prompt({}).context)


def test_portraits_are_of_a_person_never_trained_on(tool):
    pictures = demo_model.portraits()
    assert pictures.shape == (5, 3, demo_model.SIDE, demo_model.SIDE)
    assert 0 <= pictures.min() < pictures.max() <= 1
    assert tool("draw_pool").DEMO_PERSON >= tool("latent_pool").HELD_OUT


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [({"style": "cubism"}, "no style 'cubism'; choose one of: any, studio"), ({"shoe": "any"}, "no shoe 'any'")],
)
def test_what_is_not_there_gets_one_sentence(chosen, sentence):
    with pytest.raises(AntiPureError, match=sentence):
        demo_model.prompt(chosen)


@pytest.mark.parametrize("missing", ["model-3.safetensors", "autoencoder.safetensors", "conditions.safetensors"])
def test_a_missing_file_gets_one_sentence(missing, tmp_path):
    for path in demo_model.FOLDER.iterdir():
        if path.name != missing:
            shutil.copy(path, tmp_path)
    with pytest.raises(AntiPureError, match=rf"{missing} is missing; install the pack again"):
        (demo_model.model_weights(tmp_path), demo_model.vae_weights(tmp_path), demo_model.prompt({}, tmp_path))


def test_files_of_another_model_get_one_sentence(tmp_path):
    for path in demo_model.FOLDER.iterdir():
        shutil.copy(path, tmp_path)
    shutil.copy(demo_model.FOLDER / "model-1.safetensors", tmp_path / "conditions.safetensors")
    with pytest.raises(AntiPureError, match="belongs to another model"):
        demo_model.prompt({}, tmp_path)


def test_outside_comfyui_the_node_says_so():
    with pytest.raises(AntiPureError, match="run the workflow in ComfyUI"):
        NODE_CLASS_MAPPINGS["AntiPureLoadDemoModel"]().load(person="any", style="any")


def test_classes_are_those_of_the_drawn_portraits(tool):
    """What the node offers is what the training's pictures were labelled with, value by value."""
    drawn = {slot.replace(" ", "_"): tuple(values) for slot, values in tool("portraits").SLOTS.items()}
    assert {slot: values for slot, values in demo_model.CLASSES.items() if slot != "person"} == drawn
